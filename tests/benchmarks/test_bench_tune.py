"""Tuning: the same trials for every method, on tuning seeds, resumable, and read by continual."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.commands import continual, tune
from benchmarks.commands.options import check_common
from benchmarks.data.sets import load
from benchmarks.methods import METHODS
from benchmarks.methods.bases import BASES
from benchmarks.runs.manifest import manifests
from benchmarks.runs.plan import settings_for
from benchmarks.runs.settings import TUNED, tuned
from benchmarks.runs.spaces import OPTIONS, space
from benchmarks.runs.studies import Study
from sal_optim import SALAdam

TINY = ["--tasks", "2", "--steps", "6", "--batch", "16", "--hidden", "8", "--jobs", "1"]


def command(out: Path, *more: str) -> int:
    return main(["tune", *TINY, "--seeds", "1", "--trials", "3", "--methods", "si", "sgd", "--out",
                 str(out), "--write", str(out / "tuned.json"), *more])  # fmt: skip


def study(out: Path, plain: Any, **changes: Any) -> Study:
    settings = {"sampler": "tpe", "trials": 3, "seeds": 1, "objective": "average", **changes}
    return Study(out / "journal.log", plain, space(METHODS["si"]), **settings)


def test_tune_writes_what_continual_reads(tmp_path: Path) -> None:
    assert command(tmp_path) == 0
    written = json.loads((tmp_path / "tuned.json").read_text())
    chosen = written["options"]["digits"]["permuted"]
    assert set(chosen["si"]) == {"lr", "strength"}
    assert set(chosen["sgd"]) == {"lr"}
    assert "--steps 6" in written["made_by"][0]
    assert "--trials 3" in written["made_by"][0]
    # Three trials a method, none on a seed or data that is reported.
    files = list((tmp_path / "records").rglob("*.json"))
    assert len(files) == 6
    for file in files:
        made = json.loads(file.read_text())["settings"]
        assert (made["seed"], made["split"]) == (1000, "validation")
    assert main(["continual", *TINY, "--seeds", "1", "--stream", "permuted", "--methods", "si",
                 "--also-default", "--tuned", str(tmp_path / "tuned.json"), "--no-figures",
                 "--out", str(tmp_path / "report")]) == 0  # fmt: skip
    (manifest,) = manifests(tmp_path / "report")
    best, default = manifest.rows["si"][0], manifest.rows["si (default)"][0]
    assert {"lr": best.lr, **best.options} == pytest.approx(chosen["si"])
    assert (default.lr, default.options) == (1e-3, {})


def test_a_control_that_was_tuned_by_itself_has_its_own_rate(tmp_path: Path) -> None:
    """Else it has that of what it is a control of; a layer that of its optimizer."""
    file, found = tmp_path / "tuned.json", {"sal-adam": {"lr": 0.02}, "adam": {"lr": 0.03}}
    methods = ["sal-adam-random", "sal-adam-told", "adam-layer"]
    for own, rates in ((False, [0.02, 0.02, 0.03]), (True, [0.07, 0.02, 0.03])):
        more = {"sal-adam-random": {"lr": 0.07}} if own else {}
        file.write_text(json.dumps({"options": {"digits": {"permuted": {**found, **more}}}}))
        args = continual.arguments().parse_args([*TINY, "--tuned", str(file)])
        check_common(args)
        tuned.cache_clear()
        data = load("digits")
        chosen = [settings_for(METHODS[name], "permuted", 0, data, args, options={})
                  for name in methods]  # fmt: skip
        assert [one.lr for one in chosen] == rates


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--lr", "0.1"], "--lr: 0.1"), (["--tuned", "none"], "--tuned: 'none'")],
)
def test_what_tune_chooses_itself_is_refused(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It was passed over without a word."""
    assert command(tmp_path, *more) == 2
    assert said in capsys.readouterr().err
    assert command(tmp_path, "--preset", "vandeven-permuted", "--data", "digits") == 0


def test_a_second_command_makes_no_new_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path)
    first = (tmp_path / "tuned.json").read_text()
    monkeypatch.setattr(tune, "complete", lambda *_, **__: pytest.fail("a trial was made"))
    assert command(tmp_path) == 0
    assert (tmp_path / "tuned.json").read_text() == first


def test_the_first_trial_is_the_default_and_best_is_the_best(tmp_path: Path, settings: Any) -> None:
    ours = study(tmp_path, settings(method="si"))
    asked = [ours.ask() for _ in range(3)]
    assert asked[0][1] == pytest.approx({"lr": 1e-3, "strength": 1.0})
    for (number, _), value in zip(asked, (0.5, 0.7, 0.7), strict=True):
        ours.tell(number, value)
    assert ours.left == 0
    assert ours.best.params == pytest.approx(asked[1][1])
    assert ours.first.params == pytest.approx(asked[0][1])
    # Another number of seeds, or another objective, is another study.
    assert study(tmp_path, settings(method="si"), seeds=2).left == 3
    assert study(tmp_path, settings(method="si"), objective="worst").left == 3
    assert study(tmp_path, settings(method="si", steps=11)).left == 3
    assert study(tmp_path, settings(method="si", seed=5, lr=0.3)).left == 0


