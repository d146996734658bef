"""``sal_optim.plot``: pictures show what the writers wrote, and what is refused is told clearly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sal_optim
from sal_optim import CommunicationLayer, SALAdam, plot
from sal_optim.monitoring.report import rows
from sal_optim.monitoring.writers import CSVWriter, Recorder
from tests.monitoring.test_report import network, trained
from tests.testing.drive import drive, profile, stream


def run(path: Path | None = None, layered: bool = False) -> list[dict[str, float]]:
    """The rows of a run that meets a change of regime at step 60."""
    model = network()
    params = list(model.parameters())
    if layered:
        optimizer: Any = torch.optim.Adam(params, lr=0.01)
        CommunicationLayer(optimizer)
    else:
        optimizer = SALAdam(params, lr=0.01)
    recorder = Recorder(optimizer)
    if path is not None:
        CSVWriter(optimizer, path)
    drive(optimizer, params, stream(params, profile(80, (60,))))
    return recorder.rows


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines}


@pytest.mark.parametrize("layered", [False, True])
def test_history_shows_what_was_written(tmp_path: Path, layered: bool) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "run.csv"
    written = run(path, layered)
    for source in (written, path, str(path), iter(written)):
        figure = plot.history(source)
        top, middle, bottom = figure.axes
        shown = {**lines(top), "mean_gate": lines(middle)["mean gate"], **lines(bottom)}
        for name in ("surprise", "threshold", "mean_gate", "drift"):
            assert list(shown[name].get_xdata()) == [float(step) for step in range(1, 81)]
            assert list(shown[name].get_ydata()) == [row[name] for row in written], name
        assert [area.get_label() for area in middle.collections] == list(plot.SPECTRUM)
        (found,) = [row["step"] for row in written if row["consolidations"] == 1.0][:1]
        assert list(lines(top)["consolidation"].get_xdata()) == [found]
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_history_without_a_consolidation() -> None:
    pytest.importorskip("matplotlib")
    assert "consolidation" not in lines(plot.history(run()[:20]).axes[0])


def test_history_of_a_resumed_run_has_no_lost_steps() -> None:
    pytest.importorskip("matplotlib")
    written = run()
    lost = [{**row, "drift": 9.0} for row in written[30:50]]
    figure = plot.history([*written[:30], *lost, *written[30:]])
    assert list(lines(figure.axes[2])["drift"].get_ydata()) == [row["drift"] for row in written]


def test_history_of_a_run_that_was_killed_within_a_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, path = network(), tmp_path / "run.csv"
    optimizer = SALAdam(model.parameters())
    CSVWriter(optimizer, path)
    for _ in range(3):
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    path.write_text(path.read_text().rstrip()[:-5])
    assert list(lines(plot.history(path).axes[2])["drift"].get_xdata()) == [1.0, 2.0]
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(ValueError, match=r"source.*run\.csv.*without"):
        plot.history(path)


@pytest.mark.parametrize("layered", [False, True])
def test_layers_are_the_rows_of_the_report_by_size(layered: bool) -> None:
    pytest.importorskip("matplotlib")
    optimizer, model = trained(layered)
    (axes,) = plot.layers(optimizer, model).axes
    weight, bias, *_ = rows(optimizer, model)
    expected = (weight.mean_gate * 30 + bias.mean_gate * 5) / 35
    assert lines(axes)["mean gate"].get_xdata()[0] == pytest.approx(expected)
    assert expected < 0.99
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["0  Linear", "2  Linear"]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches[-2:]]
    assert ends == pytest.approx([1.0, 1.0])


def test_layers_without_a_name_or_a_size() -> None:
    pytest.importorskip("matplotlib")
    model = nn.ParameterDict({"none": nn.Parameter(torch.ones(0)), "one": torch.ones(1)})
    (axes,) = plot.layers(SALAdam(model.parameters()), model).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one"]


def test_many_layers_fit() -> None:
    pytest.importorskip("matplotlib")
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(150)))
    figure = plot.layers(SALAdam(model.parameters()), model)
    assert figure.get_size_inches()[1] < 25
    assert len(figure.axes[0].get_yticklabels()) == 50


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    model = network()
    optimizer = SALAdam(model.parameters())
    with pytest.raises(ValueError, match=r"source.*run\.csv.*no file.*CSVWriter"):
        plot.history(path)
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"source.*without step, protected.*CSVWriter"):
        plot.history(path)
    CSVWriter(optimizer, tmp_path / "empty.csv")
    with pytest.raises(ValueError, match=r"source.*empty\.csv.*without rows"):
        plot.history(tmp_path / "empty.csv")
    path.write_text(",".join(plot.COLUMNS) + "\n" + "x," * (len(plot.COLUMNS) - 1) + "1\n")
    with pytest.raises(ValueError, match=r"source.*not numbers"):
        plot.history(path)
    with pytest.raises(ValueError, match=r"source.*list.*without rows.*Recorder\.rows"):
        plot.history([])
    with pytest.raises(TypeError, match=r"source.*SALAdam.*Recorder\.rows"):
        plot.history(optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"source.*list of a float.*Recorder\.rows"):
        plot.history([1.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"optimizer.*Sequential.*CommunicationLayer"):
        plot.layers(model, optimizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model.*Linear.*parameters of the optimizer"):
        plot.layers(optimizer, nn.Linear(2, 2))


def test_matplotlib_comes_with_the_first_picture_or_is_asked_for() -> None:
    """In a new process, where importing matplotlib fails."""
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import sal_optim, torch\n"
        "model = torch.nn.Linear(2, 2)\n"
        "draw = sal_optim.plot.layers\n"
        "print('so far')\n"
        "draw(sal_optim.SALAdam(model.parameters()), model)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "so far\n"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install 'sal_optim[plot]'" in last


def test_it_is_a_part_of_the_package() -> None:
    assert sal_optim.plot is plot
