"""The report: one page that needs no other file, from records alone."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.__main__ import main
from benchmarks.metrics.scores import learners
from benchmarks.reports import document
from benchmarks.reports.comparison import Comparison, equal_learning
from benchmarks.reports.figures_tradeoff import axes_of_grid, pareto
from benchmarks.runs.manifest import manifests
from benchmarks.runs.records import Store

TINY = ["--tasks", "3", "--steps", "40", "--batch", "16", "--hidden", "8", "--jobs", "1",
        "--seeds", "2", "--no-figures", "--stream", "split-domain", "--set",
        "consolidate_every=30"]  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert main(["continual", *TINY, "--methods", "adam", "ewc", "sal-adam",
                 "--out", str(folder)]) == 0  # fmt: skip
    main(["continual", *TINY, "--methods", "sal-adam", "--grid", "protection=0.1,1.0", "--grid",
          "lr=1e-3,1e-2", "--out", str(folder)])  # fmt: skip
    assert main(["report", "--out", str(folder)]) == 0
    return folder


def test_the_page_is_whole_and_needs_nothing_else(out: Path) -> None:
    text = (out / "report.html").read_text()
    for label in ("adam", "ewc", "sal-adam", "sal-adam protection=0.1 lr=0.01"):
        assert f"<td>{label}</td>" in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 9
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert 'href="http' not in text
    for source in sources:
        tree = ElementTree.fromstring(base64.b64decode(source.split(",", 1)[1]))
        assert tree.tag.endswith("svg")
    # What SAL holds back is there to be drawn.
    (manifest,) = manifests(out)
    result = Store(out / "records").read(manifest.rows["sal-adam"][0])
    assert result is not None
    assert min(result["spectrum"]["mean_gate"]) < 1
    assert max(result["suppressed"][-1].values()) > 0
    names = {path.name for path in (out / "figures" / "report").iterdir()}
    for name in ("tradeoff", "matrix", "curves", "zoom", "sensitivity", "spectrum", "suppressed",
                 "drift", "online"):  # fmt: skip
        assert {f"00-{name}.png", f"00-{name}.svg"} <= names


def test_the_page_begins_with_the_result(out: Path) -> None:
    text = (out / "report.html").read_text()
    front = text[text.index('<section id="front">') : text.index('<section id="s0">')]
    assert text.index('id="front"') < text.index('id="s0"') < text.index('id="words"')
    assert "De Lange" not in front
    shown = re.findall(r"<td>([a-z-]+)</td>\s*<td>(?:yes|no)</td>", front)
    left_out = re.findall(r"never learned: ([^.]*)\.", front)
    assert shown
    assert {*shown, *", ".join(left_out).split(", ")} - {""} == {"adam", "ewc", "sal-adam"}


def test_who_never_learned_is_not_in_front() -> None:
    def runs(accuracy: float) -> list[dict[str, object]]:
        return [{"matrix": [[accuracy, 0.5], [accuracy, accuracy]], "chance": 0.5}]

    found = learners({"good": runs(0.9), "fair": runs(0.75), "frozen": runs(0.6), "bad": runs(0.4)})
    assert found == ["good", "fair"]
    assert learners({"bad": runs(0.4)}) == []


def test_differences_are_paired_with_the_reference(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert main(["report", "--out", str(out), "--reference", "ewc", "--write", str(target)]) == 0
    text = target.read_text()
    assert "Difference to ewc" in text
    rows = re.findall(r"<td>(adam|ewc|sal-adam)</td><td>2</td><td[^>]*>[+-]\d+\.\d \[", text)
    assert rows == ["adam", "sal-adam"]


@pytest.mark.parametrize("least", [2, 5])
def test_the_tables_as_markdown(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(document, "LEAST_SEEDS", least)
    target = tmp_path / "tables.md"
    main(["report", "--out", str(out), "--write", str(tmp_path / "page.html"), "--markdown",
          str(target)])  # fmt: skip
    text = target.read_text()
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert table[0][-4:] == [
        "average accuracy, difference to sal-adam",
        "minimum, difference to sal-adam",
        "changes detected",
        "false alarms",
    ]
    assert [row[0] for row in table[2:5]] == ["adam", "ewc", "sal-adam"]
    for row in table[2:4]:
        assert re.search(r"[+-]\d+\.\d", row[7])
        assert bool(re.search(r"\[[+-]\d", row[7])) is (least == 2)
    assert [row[2] for row in table[2:5]] == ["2", "2", "2"]


def test_a_missing_record_is_said_and_its_row_left_out(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = next((out / "records").rglob("ewc-seed1-*.json"))
    text = victim.read_text()
    victim.write_text(text[:100])
    try:
        assert main(["report", "--out", str(out), "--write", str(tmp_path / "page.html")]) == 0
    finally:
        victim.write_text(text)
    printed = capsys.readouterr().err
    assert "corrupted" in printed
    assert "ewc lacks 1 of 2 runs" in printed
    page = (tmp_path / "page.html").read_text()
    assert "<td>ewc</td>" not in page
    assert "<td>adam</td>" in page


def test_a_method_that_is_gone_is_said_and_its_row_left_out(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = next((out / "suites").glob("*.json"))
    text = manifest.read_text()
    manifest.write_text(text.replace('"ewc"', '"a-method-of-old"'))
    try:
        assert main(["report", "--out", str(out), "--write", str(tmp_path / "page.html")]) == 0
    finally:
        manifest.write_text(text)
    assert "a-method-of-old is no method of this version" in capsys.readouterr().err
    assert "<td>adam</td>" in (tmp_path / "page.html").read_text()


def test_wrong_values_get_one_line(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "has no results" in capsys.readouterr().err
    assert main(["report", "--out", str(out), "--reference", "si"]) == 2
    assert "--reference: 'si' is unknown; allowed: adam, ewc" in capsys.readouterr().err


def test_pareto_front() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (1.5, 1.5), (3.0, 1.0), (3.0, 0.5)]
    assert pareto(points) == [0, 1, 3]
    assert pareto([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]


def test_grid_axes_and_equal_learning(out: Path) -> None:
    (manifest,) = manifests(out)
    axes = axes_of_grid(manifest.rows)
    assert set(axes) == {"protection", "lr"}
    assert len(axes["lr"]["sal-adam"]) == 4

    def fake(learned: float, drift: float) -> tuple[list[dict[str, object]], object]:
        spread = type("S", (), {"mean": learned})
        return [{"drift": [0.0, drift]}], type("Summary", (), {"scores": {"learned": spread}})

    rows = {"sal-adam": fake(0.90, 1.0), "adam": fake(0.80, 9.0), "adam lr=1": fake(0.905, 3.0),
            "ewc": fake(0.7, 0.1)}  # fmt: skip
    one = Comparison("t", {}, {k: v[0] for k, v in rows.items()},
                     {k: v[1] for k, v in rows.items()})  # type: ignore[misc] # fmt: skip
    assert equal_learning(one, "sal-adam") == [("sal-adam", 0.90, 1.0), ("adam lr=1", 0.905, 3.0)]
