"""Ways to train a model that save memory or time: each ends as the plain way does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from sal_optim import SALAdamW, SALOptimizer
from tests.testing.drive import assert_near, consolidations, seeded
from tests.testing.rows import CLASSES, Row

STEPS, EVERY = 60, 20
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 12, dtype=dtype), nn.Linear(12, 3, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(inputs)))
        return found


def trained(
    row: Row,
    forward: Callable[[Net, Tensor], Tensor] = lambda net, inputs: net(inputs),
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[list[Tensor], SALOptimizer]:
    net, generator = Net(dtype).to(DEVICE), seeded(1)
    optimizer = row(net.parameters(), consolidate_every=EVERY, **settings)
    for _ in range(STEPS):
        inputs = torch.randn(16, 6, generator=generator).to(DEVICE, dtype)
        optimizer.zero_grad()
        (forward(net, inputs).float() - inputs[:, :3].float()).square().mean().backward()
        optimizer.step()
    assert consolidations(optimizer) == STEPS // EVERY
    return [param.detach() for param in net.parameters()], optimizer


def checkpointed(net: Net, inputs: Tensor) -> Tensor:
    found: Tensor = checkpoint(net, inputs, use_reentrant=False)
    return found


def offloaded(net: Net, inputs: Tensor) -> Tensor:
    with save_on_cpu():
        return net(inputs)


@pytest.mark.parametrize("row", CLASSES, ids=str)
@pytest.mark.parametrize("forward", [checkpointed, offloaded])
def test_activations_that_are_not_kept(row: Row, forward: Callable[..., Tensor]) -> None:
    """Computed anew in the backward pass, or kept on the host."""
    assert_near(trained(row, forward)[0], trained(row)[0], rtol=1e-5, atol=1e-6)


def test_a_compiled_model(class_row: Row) -> None:
    """Its optimizer is not compiled, and sees the parameters of the model itself."""
    torch.compiler.reset()
    fast = torch.compile(Net.forward, backend="aot_eager")
    assert_near(trained(class_row, fast)[0], trained(class_row)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", CLASSES, ids=str)
def test_parameters_in_bfloat16(row: Row) -> None:
    """With importance in float32; near the end in float32, as far as steps are not lost."""
    _, optimizer = trained(row, dtype=torch.bfloat16)
    for state in optimizer.state.values():
        for name, value in state.items():
            if name.startswith(("left_", "right_", "pending", "evidence")) and isinstance(
                value, Tensor
            ):
                assert value.dtype is torch.float32, name
        assert state["anchor"].dtype is torch.bfloat16
        assert state["evidence_weight"] > 0.0


def test_a_grad_scaler_changes_nothing(class_row: Row) -> None:
    """Of gradients that are scaled by a power of two, and unscaled before the step."""
    plain, _ = trained(class_row)
    net, generator = Net().to(DEVICE), seeded(1)
    optimizer = class_row(net.parameters(), consolidate_every=EVERY)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    for _ in range(STEPS):
        inputs = torch.randn(16, 6, generator=generator).to(DEVICE)
        optimizer.zero_grad()
        scaler.scale((net(inputs) - inputs[:, :3]).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert consolidations(optimizer) == STEPS // EVERY
    assert_near([p.detach() for p in net.parameters()], plain, rtol=1e-4, atol=1e-5)


def test_an_optimizer_in_backward() -> None:
    """One a parameter, each of which steps as its gradient arrives; norms are then its own."""
    net, generator = Net().to(DEVICE), seeded(1)
    optimizers = {p: SALAdamW([p], lr=1e-2, consolidate_every=EVERY) for p in net.parameters()}

    def step(param: Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    handles = [p.register_post_accumulate_grad_hook(step) for p in net.parameters()]
    losses = []
    for _ in range(STEPS):
        inputs = torch.randn(16, 6, generator=generator).to(DEVICE)
        loss = (net(inputs) - inputs[:, :3]).square().mean()
        loss.backward()
        losses.append(float(loss))
    for handle in handles:
        handle.remove()
    assert all(param.grad is None for param in net.parameters())
    for param, optimizer in optimizers.items():
        assert consolidations(optimizer) == STEPS // EVERY
        assert optimizer.stability(param).max() > 0.0
    assert losses[-1] < losses[0]
