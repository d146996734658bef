"""``LiveView``: what it shows is true, it costs little, and without a terminal it is mute."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch

from sal_optim import CommunicationLayer, LiveView, SALAdam, SALOptimizer
from sal_optim.monitoring import live_view as module
from tests.testing.drive import drive, make_params, profile, stream

rich = pytest.importorskip("rich")
from rich.console import Console  # noqa: E402

FREQUENTLY = 1e9  # every step is drawn


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def drawn(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def last_picture(console: Console) -> str:
    return drawn(console)[drawn(console).rindex("╭") :]


def prepared(layered: bool = False) -> tuple[list[torch.Tensor], Any, Any]:
    params = make_params()
    if layered:
        optimizer: Any = torch.optim.Adam(params, lr=0.01)
        return params, optimizer, CommunicationLayer(optimizer)
    optimizer = SALAdam(params, lr=0.01)
    return params, optimizer, optimizer


@pytest.mark.parametrize("layered", [False, True])
def test_it_shows_the_diagnostics_and_the_state(layered: bool) -> None:
    params, optimizer, protection = prepared(layered)
    console = terminal()
    with LiveView(protection, FREQUENTLY, console):
        (found,) = drive(optimizer, params, stream(params, profile(80, (60,))))
    picture, numbers = last_picture(console), protection.diagnostics()
    assert ("Adam" if layered else "SALAdam") in picture
    assert " 80 " in picture
    assert f"{numbers['surprise']:.2f}, threshold {numbers['threshold']:.2f}" in picture
    assert f"1, the last at step {found + 1}" in picture
    for name in ("protected", "neutral", "volatile"):
        assert f"{name} {numbers[name]:.0%}" in picture
    assert f"mean gate {numbers['mean_gate']:.2f}" in picture
    assert f"{numbers['drift']:.1%} from the anchor" in picture
    for state in ("stable", "changing", "consolidating"):
        assert f" {state} " in drawn(console), state
    assert any(block in picture for block in "▄▅▆▇█")


def test_it_draws_a_few_times_a_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 steps of 10 ms: between refreshes nothing is measured, and no spike is lost."""
    now = [0.0]
    calls = []
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    params, optimizer, _ = prepared()
    original = SALOptimizer.diagnostics
    monkeypatch.setattr(SALOptimizer, "diagnostics", lambda s: calls.append(1) or original(s))
    view = LiveView(optimizer, 4.0, terminal())
    for grads in stream(params, profile(100, (60,))):
        drive(optimizer, params, [grads])
        now[0] += 0.01
    assert len(calls) == 4
    # Of the change at step 60, which falls between two refreshes.
    assert view._surprises[3][0] > 5.0
    assert [suspected for _, suspected in view._surprises] == [False, False, False, True]
    view.remove()
    assert len(calls) == 5


def test_without_a_terminal_nothing_is_hooked_or_shown(capsys: pytest.CaptureFixture[str]) -> None:
    params, optimizer, _ = prepared()
    with LiveView(optimizer):
        assert not optimizer._optimizer_step_post_hooks
        drive(optimizer, params, stream(params, profile(3)))
    assert capsys.readouterr() == ("", "")


def test_removal_is_final_and_harmless_twice() -> None:
    params, optimizer, _ = prepared()
    console = terminal()
    view = LiveView(optimizer, FREQUENTLY, console)
    drive(optimizer, params, stream(params, profile(3)))
    view.remove()
    view.remove()
    shown = drawn(console)
    assert not optimizer._optimizer_step_post_hooks
    drive(optimizer, params, stream(params, profile(3)))
    assert drawn(console) == shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_an_error_in_the_run_ends_the_view_and_is_raised() -> None:
    _, optimizer, _ = prepared()
    console = terminal()
    with pytest.raises(RuntimeError, match="diverged"), LiveView(optimizer, console=console):
        raise RuntimeError("diverged")
    assert drawn(console).endswith("\x1b[?25h")
    assert not optimizer._optimizer_step_post_hooks


def test_it_does_not_outlive_its_terminal() -> None:
    params, optimizer, _ = prepared()
    console = terminal()
    view = LiveView(optimizer, FREQUENTLY, console)
    grads = stream(params, profile(3))
    drive(optimizer, params, grads[:1])
    console.file.close()
    with pytest.warns(UserWarning, match=r"LiveView stops at step 2"):
        drive(optimizer, params, grads[1:2])
    drive(optimizer, params, grads[2:])  # a warning would be an error
    view.remove()
    assert not optimizer._optimizer_step_post_hooks


def test_what_is_refused() -> None:
    params, optimizer, _ = prepared()
    with pytest.raises(TypeError, match=r"optimizer.*SGD.*CommunicationLayer"):
        LiveView(torch.optim.SGD(params, lr=1.0), console=terminal())
    with pytest.raises(ValueError, match=r"refresh.*0.*\(0, inf\)"):
        LiveView(optimizer, 0)
    with pytest.raises(TypeError, match=r"console.*StringIO.*rich\.console\.Console"):
        LiveView(optimizer, console=io.StringIO())  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_post_hooks


def test_without_rich() -> None:
    """In a new process, where importing rich fails."""
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "import sal_optim, torch\n"
        "sal_optim.LiveView(sal_optim.SALAdam([torch.ones(1, requires_grad=True)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "pip install 'sal_optim[report]'" in last
