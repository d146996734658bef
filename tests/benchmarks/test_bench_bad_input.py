"""Bad input on every command line: one line that names the argument, the value and what is allowed.

Folders of images with few, missing or odd classes are run or refused before anything is computed.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS, main

TINY = ["--steps", "4", "--batch", "8", "--hidden", "8", "--jobs", "1", "--seeds", "1",
        "--no-figures", "--methods", "adam"]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that is refused."""
    try:
        status = main(arguments)
    except SystemExit as stopped:  # argparse's own checks
        status = int(stopped.code or 0)
    printed = capsys.readouterr().err.strip()
    assert status == 2, printed
    lines = [line for line in printed.splitlines() if line]
    assert len(lines) == 1, printed
    assert lines[0].startswith("error: ")
    return lines[0]


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def images(folder: Path, labels: list[int], shape: tuple[int, ...] = (8, 8)) -> Path:
    """A folder of IDX files with a random image for each label."""
    folder.mkdir()
    source = np.random.default_rng(0)
    write_idx(folder / "train-images", source.integers(0, 255, (len(labels), *shape)))
    write_idx(folder / "train-labels", np.asarray(labels))
    return folder


@pytest.mark.parametrize(("classes", "tasks"), [(2, 1), (6, 3), (7, 3)])
def test_split_streams_have_as_many_tasks_as_the_data_have_pairs(
    classes: int, tasks: int, tmp_path: Path
) -> None:
    folder = images(tmp_path / "mine", [n % classes for n in range(30 * classes)])
    streams = [f"--stream=split-{name}" for name in ("domain", "task", "class")]
    out = tmp_path / "out"
    assert main(["continual", "--data", str(folder), "--out", str(out), *TINY, *streams]) == 0
    for name in ("split-domain", "split-task", "split-class"):
        assert f"{tasks} tasks x 4 steps" in (out / "tables" / f"mine-{name}.md").read_text()


