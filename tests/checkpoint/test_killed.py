"""A process that is killed as it saves, and goes on from the last whole checkpoint."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALOptimizer
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    consolidations,
    make_params,
    profile,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import Row, row_of

Mode = dict[str, Any]
STEPS, CHANGE = 90, 60


class Mortal(io.FileIO):
    """A file whose process dies at its n-th write, as by kill -9."""

    writes_left = -1

    def write(self, data: Any) -> int:
        type(self).writes_left -= 1
        if self.writes_left == 0:
            super().write(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(data)


def train(folder: Path, row: Row, deaths: int = -1) -> tuple[list[Tensor], SALOptimizer]:
    """Train from the newest checkpoint to the end; save every 10 steps, by a rename."""
    params = make_params()
    optimizer = row(params, consolidate_every=None)
    grads = stream(params, profile(STEPS, (CHANGE,)))
    start, file = 0, folder / "checkpoint.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        start = saved["step"]
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for param, value in zip(params, saved["params"], strict=True):
                param.copy_(value)
    for step in range(start, STEPS):
        step_with(optimizer, params, grads[step])
        if step % 10 == 1:
            # A checkpoint is several writes; with deaths, one of them is the last.
            Mortal.writes_left = deaths if step in (11, 61) else -1
            new = folder / "checkpoint.new"
            with Mortal(str(new), "w") as opened:
                state = {"step": step + 1, "optimizer": optimizer.state_dict(), "params": params}
                torch.save({**state, "params": [p.detach() for p in params]}, opened)
            new.replace(file)
    return params, optimizer


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.parametrize("name", ["SALAdamW", "SALLion"])
def test_kill_9_during_a_checkpoint(tmp_path: Path, name: str) -> None:
    """Twice: once in the first regime, once as a change has begun and is not confirmed."""
    row = row_of(name)
    code = (
        "import sys; from pathlib import Path; "
        "from tests.checkpoint.test_killed import row_of, train; "
        f"train(Path(sys.argv[1]), row_of({name!r}), deaths=int(sys.argv[2]))"
    )
    for writes in (2, 5):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), str(writes)],
            cwd=Path(__file__).parents[2],
            timeout=120,
            capture_output=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert (tmp_path / "checkpoint.new").exists(), "it died amid the file"
        if writes == 2:
            # The file of step 2 is the newest whole one; go past the place it died at.
            assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
            _advance(tmp_path, row, 52)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 52
    params, optimizer = train(tmp_path, row)
    (tmp_path / "whole").mkdir()
    expected, whole = train(tmp_path / "whole", row)
    assert consolidations(whole) == 1
    assert_equal(params, expected)
    assert_same_state(snapshot(optimizer), snapshot(whole))


def _advance(folder: Path, row: Row, until: int) -> None:
    """Leave the checkpoint that an unbroken run leaves at this step."""
    global STEPS
    steps, STEPS = STEPS, until
    try:
        train(folder, row)
    finally:
        STEPS = steps