def test_a_trial_that_was_killed_is_made_again(tmp_path: Path, settings: Any) -> None:
    ours = study(tmp_path, settings(method="si"))
    number, _ = ours.ask()
    ours.tell(number, 0.5)
    _, under_way = ours.ask()
    again = study(tmp_path, settings(method="si"))
    assert again.left == 2
    assert again.ask()[1] == pytest.approx(under_way)


def test_a_journal_whose_last_line_was_cut_goes_on(tmp_path: Path, settings: Any) -> None:
    ours = study(tmp_path, settings(method="si"))
    ours.tell(ours.ask()[0], 0.5)
    journal = tmp_path / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    for left in (2, 1):
        again = study(tmp_path, settings(method="si"))
        assert again.left == left
        again.tell(again.ask()[0], 0.5)


def test_the_default_is_found_though_its_trial_was_killed(tmp_path: Path, settings: Any) -> None:
    study(tmp_path, settings(method="si")).ask()
    ours = study(tmp_path, settings(method="si"))
    for value in (0.5, 0.7, 0.6):
        number, _ = ours.ask()
        ours.tell(number, value)
    assert ours.first.params == pytest.approx({"lr": 1e-3, "strength": 1.0})
    assert ours.first.value == 0.5


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_samplers_stay_in_range(tmp_path: Path, settings: Any, sampler: str) -> None:
    row = METHODS["streaming-ewc"]
    ours = Study(tmp_path / "journal.log", settings(method=row.name), space(row), sampler=sampler,
                 trials=6, seeds=1, objective="average")  # fmt: skip
    seen = []
    for _ in range(6):
        number, values = ours.ask()
        seen.append(tuple(values.values()))
        for name, span in space(row).items():
            assert span.low <= values[name] <= span.high
        assert isinstance(values["every"], int)
        ours.tell(number, 0.5)
    assert len(set(seen)) == 6


def test_every_method_has_a_space_of_options_that_it_takes() -> None:
    assert set(OPTIONS) <= set(METHODS)
    for row in METHODS.values():
        ranges = space(row)
        assert set(ranges) - {"lr"} <= set(row.allowed())
        assert ranges["lr"].start == BASES[row.base].lr
        assert all(span.low <= span.start <= span.high for span in ranges.values())


def test_a_best_value_at_an_edge_is_said(tmp_path: Path, settings: Any) -> None:
    for strength, said in ((30.0, []), (9e4, ["strength 9e+04"]), (0.11, ["strength 0.11"])):
        ours = Study(tmp_path / f"{strength}.log", settings(method="si"), space(METHODS["si"]),
                     sampler="tpe", trials=2, seeds=1, objective="average",
                     known={"strength": strength})  # fmt: skip
        for value in (0.5, 0.7):
            ours.tell(ours.ask()[0], value)
        lines = tune.at_edges([ours])
        assert len(lines) == len(said)
        for line, part in zip(lines, said, strict=True):
            assert line == f"permuted, si: {part} is at the edge of 0.1 to 100000"


@pytest.mark.parametrize("name", ["sal-adam", "ewc", "si", "mas", "lwf", "l2"])
def test_tuning_starts_from_the_defaults_of_a_method(name: str) -> None:
    """Its first trial is said to be the default: what `continual` runs untuned."""
    row = METHODS[name]
    owner: Any = SALAdam if row.uses_sal else row.kind
    taken = inspect.signature(owner).parameters
    for option, span in space(row).items():
        if option != "lr":
            assert span.start == taken[option].default, option


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--sampler", "grid"], ["--sampler", "'grid'", "tpe, qmc, random"]),
        (["--objective", "loss"], ["--objective", "'loss'", "average, worst"]),
        (["--trials", "0"], ["--trials", "0", ">= 1"]),
    ],
)
def test_a_wrong_value_gets_one_line(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command(tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(part in line for part in parts)


def test_a_file_of_tuned_settings_is_found_at_its_old_place() -> None:
    """Commands that are written down name benchmarks/tuned_all.json."""
    with pytest.warns(FutureWarning, match="tuned_all.json has moved to benchmarks"):
        found = continual.arguments().parse_args(["--tuned", "benchmarks/tuned_all.json"])
    assert check_common(found) is None
    assert Path(found.tuned) == TUNED.with_name("tuned_all.json")
    with pytest.warns(FutureWarning, match="has moved"):
        assert tune.arguments().parse_args(["--write", "benchmarks/tuned.json"]).write == TUNED
    kept = continual.arguments().parse_args(["--tuned", "results/tuned.json"])
    assert kept.tuned == "results/tuned.json"
