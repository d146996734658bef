"""Writers: every row is what ``diagnostics()`` says, on disk at once, and a resumed run goes on."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALOptimizer
from sal_optim.monitoring.writers import CSVWriter, Recorder, TensorBoardWriter
from tests.testing.drive import drive, make_params, profile, reload, step_with, stream


class Scalars:
    """The part of a SummaryWriter that is asked for, keeping what it is given."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, int]] = []
        self.flushed = 0

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.values.append((tag, value, step))

    def flush(self) -> None:
        self.flushed = len(self.values)


def read(path: Path) -> list[dict[str, float]]:
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def steps(path: Path) -> list[float]:
    return [row["step"] for row in read(path)]


def adam() -> tuple[list[Tensor], SALOptimizer]:
    params = make_params()
    return params, SALAdam(params, lr=0.01)


def layered(base: Any = torch.optim.Adam) -> tuple[list[Tensor], Any, CommunicationLayer]:
    params = make_params()
    optimizer = base(params, lr=0.01)
    return params, optimizer, CommunicationLayer(optimizer)


@pytest.mark.parametrize("around", [False, True])
def test_each_row_is_the_diagnostics_and_is_there_at_once(tmp_path: Path, around: bool) -> None:
    path = tmp_path / "run.csv"
    protection: Any
    if around:
        params, optimizer, protection = layered()
    else:
        params, optimizer = adam()
        protection = optimizer
    CSVWriter(optimizer, path)
    for index, now in enumerate(stream(params, profile(70, (60,))), 1):
        step_with(optimizer, params, now)
        assert path.read_bytes().count(b"\n") == index + 1
        assert read(path)[-1] == {"step": index, **protection.diagnostics()}
    assert read(path)[-1]["consolidations"] == 1.0


def test_a_recorder_keeps_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    recorder = Recorder(optimizer, every=2)
    CSVWriter(optimizer, path, every=2)
    drive(optimizer, params, stream(params, profile(9)))
    assert recorder.rows == read(path)
    assert steps(path) == [2, 4, 6, 8]


def test_a_recorder_thins_its_rows_out() -> None:
    params, optimizer = adam()
    recorder = Recorder(optimizer, limit=5)
    rows = recorder.rows
    drive(optimizer, params, stream(params, profile(22)))
    assert [row["step"] for row in rows] == [8, 16]
    assert recorder.rows is rows


