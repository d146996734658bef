"""HealthLine, SpectrumRows and the pictures: what is written, kept and drawn, and bad input."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

from sal_optim.companions import (
    HealthLine,
    SpectralMonitor,
    SpectrumRows,
    horizon,
    plot_shift,
    plot_spectra,
    shift_map,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(measured: Any) -> tuple[nn.Module, SpectralMonitor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, SpectralMonitor(model, ["0"], every=2, measured=measured)


def collapsing(measured: Any) -> None:
    """Seven steps, four of them measured: stable, stable, warning, warning."""
    model, monitor = watched(measured)
    inputs = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    for step in range(7):
        if step == 3:
            with torch.no_grad():
                model[0].weight[:] = model[0].weight[0]  # type: ignore[index]
        model(inputs)
        monitor.step()


def test_a_line_for_each_state_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    collapsing(HealthLine(stream))
    first, second = stream.getvalue().splitlines()
    assert first == "step 1  stable  0: rank 1.00"
    assert second.startswith("step 5  warning  0: rank 0.")


def test_one_line_that_is_written_anew_in_a_terminal() -> None:
    stream = Terminal()
    collapsing(HealthLine(stream))
    drawn = stream.getvalue().split("\r\033[2K")[1:]
    assert len(drawn) == 4
    assert [line.endswith("\n") for line in drawn] == [True, False, True, False]
    assert "\033[32mstable\033[0m" in drawn[1]
    assert "\033[31mwarning\033[0m" in drawn[2]
    narrow = io.StringIO()
    collapsing(HealthLine(narrow, width=20))
    assert max(map(len, narrow.getvalue().splitlines())) == 20
    with pytest.raises(ValueError, match=r"width.*19.*>= 20"):
        HealthLine(width=19)
    with pytest.raises(TypeError, match=r"width.*None"):
        HealthLine(width=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stream\.write.*text stream"):
        HealthLine("stderr")  # type: ignore[arg-type]


def test_a_stream_that_was_closed_does_not_end_a_run() -> None:
    stream = io.StringIO()
    stream.close()
    collapsing(HealthLine(stream))


def test_rows_and_their_picture() -> None:
    pytest.importorskip("matplotlib")
    rows = SpectrumRows()
    collapsing(rows)
    assert [row["step"] for row in rows] == [1.0, 3.0, 5.0, 7.0]
    figure = plot_spectra(rows)
    rank = figure.axes[0].lines
    assert list(rank[0].get_ydata()) == [row["0/rankme_relative"] for row in rows]
    assert list(rank[1].get_xdata()) == [5.0, 5.0]  # the warning, once
    assert len(rank) == 2
    with pytest.raises(ValueError, match=r"rows.*no rows.*SpectrumRows"):
        plot_spectra([])
    with pytest.raises(ValueError, match=r"rows.*without 0/entropy"):
        plot_spectra([{key: value for key, value in rows[0].items() if key != "0/entropy"}])
    with pytest.raises(ValueError, match=r"rows.*without a layer"):
        plot_spectra([{"step": 1.0}])
    with pytest.raises(TypeError, match=r"rows.*a int"):
        plot_spectra([1])  # type: ignore[list-item]


def test_a_picture_of_a_run_that_began_with_what_is_not_finite() -> None:
    pytest.importorskip("matplotlib")
    rows, model = SpectrumRows(), nn.Sequential(nn.Linear(4, 4))
    monitor = SpectralMonitor(model, ["0"], every=1, measured=rows)
    for value in (math.nan, 1.0):
        model(value * torch.randn(12, 4))
        monitor.step()
    ranks = plot_spectra(rows).axes[0].lines[0].get_ydata()
    assert math.isnan(ranks[0])
    assert ranks[1] == 1.0


def test_the_picture_of_a_map() -> None:
    pytest.importorskip("matplotlib")
    draw = torch.Generator().manual_seed(0)
    bank = torch.randn(100, 8, generator=draw)
    found = shift_map(torch.randn(50, 8, generator=draw), bank)
    axes = plot_shift(found).axes[0]
    assert sum(len(points.get_offsets()) for points in axes.collections) == 50
    with pytest.raises(TypeError, match=r"found.*Tensor.*shift_map"):
        plot_shift(bank)  # type: ignore[arg-type]


def test_what_is_called_after_a_measurement() -> None:
    with pytest.raises(TypeError, match=r"measured.*str.*function"):
        watched("print")


def test_the_horizon() -> None:
    assert horizon(0.5, 0.25) == pytest.approx(2.0)
    p = 0.99
    assert p ** horizon(p, 0.9) == pytest.approx(0.9)
    for bad in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"\bp must be a number in \(0, 1\)"):
            horizon(bad)
        with pytest.raises(ValueError, match=r"target must be a number in \(0, 1\)"):
            horizon(0.5, bad)
    with pytest.raises(TypeError, match=r"p must be"):
        horizon(None)  # type: ignore[arg-type]
