"""Base optimizers by name, each with the learning rate that is used where none was tuned.

A base has a learning rate of its own, which every method on it shares.
"""

from __future__ import annotations

from benchmarks.methods.bayes import BGD, MESU
from benchmarks.methods.of_torch import TORCH, Base
from benchmarks.methods.plain import adam, lion, sgd
from benchmarks.methods.upgd import UPGD, AdaUPGD

BASES: dict[str, Base] = {
    "adam": Base(adam, 1e-3),
    "sgd": Base(sgd, 0.05),
    "lion": Base(lion, 3e-4),
    **TORCH,
    "upgd": Base(UPGD, 0.01),
    "adaupgd": Base(AdaUPGD, 1e-3),
    "bgd": Base(BGD, 1.0),
    "mesu": Base(MESU, 1.0),
}

__all__ = ["BASES", "Base"]