def test_every(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    CSVWriter(optimizer, path, every=3)
    drive(optimizer, params, stream(params, profile(10)))
    assert steps(path) == [3, 6, 9]


def test_a_layer_is_as_good_as_its_optimizer(tmp_path: Path) -> None:
    params, optimizer, layer = layered()
    CSVWriter(layer, tmp_path / "run.csv")
    drive(optimizer, params, stream(params, profile(2)))
    assert steps(tmp_path / "run.csv") == [1, 2]


@pytest.mark.parametrize("first", ["load", "write"])
def test_a_resumed_run_goes_on_where_its_checkpoint_was(tmp_path: Path, first: str) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    grads = stream(params, profile(6))
    CSVWriter(optimizer, path)
    drive(optimizer, params, grads[:3])
    saved = reload(optimizer.state_dict())
    drive(optimizer, params, grads[3:5])  # lost: no checkpoint has it
    params, optimizer = adam()
    if first == "write":
        CSVWriter(optimizer, path)
    optimizer.load_state_dict(saved)
    if first == "load":
        CSVWriter(optimizer, path)
    drive(optimizer, params, grads[3:])
    assert steps(path) == [1, 2, 3, 4, 5, 4, 5, 6]
    assert path.read_text().count("step") == 1


def test_an_optimizer_without_steps_goes_on_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    for _ in range(2):
        params, optimizer, _ = layered(torch.optim.SGD)
        CSVWriter(optimizer, path)
        drive(optimizer, params, stream(params, profile(2)))
    assert steps(path) == [1, 2, 3, 4]


def test_a_part_of_a_row_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer, _ = layered(torch.optim.SGD)
    writer = CSVWriter(optimizer, path)
    drive(optimizer, params, stream(params, profile(2)))
    writer.remove()
    path.write_bytes(path.read_bytes() + b"3,0.1,0.")
    CSVWriter(optimizer, path)
    drive(optimizer, params, stream(params, profile(1)))
    assert steps(path) == [1, 2, 3]


def test_observed_steps_are_none(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    CSVWriter(optimizer, path)
    grads = stream(params, profile(3))
    with optimizer.observe():
        drive(optimizer, params, grads)
    assert steps(path) == []
    drive(optimizer, params, grads)
    assert steps(path) == [1, 2, 3]


def test_removal(tmp_path: Path) -> None:
    path, scalars = tmp_path / "run.csv", Scalars()
    params, optimizer = adam()
    writers = CSVWriter(optimizer, path), TensorBoardWriter(optimizer, scalars)
    grads = stream(params, profile(3))
    drive(optimizer, params, grads[:2])
    for writer in (*writers, *writers):
        writer.remove()
    drive(optimizer, params, grads[2:])
    assert steps(path) == [1, 2]
    assert {step for *_, step in scalars.values} == {1, 2}


def test_a_copy_of_the_optimizer_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    CSVWriter(optimizer, path)
    params, copied = copy.deepcopy((params, optimizer))
    drive(copied, params, stream(params, profile(2)))
    assert steps(path) == []


def test_a_writer_does_not_outlive_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    params, optimizer = adam()
    writer = CSVWriter(optimizer, path)
    # torch goes through its hooks, and one that goes meanwhile ended the step in an error.
    rows = Recorder(optimizer).rows
    grads = stream(params, profile(3))
    drive(optimizer, params, grads[:1])
    path.unlink()
    with pytest.warns(UserWarning, match=r"CSVWriter stops at step 2.*run\.csv"):
        drive(optimizer, params, grads[1:2])
    drive(optimizer, params, grads[2:])  # a warning would be an error
    assert not path.exists()
    assert len(rows) == 3
    writer.remove()
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_scalars_have_names_values_and_steps() -> None:
    scalars = Scalars()
    params = make_params()
    optimizer = SALSGD(params, lr=0.01)
    TensorBoardWriter(optimizer, scalars, every=2, prefix="a/")
    drive(optimizer, params, stream(params, profile(4)))
    names = [f"a/{name}" for name in optimizer.diagnostics()]
    assert [(tag, step) for tag, _, step in scalars.values] == [
        (n, s) for s in (2, 4) for n in names
    ]
    last = {tag[2:]: value for tag, value, step in scalars.values if step == 4}
    assert last == optimizer.diagnostics()
    assert scalars.flushed == len(scalars.values)


@pytest.mark.parametrize(
    "error", [OSError("no space left"), ValueError("I/O operation on closed file.")]
)
def test_what_a_writer_raises_ends_no_run(error: Exception) -> None:
    """Of a full disk, and of a writer whose file was closed beside it."""

    class Full(Scalars):
        def flush(self) -> None:
            raise error

    params, scalars = make_params(), Full()
    optimizer = SALAdam(params)
    TensorBoardWriter(optimizer, scalars)
    with pytest.warns(UserWarning, match=f"TensorBoardWriter stops at step 1: {error}"):
        drive(optimizer, params, stream(params, profile(3)))
    assert {step for _, _, step in scalars.values} == {1}


def test_tensorboard_itself(tmp_path: Path) -> None:
    """Written, read back, and no other file once it is closed."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    params, optimizer = adam()
    board = SummaryWriter(tmp_path)
    TensorBoardWriter(optimizer, board)
    grads = stream(params, profile(4))
    drive(optimizer, params, grads[:3])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("sal/surprise")] == [1, 2, 3]
    board.close()
    drive(optimizer, params, grads[3:])
    assert len(list(tmp_path.iterdir())) == 1
    assert not optimizer._optimizer_step_post_hooks


def test_what_is_refused(tmp_path: Path) -> None:
    _, optimizer = adam()
    path = tmp_path / "run.csv"
    with pytest.raises(TypeError, match=r"optimizer.*SGD.*CommunicationLayer"):
        CSVWriter(torch.optim.SGD(make_params(), lr=1.0), path)
    with pytest.raises(ValueError, match=r"every.*0.*>= 1"):
        CSVWriter(optimizer, path, every=0)
    with pytest.raises(ValueError, match=r"limit.*1.*>= 2"):
        Recorder(optimizer, limit=1)
    assert not path.exists()
    with pytest.raises(TypeError, match=r"path.*3.*new file"):
        CSVWriter(optimizer, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path.*absent.*folder that exists"):
        CSVWriter(optimizer, tmp_path / "absent" / "run.csv")
    with pytest.raises(ValueError, match=r"path.*folder that exists"):
        CSVWriter(optimizer, tmp_path)
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"path.*epoch,loss.*CSVWriter wrote.*step,protected"):
        CSVWriter(optimizer, path)
    assert path.read_text() == "epoch,loss\n1,2\n"
    with pytest.raises(TypeError, match=r"writer.*list.*add_scalar"):
        TensorBoardWriter(optimizer, [])
    with pytest.raises(TypeError, match=r"prefix.*None.*str"):
        TensorBoardWriter(optimizer, Scalars(), prefix=None)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_post_hooks