@pytest.mark.parametrize(
    ("labels", "shape", "arguments", "parts"),
    [
        ([0] * 60, (8, 8), ["--stream", "split-task"], ["1 class", "at least 2"]),
        ([0, 1, 5] * 20, (8, 8), ["--stream", "split-task"], ["class 2", "0 to 5"]),
        ([0, 1, 2], (8, 8), ["--stream", "split-task"], ["class", "in both parts"]),
        ([0, 1, 2, 3] * 9, (3, 7), ["--stream", "rotated"], ["21 pixels", "square"]),
        (
            [0, 1, 2, 3] * 9,
            (3, 7),
            ["--net", "conv", "--stream", "permuted"],
            ["21 pixels", "--net conv"],
        ),
        (
            [0, 1, 2, 3] * 9,
            (2, 2),
            ["--net", "conv", "--stream", "permuted"],
            ["2 x 2", "at least 4 x 4"],
        ),
        ([], (8, 8), [], ["no train images", "at least one"]),
        ([0, 1, 2, 3] * 9, (), [], ["cannot be read", "three dimensions"]),
        ([0, 1] * 30, (8, 8), ["--preset", "vandeven-split"], ["--preset", "5 tasks", "1 to 1"]),
    ],
)
def test_data_that_a_stream_cannot_be_made_of(
    labels: list[int],
    shape: tuple[int, ...],
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = images(tmp_path / "mine", labels, shape)
    out = ["--out", str(tmp_path / "out")]
    said = refused(["continual", "--data", str(folder), *out, *TINY, *arguments], capsys)
    for part in ("mine", *parts):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["sal-adam", "--set", "protection=-1"], ["--set", "protection=-1", "[0, inf)"]),
        (["sal-adam", "--protection", "inf"], ["--protection", "inf", ">= 0, finite"]),
        (["sal-adam", "--set", "betas=3"], ["--set", "betas=3", "two numbers"]),
        (["sal-adam", "--grid", "rank=8,-1"], ["--grid", "rank=-1", "a whole number >= 1"]),
        (["ewc", "--set", "strength=-2"], ["--set", "strength", "-2", ">= 0"]),
        (["ewc", "--set", "strength=much"], ["--set", "strength", "'much'", "number"]),
        (["streaming-si", "--grid", "every=1.5"], ["--grid", "every", "1.5", ">= 1"]),
        (["adam", "--grid", "lr=1e-3,0"], ["--grid", "lr", "0", "> 0"]),
        (["adam", "--set", "lr=fast"], ["--set", "lr", "'fast'", "number"]),
        (["adam", "--batch", "100000000"], ["--batch", "1e+08", "<= 10000"]),
        (["adam", "--steps", "1.5"], ["--steps", "'1.5'", "a whole number"]),
        (
            ["sal-adam-diagonal", "--grid", "importance=kronecker,diagonal"],
            ["--grid", "'importance=kronecker,diagonal'", "importance=diagonal by its name"],
        ),
        (
            ["sal-adam-diagonal", "--set", "sal-adam-diagonal.importance=kronecker"],
            ["--set", "importance=kronecker", "by its name", "protection"],
        ),
    ],
)
def test_a_value_that_a_method_cannot_use(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["continual", "--out", str(tmp_path / "out"), "--methods", *arguments]
    said = refused(command, capsys)
    for part in parts:
        assert part in said


def test_a_grid_of_what_every_method_may_vary_is_run(tmp_path: Path) -> None:
    grid = ["--methods", "sal-adam", "--grid", "pull=0,1.2,1.2", "--stream", "permuted"]
    assert main(["continual", "--out", str(tmp_path), "--tasks", "2", *TINY, *grid]) == 0
    table = (tmp_path / "tables" / "digits-permuted.md").read_text()
    assert table.count("| sal-adam pull=") == 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["companions"], ["NAME", "residual"]),
        (["companions", "colapse"], ["'colapse'", "collapse"]),
        (["companions", "residual", "--only", "x"], ["--only", "'x'"]),
        (["companions", "residual", "--data-dir", "/no/such"], ["--data-dir", "/no/such"]),
        (["companions", "residual", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["continual", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["continual", "--out", "{file}/below"], ["--out", "below", "a folder"]),
        (["crosscheck", "--seeds", "0"], ["--seeds", "0", ">= 1"]),
        (["finetune", "--old", "nix"], ["--old", "'nix'", "prose"]),
        (["finetune", "--tuned", "/no/such"], ["--tuned", "/no/such", "none"]),
        (["finetune", "--data-dir", "/no/such"], ["--data-dir", "/no/such"]),
        (["finetune", "--width", "10"], ["--width", "10", "multiple of 4", "allowed"]),
        (["finetune", "--methods", "nix"], ["--methods", "'nix'", "adamw"]),
        (["finetune", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["finetune", "--model", "nix"], ["--model", "'nix'", "small"]),
        (["lora", "--domains", "nix"], ["'nix'", "prose", "code"]),
        (["lora", "--domains", "code", "--methods", "nix"], ["--methods", "'nix'", "o-lora"]),
        (["lora", "--domains", "code", "--rank", "0"], ["--rank", "0", ">= 1"]),
        (["memory", "--size", "big"], ["--size", "'big'", "a number"]),
        (["memory", "--size", "1"], ["--size", "1", ">= 100000"]),
        (["memory", "--one", "nix"], ["--one", "'nix'", "SALAdamW"]),
        (["external", "nix"], ["NAME", "'nix'", "avalanche"]),
        (["external", "avalanche", "--jobs", "0"], ["--jobs", "0", ">= 1"]),
        (["external", "idx", "--to", "{file}"], ["--to", "taken", "a folder"]),
        (["memory", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["ordinary", "--seeds", "0"], ["--seeds", "0", ">= 1"]),
        (["ordinary", "--jobs", "0"], ["--jobs", "0", ">= 1"]),
        (["ordinary", "--steps", "0"], ["--steps", "0", ">= 3"]),
        (["report", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["report", "--write", "{folder}"], ["--write", "is a folder", "a file"]),
        (["report", "--markdown", "{folder}"], ["--markdown", "is a folder", "a file"]),
        (["speed", "--sizes", "inf"], ["--sizes", "inf", ">= 1000"]),
        (["speed", "--sizes", "1e4,"], ["--sizes", "'1e4,'", "1e4,1e6"]),
        (["speed", "--methods", "nix"], ["--methods", "'nix'", "SALAdamW"]),
        (["speed", "--device", "tpu"], ["--device", "'tpu'", "cpu"]),
        (["speed", "--out", "{file}"], ["--out", "taken", "a folder"]),
        (["tune", "--write", "{folder}"], ["--write", "is a folder", "a file"]),
        (["tune", "--sampler", "nix"], ["--sampler", "'nix'", "tpe"]),
        (["tune", "--objective", "nix"], ["--objective", "'nix'", "average"]),
        (["tune", "--trials", "0"], ["--trials", "0", ">= 1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_every_command_refuses_what_it_cannot_do(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    named = {"{file}": str(tmp_path / "taken"), "{folder}": str(tmp_path)}
    for name, path in named.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    said = refused(arguments, capsys)
    for part in parts:
        assert part in said


def test_every_command_is_tried() -> None:
    marks = test_every_command_refuses_what_it_cannot_do.pytestmark
    (rows,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    assert {arguments[0] for arguments, _ in rows} == set(COMMANDS)


@pytest.mark.parametrize("given", [["--clip", "1"], ["--dropout", "0.5"]])
def test_crosscheck_refuses_what_it_does_not_do(
    given: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["crosscheck", *given, "--out", str(tmp_path)]) == 2
    assert f"{given[0]}: {given[1]}; allowed for crosscheck: none" in capsys.readouterr().err
