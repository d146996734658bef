"""What surrounds the harnesses of others: IDX files, records, the command line, tables.

The harnesses themselves are run in tests/integrations/test_external.py.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands import external
from benchmarks.data.errors import UserError
from benchmarks.data.readers import read_idx_folder
from benchmarks.data.sets import Dataset, load
from benchmarks.external import HARNESSES, AbsentError, harness
from benchmarks.external import jobs as external_jobs
from benchmarks.external.checkouts import commit, require
from benchmarks.external.idx import write_folder, write_idx
from benchmarks.external.jobs import Job, Place, complete, grouped

JOB = Job("avalanche", "0", "permuted", "adam", 0, "digits", "f", settings={"lr": 0.1})


def test_idx_files_are_read_back(digits: Dataset, tmp_path: Path) -> None:
    write_folder(digits, tmp_path)
    (train_x, train_y), test = read_idx_folder(tmp_path)
    assert test is not None
    assert torch.equal(train_y, digits.train_y)
    assert torch.equal(test[1], digits.test_y)
    # Bytes are what IDX has: 16 levels of the digits, rounded to 256.
    assert (train_x - digits.train_x).abs().max() <= 0.5 / 255 + 1e-6
    assert train_x.max() == 1
    with pytest.raises(ValueError, match=r"torch\.float32.*allowed: torch\.uint8"):
        write_idx(tmp_path / "x", torch.zeros(2))


def test_the_command_writes_idx_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert external.main(["idx", "--data", "digits", "--to", str(tmp_path / "new")]) == 0
    assert "1437 train and 360 test images" in capsys.readouterr().out
    assert load(str(tmp_path / "new")).features == 64


@pytest.mark.parametrize("name", list(HARNESSES))
def test_a_harness_has_what_the_command_needs(name: str, digits: Dataset) -> None:
    found = harness(name)
    assert found.BENCHMARKS
    assert external.REFERENCE in found.METHODS
    with pytest.raises(UserError, match=r"64.*pixels.*allowed for"):
        found.check(digits)


@pytest.mark.parametrize("name", [name for name in HARNESSES if name != "avalanche"])
def test_without_its_checkout_a_harness_is_skipped(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ([], ["--checkout", str(tmp_path)]):
        assert external.main([name, *given, "--out", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"skipped: {name}: ")
        assert "clone of" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nothing"], ["NAME", "'nothing'", "avalanche"]),
        (["idx"], ["--to", "missing"]),
        (["upgd", "--seeds", "0"], ["--seeds", "0", ">= 1"]),
        (["upgd", "--checkout", "/no/where"], ["--checkout", "'/no/where'", "a checkout"]),
        (["avalanche", "--benchmark", "x"], ["--benchmark", "'x'", "permuted"]),
        (["avalanche", "--methods", "x"], ["--methods", "'x'", "sal-adam"]),
        (["avalanche", "--set", "epochs"], ["--set", "'epochs'", "NAME=VALUE"]),
        (["avalanche", "--set", "epoch=3"], ["--set", "'epoch'", "epochs"]),
        (["avalanche", "--set", "epochs=x"], ["--set", "epochs=x", "a number"]),
        (["avalanche", "--set", "adam.strength=1"], ["--set", "adam", "'strength'", "none"]),
    ],
)
def test_what_is_wrong_is_named(
    given: list[str], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.external.avalanche.version", lambda checkout: "0")
    monkeypatch.setattr("benchmarks.external.avalanche.check", lambda data: None)
    with pytest.raises(UserError) as error:
        external.main([*given, "--data", "digits", "--out", str(tmp_path)])
    for part in said:
        assert part in str(error.value)


def test_a_key_is_of_what_decides_a_result() -> None:
    keys = {
        job.key()
        for job in (
            JOB,
            replace(JOB, seed=1),
            replace(JOB, split="validation"),
            replace(JOB, version="1"),
            replace(JOB, settings={"lr": 0.2}),
            replace(JOB, options={"strength": 1.0}),
            replace(JOB, method="sal-adam"),
            replace(JOB, harness="vandeven"),
        )
    }
    assert len(keys) == 8
    assert replace(JOB).key() == JOB.key()


def test_what_is_on_record_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def run(job: Job, place: Place) -> dict[str, Any]:
        if job.seed == 2 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(job.seed)
        return {"matrix": [[job.seed / 10]], "seconds": 1.0}

    monkeypatch.setattr(external_jobs, "in_a_process", run)
    place = Place(tmp_path, "digits", None, None)
    jobs = [replace(JOB, seed=seed) for seed in range(3)]
    with pytest.raises(KeyboardInterrupt):
        complete(jobs, place, 1, print)
    assert ran == [0, 1]
    ran.append(-1)
    found = complete(jobs, place, 1, print)
    assert ran == [0, 1, -1, 2]
    assert [result["matrix"] for result in found] == [[[0.0]], [[0.1]], [[0.2]]]


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    """The real child, on a job that its harness refuses."""
    job = replace(JOB, harness="plasticity", settings={"tasks": 1, "change": 1, "batch": 1})
    with pytest.raises(UserError, match=r"(?s)plasticity: adam on permuted with seed 0 .*tasks=1"):
        complete([job], Place(tmp_path, "digits", None, tmp_path), 1, print)
    assert not list(tmp_path.rglob("*.json"))


def test_strengths_are_chosen_on_validation_data_of_the_tuning_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Job] = []

    def run(job: Job, place: Place) -> dict[str, Any]:
        seen.append(job)
        return {"matrix": [[1 - abs(job.options["strength"] - 10) / 100]], "seconds": 1.0}

    monkeypatch.setattr(external_jobs, "in_a_process", run)
    place = Place(tmp_path, "digits", None, None)
    best = external._best(JOB, (1.0, 10.0, 100.0), place, 1, print)
    assert {(job.seed, job.split) for job in seen} == {(1000, "validation")}
    assert best == replace(JOB, options={"strength": 10.0})


def test_the_table_is_of_the_results() -> None:
    matrices = {"adam": [[1.0, 0.0], [0.5, 0.9]], "sal-adam": [[1.0, 0.0], [0.9, 0.9]]}
    rows = {name: [{"matrix": matrix, "seconds": 2.0}] * 2 for name, matrix in matrices.items()}
    lines = external.table("title", rows, "sal-adam").splitlines()
    assert lines[4].startswith("| adam | 70.0 ± 0.0 | 50.0 ± 0.0 | 95.0 ± 0.0 | -50.0 ± 0.0 |")
    assert "+20.0 [+20.0, +20.0]" in lines[4]
    stream = {"upgd": [{"final": [0.2, 0.4], "online": [0.5, 0.7], "seconds": 1.0}]}
    assert external.table("title", stream, None).splitlines()[4] == (
        "| upgd | 30.0 | 20.0 | 60.0 | 1 |"
    )


def test_rows_are_by_method_and_options() -> None:
    jobs = [JOB, replace(JOB, options={"strength": 10.0}), replace(JOB, seed=1)]
    assert [(name, len(found)) for name, found in grouped(jobs, [{}, {}, {}])] == [
        ("adam", 2), ("adam (strength=10)", 1),
    ]  # fmt: skip


def test_a_checkout_is_known_by_its_commit(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="--checkout"):
        require(None, "someone/some", ["main.py"])
    with pytest.raises(AbsentError, match=r"no main\.py"):
        require(tmp_path, "someone/some", ["main.py"])
    (tmp_path / "main.py").write_text("")
    assert require(tmp_path, "someone/some", ["main.py"]) == tmp_path
    assert commit(tmp_path) == "no git"
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b",
                  "commit", "-qm", "first"]):  # fmt: skip
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    found = commit(tmp_path)
    assert len(found) == 10
    (tmp_path / "main.py").write_text("changed")
    assert commit(tmp_path) == f"{found}, changed"
