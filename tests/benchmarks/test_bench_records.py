"""Records: found again, trusted only when whole, and recomputed when what decides them changes."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import sal_optim
from benchmarks.data.sets import Dataset
from benchmarks.methods import METHODS
from benchmarks.runs import records, suite
from benchmarks.runs.records import Store, code_version, key, run_sources
from benchmarks.runs.runner import run

RESULT = {"matrix": [[0.5]], "consolidations": []}


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> Store:
    return Store(tmp_path, warnings.append)


def test_a_record_is_read_back(store: Store, settings: Any) -> None:
    assert store.read(settings()) is None
    path = store.write(settings(), RESULT)
    assert store.read(settings()) == RESULT
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"lr": 0.1}, {"options": {"protection": 2.0}}, {"split": "validation"},
     {"hidden": (9,)}, {"fingerprint": "other"}],
)  # fmt: skip
def test_other_settings_are_another_record(
    store: Store, settings: Any, change: dict[str, Any]
) -> None:
    store.write(settings(), RESULT)
    assert store.read(settings(**change)) is None


@pytest.mark.parametrize("damage", ["torn", "empty", "binary", "changed", "list"])
def test_a_damaged_record_is_reported_and_not_used(
    store: Store, settings: Any, warnings: list[str], damage: str
) -> None:
    path = store.write(settings(), RESULT)
    text = path.read_text()
    path.write_bytes(
        {
            "torn": text[: len(text) // 2].encode(),
            "empty": b"",
            "binary": b"\xff\xfe\x00",
            "changed": text.replace("0.5", "0.9").encode(),
            "list": json.dumps([1]).encode(),
        }[damage]
    )
    assert store.read(settings()) is None
    assert len(warnings) == 1
    assert path.name in warnings[0]
    assert "anew" in warnings[0]


def test_a_failed_write_leaves_nothing_behind(
    store: Store, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    path = store.write(settings(), RESULT)
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write(settings(), {"matrix": [[0.1]], "consolidations": []})
    assert store.read(settings()) == RESULT
    assert list(path.parent.iterdir()) == [path]


def test_code_counts_and_comments_do_not(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(text: str) -> str:
        file = tmp_path / "module.py"
        file.write_text(text)
        records.source_hash.cache_clear()
        return records.source_hash(file)

    plain = version("def f():\n    return 1\n")
    assert version('"""Doc."""\n# why\ndef f():\n    """Doc."""\n    return 1\n') == plain
    assert version("def f():\n    return 2\n") != plain
    package = tmp_path / "sal.py"
    package.write_text("x = 1\n")
    monkeypatch.setattr(records, "package_sources", lambda: [package])
    before = {name: code_version(settings(method=name)) for name in ("adam", "ewc", "sal-adam")}
    package.write_text("x = 2\n")
    records.source_hash.cache_clear()
    after = {name: code_version(settings(method=name)) for name in before}
    assert [name for name in before if before[name] != after[name]] == ["sal-adam"]
    assert len(set(after.values())) == 3
    assert len(key(settings())) == 64


def test_a_second_run_computes_nothing_and_a_damaged_record_only_itself(
    tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = [settings(seed=seed) for seed in (0, 1)]
    console = Console(file=open(tmp_path / "log", "w"))  # noqa: SIM115
    computed: list[int] = []

    def counted(settings: Any, data: Dataset) -> Any:
        computed.append(settings.seed)
        return run(settings, data)

    monkeypatch.setattr(suite, "run", counted)

    def complete() -> list[dict[str, Any]]:
        return suite.complete(plan, tmp_path / "records", data_dir=None, jobs=1, console=console)

    first = complete()
    assert sorted(computed) == [0, 1]
    assert complete() == first
    assert len(computed) == 2
    Store(tmp_path / "records").path(plan[1]).write_text("{")
    again = complete()
    assert computed[2:] == [1]
    assert again[1]["matrix"] == first[1]["matrix"]


def test_a_run_is_the_same_every_time(settings: Any, digits: Dataset) -> None:
    one, two = run(settings(method="si"), digits), run(settings(method="si"), digits)
    assert one["matrix"] == two["matrix"]
    assert one["curves"] == two["curves"]
    assert len(one["matrix"]) == 2
    # Every fifth step, and closely after the switch at 10.
    assert one["curve_steps"] == [0, 5, 10, 11, 12, 13, 15, 18, 20]
    assert len(one["curves"]) == len(one["drift"]) == len(one["curve_steps"])


def test_methods_of_one_seed_start_alike(settings: Any, digits: Dataset) -> None:
    first = [run(settings(method=m), digits)["curves"][0] for m in ("adam", "sgd", "ewc")]
    assert first[0] == first[1] == first[2]


def test_told_methods_equal_their_base_until_the_first_boundary(
    settings: Any, digits: Dataset
) -> None:
    curves = {m: run(settings(method=m), digits)["curves"] for m in ("adam", "ewc", "si")}
    assert curves["ewc"][:3] == curves["si"][:3] == curves["adam"][:3]


def test_a_record_depends_on_what_its_method_imports(settings: Any) -> None:
    def files(method: str) -> set[str]:
        return {path.name for path in run_sources(METHODS[method], "permuted")}

    assert {"ewc.py", "quadratic.py", "per_example.py"} <= files("streaming-ewc")
    assert "per_example.py" not in files("si")
    assert {"upgd.py", "simple.py"} <= files("upgd")
    assert {"controls.py", "sal.py"} <= files("sal-adam-uniform")
    versions = {code_version(settings(method=name)) for name in ("mas", "ewc", "upgd", "adam")}
    assert len(versions) == 4


def test_every_record_depends_on_the_run_and_on_no_other_method() -> None:
    """What trains, looks and loads counts; what lists, shows and asks does not."""
    decides = {"runner.py", "probe.py", "networks.py", "readers.py", "base.py", "permuted.py"}
    shows = {"tables.py", "figures.py", "report.py", "options.py", "continual.py", "records.py"}
    own = {
        "adam": {"plain.py"},
        "adamw": {"of_torch.py"},
        "ewc": {"ewc.py", "quadratic.py"},
        "si": {"si.py"},
    }
    others = {"ewc.py", "quadratic.py", "si.py", "kfac.py", "lwf.py", "sal.py", "upgd.py"}
    for method, files in own.items():
        names = {path.name for path in run_sources(METHODS[method], "permuted")}
        assert decides | files <= names
        assert not names & (shows | {"__init__.py", "rotated.py", "split.py"})
        assert not names & (others - files)


def test_what_a_row_fixes_decides_its_record(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_version(settings(method="sal-adam-diagonal"))
    row = METHODS["sal-adam-diagonal"]
    monkeypatch.setitem(METHODS, row.name, replace(row, fixed={**row.fixed, "pull": 7.0}))
    assert code_version(settings(method=row.name)) != before


def test_controls_depend_on_sal_optim(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("adam", "sal-adam-matched", "sal-adam-shuffled")
    before = [code_version(settings(method=name)) for name in names]
    package = tmp_path / "sal.py"
    package.write_text("x = 1\n")
    monkeypatch.setattr(records, "package_sources", lambda: [package])
    after = [code_version(settings(method=name)) for name in names]
    assert [a != b for a, b in zip(before, after, strict=True)] == [False, True, True]


def test_what_of_the_package_decides_a_result() -> None:
    """What an optimizer is made of, C++ included, and not what shows it."""
    root = Path(sal_optim.__file__).parent
    found = {path.relative_to(root) for path in records.package_sources()}
    kinds = (sal_optim.SALAdam, sal_optim.SALSGD, sal_optim.SALLion, sal_optim.CommunicationLayer)
    for kind in kinds:
        assert Path(inspect.getfile(kind)).relative_to(root) in found
    assert {path.relative_to(root) for path in root.rglob("*.cpp")} <= found
    shown = {"plot.py", "live_view.py", "report.py", "writers.py", "run.py"}
    assert not {path.name for path in found} & shown
    assert not {path.suffix for path in found} & {".pyc", ".typed", ".md"}
