"""Weights between the pretrained ones and those that SALAdamW ends at."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.finetune.methods.sal import SALW


class SALWiSE(SALW):
    """SALAdamW, then WiSE-FT's average."""

    averages: ClassVar[bool] = True
