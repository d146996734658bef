"""The command line: tiny runs from end to end, and one clear line for every wrong value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.commands.continual import DEFAULT_STREAMS, arguments
from benchmarks.commands.options import assignments, check_common, method_names
from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.methods import GROUPS, METHODS
from benchmarks.runs.manifest import manifests
from benchmarks.runs.networks import build
from benchmarks.runs.plan import settings_for
from benchmarks.runs.presets import PRESETS
from benchmarks.runs.records import Store
from benchmarks.runs.runner import run
from benchmarks.runs.settings import Settings
from benchmarks.runs.variants import variants
from benchmarks.streams import STREAMS

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--tasks", "2", "--steps", "6", "--batch", "16", "--hidden", "8", "--jobs", "1"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_from_end_to_end_and_again_from_the_records(tmp_path: Path) -> None:
    command = ["continual", *TINY, "--seeds", "2", "--methods", "adam", "ewc", "--out",
               str(tmp_path), "--stream", "permuted", "--stream", "split-task"]  # fmt: skip
    first = bench(*command)
    assert first.returncode == 0, first.stderr
    assert "8 to compute" in first.stderr
    assert "Traceback" not in first.stderr
    assert "minimum" in first.stdout
    assert "ewc" in first.stdout
    report = (tmp_path / "continual-digits.md").read_text()
    assert "| method | boundaries | average accuracy |" in report
    assert "±" in report
    summaries = json.loads((tmp_path / "continual-digits.json").read_text())
    assert set(summaries["split-task"]) == {"adam", "ewc"}
    assert summaries["permuted"]["ewc"]["scores"]["gap"]["count"] == 2
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"digits-permuted-matrix.png", "digits-split-task-curves.png"} <= figures
    assert len(list((tmp_path / "records").rglob("*.json"))) == 8
    second = bench(*command)
    assert second.returncode == 0
    assert "8 on record, 0 to compute" in second.stderr
    assert second.stdout == first.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--stream", "permutted"], ["--stream", "'permutted'", "permuted, rotated"]),
        (["--methods", "adamm"], ["--methods", "'adamm'", "adam, sgd"]),
        (["--data", "nmist"], ["--data", "'nmist'", "digits, mnist"]),
        (["--tasks", "0"], ["--tasks", "0", ">= 1"]),
        (["--tasks", "7", "--stream", "split-task"], ["--tasks", "7", "1 to 5"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--seeds", "-1"], ["--seeds", "-1", ">= 1"]),
        (["--lr", "0"], ["--lr", "0", "> 0"]),
        (["--lr", "nan"], ["--lr", "nan", "> 0"]),
        (["--protection", "-1"], ["--protection", "-1", ">= 0"]),
        (["--protection", "1", "--methods", "adam"], ["--protection", "adam has no option"]),
        (["--hidden", "10-x"], ["--hidden", "'10-x'", "256-256"]),
        (["--set", "ewc.strenth=1"], ["--set", "'strenth'", "strength"]),
        (["--set", "strength"], ["--set", "'strength'", "NAME=VALUE"]),
        (["--set", "colour=3", "--methods", "ewc"], ["--set", "'colour'", "strength"]),
        (["--order", "random"], ["--order", "'random'", "natural", "shuffled"]),
        (["--data-dir", "/no/such/folder"], ["--data-dir", "/no/such/folder", "folder"]),
        (["--colour"], ["--colour"]),
        (["--net", "cnn"], ["--net", "'cnn'", "mlp, conv"]),
        (["--preset", "vandeven"], ["--preset", "'vandeven'", "vandeven-permuted"]),
        (["--grid", "protection"], ["--grid", "'protection'", "NAME=VALUE"]),
        (["--grid", "strenth=1,2"], ["--grid", "'strenth'", "lr, and adam"]),
        (["--grid", "mass.lr=1,2"], ["--grid", "'mass'", "adam, sgd"]),
        (["--tuned", "/no/such.json"], ["--tuned", "/no/such.json", "none, or a file"]),
    ],
)
def test_a_wrong_value_gets_one_line(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    try:
        status = main(["continual", "--out", str(tmp_path), *TINY, *arguments])
    except SystemExit as stopped:  # argparse's own checks
        status = int(stopped.code or 0)
    printed = capsys.readouterr().err.strip()
    assert status == 2
    errors = [line for line in printed.splitlines() if not line.startswith("skipped")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in errors[0]


def test_out_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["continual", "--out", str(tmp_path / "taken")]) == 2
    assert "--out" in capsys.readouterr().err


def test_unknown_and_missing_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["continuall"]) == 2
    assert "'continuall'" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "continual" in capsys.readouterr().out


def test_help_shows_examples_and_list_names_everything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["continual", "--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out
    assert main(["continual", "--list"]) == 0
    listed = capsys.readouterr().out
    for name in ("digits", "fashion-mnist", *STREAMS, *METHODS, *PRESETS):
        assert f"  {name} " in listed


def test_a_grid_and_defaults_are_rows_and_a_manifest_names_their_runs(tmp_path: Path) -> None:
    status = main(["continual", *TINY, "--seeds", "2", "--stream", "permuted", "--methods", "ewc",
                   "--grid", "strength=1,1000", "--grid", "lr=1e-3", "--also-default",
                   "--no-figures", "--out", str(tmp_path)])  # fmt: skip
    assert status == 0
    (manifest,) = manifests(tmp_path)
    assert list(manifest.rows) == [
        "ewc strength=1 lr=0.001",
        "ewc strength=1000 lr=0.001",
        "ewc (default)",
    ]
    assert [s.options.get("strength") for s in [r[0] for r in manifest.rows.values()]] == [
        1,
        1000,
        None,
    ]
    assert [s.seed for s in manifest.rows["ewc (default)"]] == [0, 1]
    store = Store(tmp_path / "records")
    for settings in manifest.rows["ewc strength=1000 lr=0.001"]:
        assert store.read(settings) is not None
    # Another command adds its rows.
    main(["continual", *TINY, "--seeds", "2", "--stream", "permuted", "--methods", "adam",
          "--no-figures", "--out", str(tmp_path)])  # fmt: skip
    (manifest,) = manifests(tmp_path)
    assert len(manifest.rows) == 4


def test_methods_take_groups(tmp_path: Path) -> None:
    status = main(["continual", *TINY, "--seeds", "1", "--stream", "split-task", "--no-figures",
                   "--methods", "controls", "adam", "--out", str(tmp_path)])  # fmt: skip
    assert status == 0
    (manifest,) = manifests(tmp_path)
    kinds = ("random", "shuffled", "uniform", "matched")
    controls = [f"sal-{base}-{kind}" for base in ("adam", "sgd") for kind in kinds]
    assert list(manifest.rows) == [*controls, "adam"]


def test_old_names_go_on_working() -> None:
    with pytest.warns(FutureWarning, match="sal-adam-kronecker is now sal-adam"):
        assert method_names(["sal-adam-kronecker,adam"]) == ["sal-adam", "adam"]
    with pytest.warns(FutureWarning, match="importance=diagonal"):
        found = assignments(["sal-adam.granularity=element"])
    assert found == [("sal-adam", "importance", "diagonal")]
    with pytest.warns(FutureWarning, match="importance=factored"):
        (row,) = variants(["sal-sgd"], {"sal-sgd": {}}, ["granularity=factored"], False)
    assert row.options == {"importance": "factored"}


def test_clip_and_dropout_are_of_the_settings_where_they_are_given(digits: Dataset) -> None:
    def made(*given: str) -> Settings:
        args = arguments().parse_args([*given])
        check_common(args)
        return settings_for(METHODS["adam"], "permuted", 0, digits, args, options={})

    assert not {"clip", "dropout"} & made().plain().keys()
    found = made("--clip", "1", "--dropout", "0.5", "--batch", "4")
    assert (found.clip, found.dropout, found.batch) == (1.0, 0.5, 4)
    assert Settings.from_plain(found.plain()) == found
    assert found.shape() == "5 tasks x 200 steps of 4, clip 1, dropout 0.5"
    assert Settings.from_plain(made().plain()) == made()
    for wrong in (["--clip", "0"], ["--dropout", "1"]):
        with pytest.raises(UserError, match=wrong[0]):
            made(*wrong)


@pytest.mark.parametrize("method", ["adam", "ewc", "sal-adam", "sal-adam-matched"])
def test_runs_are_clipped_and_have_dropout(method: str, settings: Any, digits: Dataset) -> None:
    shape = {"method": method, "steps": 20, "hidden": (20,), "lr": 0.01}
    plain = run(settings(**shape), digits)
    clipped = run(settings(**shape, clip=0.01), digits)
    dropped = run(settings(**shape, dropout=0.5), digits)
    assert clipped["matrix"] != plain["matrix"] != dropped["matrix"]
    assert run(settings(**shape, dropout=0.5), digits)["matrix"] == dropped["matrix"]
    if method == "sal-adam":
        assert all(value is None or value < 1.1 for value in clipped["trace"]["surprise"])


def test_dropout_is_in_training_alone() -> None:
    model = build("mlp", 4, (50, 50), 3, seed=0, dropout=0.5)
    plain, x = build("mlp", 4, (50, 50), 3, seed=0), torch.rand(5, 4)
    assert [type(layer).__name__ for layer in model].count("Dropout") == 2
    assert not torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain(x))


def test_make_bench_keeps_its_methods_and_streams() -> None:
    assert [row.name for row in GROUPS["quick"]] == [
        "adam", "sgd", "ewc", "si", "kfac-ewc", "published-sal-adam", "sal-adam", "sal-sgd",
        "sal-lion",
    ]  # fmt: skip
    assert DEFAULT_STREAMS == ("permuted", "split-domain", "split-task")


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_fill_in_what_is_left_open(name: str, digits: Dataset) -> None:
    preset = PRESETS[name]
    args = arguments().parse_args(["--preset", name, "--data", "digits", "--seeds", "3"])
    check_common(args)
    assert (args.data, args.seeds) == ("digits", 3)
    assert args.stream == preset.arguments["stream"]
    for stream in args.stream:
        for method in args.methods:
            made = settings_for(METHODS[method], stream, 0, digits, args, options={})
            assert made.batch == preset.arguments["batch"]
            assert "-".join(map(str, made.hidden)) == preset.arguments["hidden"]
            if preset.epochs:
                assert made.steps == round(preset.epochs * 1437 / made.batch)
            unknown = set(made.options) - set(METHODS[method].allowed())
            assert not unknown
    assert {m for table in preset.by_method.values() for m in table} <= set(METHODS)


def test_a_preset_has_the_published_strengths(digits: Dataset) -> None:
    args = arguments().parse_args(["--preset", "vandeven-split"])
    check_common(args)
    args.data = "digits"
    made = settings_for(METHODS["ewc"], "split-domain", 0, digits, args, options={})
    assert (made.options["strength"], made.lr, made.order) == (1e10, 1e-3, "natural")
    asked = settings_for(METHODS["si"], "split-task", 0, digits, args, options={"strength": 3.0})
    assert asked.options["strength"] == 3.0
