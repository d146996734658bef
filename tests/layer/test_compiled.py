"""torch.compile around the step of an optimizer that a layer is around gives the eager result."""

from __future__ import annotations

import torch

from sal_optim import CommunicationLayer
from tests.testing.drive import assert_equal, clone_params, make_params, profile, stream


def test_a_compiled_step_is_protected_as_the_eager_one() -> None:
    params = make_params([(6, 5), (5,)])
    twins = clone_params(params)
    optimizers = [torch.optim.SGD(p, lr=0.01) for p in (params, twins)]
    layers = [CommunicationLayer(optimizer, consolidate_every=20) for optimizer in optimizers]
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="eager")]
    for grads in stream(params, profile(70)):
        for owned, step in zip((params, twins), steps, strict=True):
            for param, grad in zip(owned, grads, strict=True):
                param.grad = grad.clone()
            step()
    for layer in layers:
        assert layer.diagnostics()["consolidations"] == 3.0
    assert_equal(params, twins, "eager and compiled")
