"""rank_floor_loss: its value, and that it prevents a collapse."""

from __future__ import annotations

import math

import pytest
import torch

from sal_optim.companions import rank_floor_loss


def spread(values: list[float], samples: int = 12) -> torch.Tensor:
    """Centred activations of known singular values."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(samples, len(values), generator=generator, dtype=torch.float64)
    left = torch.linalg.qr(raw - raw.mean(0))[0]
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64))


def test_known_values() -> None:
    assert rank_floor_loss(spread([1.0, 1.0, 1.0]), 2.5).item() == 0.0
    found = rank_floor_loss(spread([1.0, 1.0, 0.0]), 3.0).item()
    assert found == pytest.approx(math.log(3) - math.log(2), abs=1e-6)
    shifted = spread([1.0, 1.0, 0.0]) + 7.0
    assert rank_floor_loss(shifted, 3.0).item() == pytest.approx(found)


@pytest.mark.parametrize("floor", [None, 4.0])
def test_it_prevents_a_collapse(floor: float | None) -> None:
    """A loss that shrinks all directions but one, with and without the floor."""
    torch.manual_seed(0)
    h = torch.randn(16, 6, requires_grad=True)
    optimizer = torch.optim.Adam([h], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = h[:, 1:].square().mean()
        if floor is not None:
            loss = loss + 10.0 * rank_floor_loss(h, floor)
        loss.backward()
        optimizer.step()
    values = torch.linalg.svdvals(h.detach() - h.detach().mean(0))
    p = values / values.sum()
    rank = math.exp(-(p * p.clamp_min(1e-12).log()).sum().item())
    assert rank > 3.8 if floor else rank < 1.5


def test_gradients_are_finite_at_a_full_collapse() -> None:
    for h in (torch.zeros(8, 4), torch.ones(8, 1) * torch.ones(1, 4)):
        h = h.clone().requires_grad_()
        rank_floor_loss(h, 2.0).backward()
        assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_give_nan(value: float) -> None:
    h = spread([1.0, 1.0, 1.0])
    h[0, 0] = value
    assert rank_floor_loss(h, 2.5).isnan()


def test_autocast_and_half() -> None:
    h = torch.randn(8, 4).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = rank_floor_loss(h, 4.0)
    assert loss.dtype == torch.float32
    loss.backward()
    assert h.grad.abs().sum() > 0


def test_what_is_refused() -> None:
    h = torch.randn(8, 4)
    with pytest.raises(ValueError, match=r"floor.*5.*\(1, 4\]"):
        rank_floor_loss(h, 5.0)
    with pytest.raises(ValueError, match=r"floor.*1.*\(1, 4\]"):
        rank_floor_loss(h, 1.0)
    with pytest.raises(ValueError, match=r"h.*\(2, 4\).*3 samples"):
        rank_floor_loss(h[:2], 1.5)
    with pytest.raises(TypeError, match=r"h.*list.*floating"):
        rank_floor_loss([1.0], 1.5)  # type: ignore[arg-type]
