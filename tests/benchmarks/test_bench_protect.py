"""`--protect`: rows of an optimizer alone and in a layer, of the benchmark's and of packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands.continual import arguments
from benchmarks.commands.options import assignments, check_common
from benchmarks.commands.protect import PLAIN, protected
from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS
from benchmarks.methods.bases import BASES
from benchmarks.methods.layered import Layered
from benchmarks.methods.packages import RATES, UNFIT, base, optimizer_names, version
from benchmarks.runs.networks import mlp
from benchmarks.runs.plan import settings_for
from benchmarks.runs.records import code_version, key
from benchmarks.runs.runner import run

ROOT = Path(__file__).resolve().parents[2]


def test_every_plain_base_gets_two_rows() -> None:
    assert {"adam", "sgd", "lion", "muon", "adafactor"} <= set(PLAIN) <= set(BASES)
    assert protected(["adam,sgd", "adam"]) == ["adam", "adam-layer", "sgd", "sgd-layer"]
    for name in protected(PLAIN):
        assert isinstance(METHODS[name].build(mlp(3, (4,), 2, seed=0), 0.1, {}), METHODS[name].kind)


def test_the_layer_starts_as_the_optimizer_and_then_holds(digits: Dataset, settings: Any) -> None:
    shape: dict[str, Any] = {"steps": 200, "batch": 64, "hidden": (100, 100)}
    plain = run(settings(method="adam", **shape), digits)
    layered = run(settings(method="adam-layer", **shape), digits)
    assert layered["consolidations"]
    assert layered["matrix"][0][0] == pytest.approx(plain["matrix"][0][0], abs=0.05)
    assert layered["matrix"][1][0] > plain["matrix"][1][0], "and forgotten less"
    # Two moments; and the layer's importance, what is pending of it, and the anchor.
    assert plain["bytes_per_parameter"] == pytest.approx(8, abs=0.1)
    diagonal = run(
        settings(method="adam-layer", options={"importance": "diagonal"}, **shape), digits
    )
    assert diagonal["bytes_per_parameter"] == pytest.approx(20, abs=0.1)
    assert layered["suppressed"][-1]["0.weight"] > 0
    assert layered["diagnostics"]["consolidations"] >= 1


def test_both_rows_have_one_learning_rate(digits: Dataset, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.json"
    tuned.write_text('{"options": {"digits": {"permuted": {"adam": {"lr": 0.5}}}}}')
    args = arguments().parse_args(["--tuned", str(tuned)])
    check_common(args)
    for method in ("adam", "adam-layer"):
        made = settings_for(METHODS[method], "permuted", 0, digits, args, options={})
        assert (made.lr, made.options) == (0.5, {})


def test_options_of_the_layer() -> None:
    row = METHODS["lion-layer"]
    assert {"protection", "pull", "importance", "rank"} <= set(row.allowed())
    assert not {"granularity", "unit_update"} & set(row.allowed()), "deprecated"
    method = row.build(mlp(3, (4,), 2, seed=0), 0.1, {"protection": 0.7})
    assert isinstance(method, Layered)
    assert method.layer._settings["protection"] == 0.7
    assert assignments(["lion-layer.pull=2"], ["lion-layer"]) == [("lion-layer", "pull", 2)]
    with pytest.raises(UserError, match=r"--set.*'lion-layer'"):
        assignments(["lion-layer.pull=2"])


def test_the_code_that_a_layer_depends_on(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, layered = settings(method="adam"), settings(method="adam-layer")
    before = code_version(alone), code_version(layered)
    monkeypatch.setattr("benchmarks.runs.records.package_sources", lambda: [Path(__file__)])
    assert code_version(alone) == before[0]
    assert code_version(layered) != before[1]


def test_an_optimizer_of_a_package_by_its_name(settings: Any, digits: Dataset) -> None:
    assert protected(["torch.optim.Rprop"]) == ["torch.optim.Rprop", "torch.optim.Rprop-layer"]
    made = base("torch.optim.Rprop")
    assert made.lr == 0.01, "the class's default"
    assert isinstance(made.make([torch.nn.Parameter(torch.ones(2))], 0.5), torch.optim.Rprop)
    chosen = settings(method="torch.optim.Rprop-layer", lr=made.lr)
    assert run(chosen, digits)["bytes_per_parameter"] > 12
    first = key(chosen)
    version.cache_clear()
    assert key(chosen) == first
    assert torch.__version__ in version("torch.optim.Rprop")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["adamm"], ["'adamm' is unknown", "adam, sgd", "MODULE.CLASS"]),
        (["ewc"], ["'ewc' is unknown"]),
        (["sal-adam"], ["'sal-adam' is unknown"]),
        (["adam-layer"], ["'adam-layer' is unknown"]),
        ([","], ["no name given", "adam, sgd"]),
        (["nosuch.Yogi"], ["'nosuch.Yogi' cannot be used", "No module named 'nosuch'"]),
        (["torch.optim.Adaam"], ["'torch.optim.Adaam'", "no attribute 'Adaam'"]),
        (["torch.nn.Linear"], ["'torch.nn.Linear'", "no torch.optim.Optimizer"]),
        (["torch.optim.LBFGS"], ["'torch.optim.LBFGS'", "closure"]),
        (["sal_optim.SALAdam"], ["'sal_optim.SALAdam'", "protected already"]),
    ],
)
def test_a_wrong_name_gets_one_line(given: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        protected(given)
    message = str(caught.value)
    assert message.startswith("--protect: ")
    assert "\n" not in message
    for part in ("allowed: ", *parts):
        assert part in message


def test_all_needs_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--protect: 'all' needs torch_optimizer.*pip install"):
        protected(["all"])


def test_all_of_torch_optimizer() -> None:
    pytest.importorskip("torch_optimizer", reason="torch-optimizer is not installed")
    names = protected(["all"])
    assert names[::2] == optimizer_names("torch_optimizer")
    assert len(names) == 2 * 29
    assert set(RATES) <= set(names)
    assert not set(UNFIT) & set(names)
    assert base("torch_optimizer.Yogi").lr == 0.01


def test_lion_of_pytorch_optimizer() -> None:
    pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")
    _, layered = protected(["pytorch_optimizer.Lion"])
    assert METHODS[layered].fixed == {"unit_update": True}


def test_from_end_to_end(tmp_path: Path) -> None:
    tiny = ["--tasks", "2", "--steps", "6", "--hidden", "8", "--jobs", "1", "--seeds", "1"]
    command = [sys.executable, "-m", "benchmarks", "continual", *tiny, "--stream", "permuted"]
    command += ["--protect", "adam", "torch.optim.Rprop", "--out", str(tmp_path)]
    command += ["--set", "protection=0.5"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "4 runs: 0 on record, 4 to compute" in done.stderr, "and no default methods"
    table = (tmp_path / "continual-digits.md").read_text()
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[2:] == [
        "| adam",
        "| adam-layer",
        "| torch.optim.Rprop",
        "| torch.optim.Rprop-layer",
    ]
    beside = (tmp_path / "tables" / "digits-permuted-protected.md").read_text().splitlines()
    assert "average accuracy, alone | average accuracy, layer | minimum, alone" in beside[2]
    assert [line.split(" | ")[0] for line in beside[4:]] == ["| adam", "| torch.optim.Rprop"]
    assert all(line.endswith(" of 1 |") for line in beside[4:])
    assert (tmp_path / "figures" / "digits-permuted-matrix.png").is_file()
