"""``sal_optim.report``: its numbers are those of ``diagnostics()``, and its words are true."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import sal_optim
from sal_optim import CommunicationLayer, SALAdam
from sal_optim.layer import layer_of
from sal_optim.monitoring.report import Row, readable, rows, state_in_words, summary
from tests.testing.drive import drive, profile, snapshot, stream
from tests.testing.rows import KINDS


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def trained(layered: bool, steps: int = 80, **settings: Any) -> tuple[Any, nn.Sequential]:
    """An optimizer that has met a change of regime at step 60."""
    model = network()
    params = list(model.parameters())
    if layered:
        optimizer: Any = torch.optim.Adam(params, lr=0.01)
        CommunicationLayer(optimizer, **settings)
    else:
        optimizer = SALAdam(params, lr=0.01, **settings)
    drive(optimizer, params, stream(params, profile(steps, (60,))))
    return optimizer, model


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_add_up_to_the_diagnostics(layered: bool, kind: str) -> None:
    optimizer, model = trained(layered, importance=kind)
    protection = layer_of(optimizer) if layered else optimizer
    before = snapshot(optimizer).keys()
    found = rows(optimizer, model)
    assert snapshot(optimizer).keys() == before
    assert [row.name for row in found] == [name for name, _ in model.named_parameters()]
    assert [row.size for row in found] == [p.numel() for p in model.parameters()]
    total, diagnostics = sum(row.size for row in found), protection.diagnostics()
    for name in ("protected", "neutral", "volatile", "mean_gate"):
        mean = sum(getattr(row, name) * row.size for row in found) / total
        assert mean == pytest.approx(diagnostics[name], abs=1e-6), name
    assert diagnostics["mean_gate"] < 0.99
    assert all(row.importance > 0.0 and row.drift > 0.0 for row in found)
    published = sum(row.published for row in found) / len(found)
    assert published == pytest.approx(diagnostics["published_stability"])
    assert 0.0 < published < 1.0


def test_importance_drift_and_published_stability_of_one_tensor() -> None:
    optimizer, model = trained(False)
    weight, row = model[0].bias.detach(), rows(optimizer, model)[1]
    state = optimizer.state[model[0].bias]
    assert row.importance == pytest.approx(float(state["evidence"].mean()))
    assert row.published == 1.0 / (1.0 + state["delta_w"] * state["grad_norm_mean"])
    anchor = state["anchor"]
    assert row.drift == pytest.approx(float((weight - anchor).norm() / anchor.norm()))


def test_only_what_the_optimizer_has_is_shown() -> None:
    model = network()
    found = rows(SALAdam(model[2].parameters()), model)
    assert [row.name for row in found] == ["2.weight", "2.bias"]
    assert found[0] == Row("2.weight", 15, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0)


def test_an_empty_parameter() -> None:
    model = nn.ParameterDict({"none": nn.Parameter(torch.ones(0)), "one": torch.ones(1)})
    found = rows(SALAdam(model.parameters()), model)
    assert found[0] == Row("none", 0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0)


def test_the_states() -> None:
    """In the order in which a run that meets a change of regime goes through them."""
    model = network()
    params = list(model.parameters())
    optimizer = SALAdam(params, lr=0.01)
    met = [state_in_words(optimizer)]
    for now in stream(params, profile(140, (60,))):
        drive(optimizer, params, [now])
        word = state_in_words(optimizer)
        met += [word] if word != met[-1] else []
    assert met[:3] == ["stable", "changing", "consolidating"]
    with torch.no_grad():
        for param in params:
            param.copy_(optimizer.state[param]["anchor"])
    assert state_in_words(optimizer) == "stable"
    with torch.no_grad():
        params[0].mul_(2.0)
    assert state_in_words(optimizer) == "drifting"


def test_the_summary() -> None:
    model = network()
    optimizer = SALAdam(model.parameters())
    new = summary(optimizer, rows(optimizer, model))
    assert "No consolidation yet" in new
    assert "Nothing is protected, and there is no anchor" in new
    optimizer, model = trained(False, protection=10.0)
    told = summary(optimizer, rows(optimizer, model))
    assert told.startswith("1 consolidation. The state is consolidating:")
    assert f"{optimizer.diagnostics()['protected']:.1%} of the network's 53 scalars" in told
    optimizer.consolidate()
    assert summary(optimizer, rows(optimizer, model)).startswith("2 consolidations.")


def test_the_summary_says_that_weights_are_not_finite() -> None:
    optimizer, model = trained(False, protection=10.0)
    assert "not finite" not in summary(optimizer, rows(optimizer, model))
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = torch.nan
    told = summary(optimizer, rows(optimizer, model))
    assert "Some weights are not finite: restore() puts them at their anchors" in told


def test_the_summary_says_why_protection_waits() -> None:
    model = network()
    params = list(model.parameters())
    optimizer = SALAdam(params)
    grads = [torch.ones_like(param) for param in params]
    drive(optimizer, params, [grads] * 110)
    told = summary(optimizer, rows(optimizer, model))
    assert "Protection is at 0.1% of its strength, and waits: the loss still falls" in told
    assert optimizer.diagnostics()["descent"] > 1.0
    optimizer.consolidate()
    assert "still falls" not in summary(optimizer, rows(optimizer, model))


def test_the_summary_advises_to_tell_the_loss_and_says_that_it_falls() -> None:
    model = network()
    params = list(model.parameters())
    advice = "Told the loss (tell(loss=loss)), it waits while that falls."
    silent, told = SALAdam(params), SALAdam(params)
    for step, grads in enumerate(stream(params, profile(130))):
        drive(silent, params, [grads])
        told.tell(loss=0.98**step)
        drive(told, params, [grads])
    found = summary(silent, rows(silent, model))
    assert found.endswith(
        f"it rises with the clock. It is whole once a change is noticed or declared. {advice}"
    )
    found = summary(told, rows(told, model))
    assert "at 0.0% of its strength, and waits: the loss that it is told falls" in found
    assert advice not in found


@pytest.mark.parametrize("layered", [False, True])
def test_it_is_printed(
    layered: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")
    optimizer, model = trained(layered)
    sal_optim.report(optimizer, model)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    for row in rows(optimizer, model):
        line = next(line for line in lines if line.split()[:1] == [row.name])
        assert line.split()[1:] == [
            str(row.size),
            *(f"{share:.1%}" for share in (row.protected, row.neutral, row.volatile)),
            f"{row.mean_gate:.3f}",
            f"{row.importance:.3g}",
            f"{row.drift:.3f}",
            f"{row.published:.3f}",
        ]
    assert " ".join(shown.split()).endswith(summary(optimizer, rows(optimizer, model)))


def test_names_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    model = nn.ParameterDict({"[red]": nn.Parameter(torch.ones(2))})
    sal_optim.report(SALAdam(model.parameters()), model)
    assert "[red]" in capsys.readouterr().out


def test_what_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"model.*Linear.*parameters of the optimizer"):
        rows(SALAdam(model.parameters()), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model.*list.*torch\.nn\.Module"):
        rows(SALAdam(model.parameters()), [])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"optimizer.*SGD.*CommunicationLayer"):
        rows(torch.optim.SGD(model.parameters(), lr=1.0), model)


def test_without_rich() -> None:
    """In a new process, where importing rich fails."""
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "import sal_optim, torch\n"
        "model = torch.nn.Linear(2, 2)\n"
        "sal_optim.report(sal_optim.SALAdam(model.parameters()), model)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install 'sal_optim[report]'" in last


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("0.weight", "0.weight"),
        ("base_model.model.h.0.attn.lora_A.default.weight", "h.0.attn.lora_A"),
        ("base_model.model.h.0.attn.lora_B.second.weight", "h.0.attn.lora_B.second"),
    ],
)
def test_names_of_peft_are_short(name: str, shown: str) -> None:
    assert readable(name) == shown
