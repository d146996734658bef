"""Reported cases of parameters, modules and checkpoints; the log is in ``docs/guarantees.md``."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALSGD, CommunicationLayer, SALAdam, SALAdamW
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    seasoned,
    snapshot,
    step_with,
    stream,
)
from tests.testing.rows import Row


def test_inference_tensors_fail_as_with_torch(class_row: Row) -> None:
    """They can't be updated in place: an error of torch's own."""
    with torch.inference_mode():
        frozen = torch.ones(3)
    for make in (class_row, class_row.base):
        with pytest.raises((RuntimeError, ValueError)):
            make([frozen.requires_grad_()])


def test_parameters_on_meta(class_row: Row) -> None:
    """As ``torch.optim``: a step computes nothing, and neither does a consolidation."""
    params = [nn.Parameter(torch.empty(4, 3, device="meta")) for _ in range(2)]
    optimizer = class_row(params)
    for _ in range(3):
        step_with(optimizer, params, [torch.empty(4, 3, device="meta") for _ in params])
    optimizer.consolidate()


def test_gradients_of_torch_func(class_row: Row) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = class_row(model.parameters())
    x = torch.randn(16, 4)

    def loss(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, params, (batch,)).square().mean()
        return found

    for _ in range(62):
        grads = torch.func.grad(loss)(dict(model.named_parameters()), x)
        for name, param in model.named_parameters():
            param.grad = grads[name].detach()
        optimizer.step()
    assert consolidations(optimizer) == 1


def test_an_optimizer_a_parameter_stepped_in_backward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    owners = {param: SALAdam([param], lr=1e-3) for param in model.parameters()}

    def step(param: Tensor) -> None:
        owners[param].step()
        owners[param].zero_grad()

    for param in owners:
        param.register_post_accumulate_grad_hook(step)
    for _ in range(62):
        model(torch.randn(16, 4)).square().mean().backward()
    assert all(consolidations(owner) == 1 for owner in owners.values())


def test_lazy_modules(class_row: Row) -> None:
    """Parameters that are materialized after the optimizer was made."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(2))
    optimizer = class_row(model.parameters())
    for _ in range(62):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
    assert consolidations(optimizer) == 1


def test_a_gradient_that_is_expanded(class_row: Row) -> None:
    """Its elements share memory, so that nothing may write to it."""
    params, optimizer = seasoned(class_row)
    twin, other = copy.deepcopy((params, optimizer))
    grads = [torch.ones(()).expand(param.shape) for param in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    step_with(other, twin, [grad.contiguous() for grad in grads])
    assert_equal(params, twin)


def test_a_checkpoint_of_a_sibling_class() -> None:
    """From SALAdam to SALAdamW, whose state is alike: importance and anchors come along."""
    params = make_params()
    optimizer = SALAdam(params, lr=0.01)
    drive(optimizer, params, stream(params, profile(65)))
    other = SALAdamW(clone_params(params), lr=0.01)
    other.load_state_dict(reload(optimizer.state_dict()))
    assert consolidations(other) == 1
    assert other.param_groups[0]["decoupled_weight_decay"]


def test_moments_of_another_class_are_left_out() -> None:
    """From SALSGD to SALAdam: moments begin anew, what is protected stays."""
    params = make_params()
    optimizer = SALSGD(params, lr=0.01, momentum=0.9)
    drive(optimizer, params, stream(params, profile(65)))
    twin = clone_params(params)
    other = SALAdam(twin, lr=0.01)
    other.load_state_dict(reload(optimizer.state_dict()))
    assert float(other.stability(twin[0]).max()) > 0.0
    drive(other, twin, stream(twin, profile(5)))
    assert int(other.state[twin[0]]["step"]) == 5


def test_protection_switched_off_and_on(class_row: Row) -> None:
    """With 0 in the group the step is the base optimizer's; importance waits."""
    params, optimizer = seasoned(class_row)
    optimizer.param_groups[0]["protection"] = 0.0
    assert float(optimizer.stability(params[0]).max()) == 0.0
    before = optimizer.controller.importance(params[0])[0].clone()
    drive(optimizer, params, stream(params, profile(10)))
    optimizer.param_groups[0]["protection"] = 10.0
    assert_equal([optimizer.controller.importance(params[0])[0]], [before])
    assert float(optimizer.stability(params[0]).max()) > 0.0


def test_a_model_cast_before_the_first_step(class_row: Row) -> None:
    model = nn.Linear(4, 3)
    optimizer = class_row(model.parameters())
    model.double()
    for _ in range(62):
        optimizer.zero_grad()
        model(torch.randn(8, 4).double()).square().mean().backward()
        optimizer.step()
    assert consolidations(optimizer) == 1


def test_consolidate_between_backward_and_step(class_row: Row) -> None:
    """Gradients that are there already are those of the next step, and stay as they are."""
    params, optimizer = seasoned(class_row)
    grads = stream(params, profile(8))
    drive(optimizer, params, grads)
    for param, grad in zip(params, grads[0], strict=True):
        param.grad = grad.clone()
    still = clone_params(params)
    optimizer.consolidate()
    assert_equal(params, still)
    assert_equal([param.grad for param in params], grads[0])  # type: ignore[misc]
    optimizer.step()


def test_a_step_under_inference_mode_fails_or_goes_on_as_with_torch() -> None:
    results = []
    for cls in (torch.optim.Adam, SALAdam):
        params = make_params()
        optimizer = cls(params, lr=0.01)
        try:
            with torch.inference_mode():
                step_with(optimizer, params, stream(params, profile(1))[0])
            results.append(None)
        except RuntimeError as error:
            results.append(type(error))
    assert results[0] == results[1]


def test_a_pickled_layer_amid_a_run() -> None:
    params = make_params()
    layer = CommunicationLayer(torch.optim.Adam(params, lr=0.01))
    grads = stream(params, profile(80))
    drive(layer.optimizer, params, grads[:65])
    twin, copied = pickle.loads(pickle.dumps((params, layer)))
    drive(layer.optimizer, params, grads[65:])
    drive(copied.optimizer, twin, grads[65:])
    assert_equal(params, twin)
    assert_same_state(snapshot(layer.optimizer), snapshot(copied.optimizer))


def test_parameters_of_several_dtypes(class_row: Row) -> None:
    params = [p for dtype in (torch.float32, torch.float64, torch.bfloat16)
              for p in make_params([(4, 3), (3,)], dtype)]  # fmt: skip
    optimizer = class_row(params)
    drive(optimizer, params, stream(params, profile(65)))
    for param in params:
        assert float(optimizer.stability(param).max()) > 0.0
        assert optimizer.state[param]["anchor"].dtype == param.dtype
    other: Any = class_row(clone_params(params))
    other.load_state_dict(reload(optimizer.state_dict()))
    assert_same_state(snapshot(other), snapshot(optimizer))


def test_frozen_from_the_start_and_unfrozen_later(class_row: Row) -> None:
    """It begins without importance, and moves as the base moves it."""
    params = make_params()
    params[0].requires_grad_(False)
    optimizer = class_row(params, consolidate_every=None)
    for now in stream(params, profile(20)):
        step_with(optimizer, params, [None, *now[1:]])
    optimizer.consolidate()
    params[0].requires_grad_(True)
    twin = clone_params(params[:1])
    base = class_row.base(twin)
    for now in stream(params, profile(6)):
        step_with(optimizer, params, now)
        step_with(base, twin, now[:1])
    torch.testing.assert_close(params[0], twin[0], rtol=0, atol=1e-6)


def test_a_head_that_grows_by_a_second_parameter(class_row: Row) -> None:
    """New classes have a parameter of their own; the old rows keep their importance."""
    params, optimizer = seasoned(class_row)
    before = optimizer.controller.importance(params[0])[0].clone()
    (rows,) = make_params([(2, 5)], seed=8)
    optimizer.add_param_group({"params": [rows]})
    drive(optimizer, [*params, rows], stream([*params, rows], profile(8)))
    assert_equal([optimizer.controller.importance(params[0])[0]], [before])
    assert float(optimizer.stability(rows).max()) == 0.0
    optimizer.consolidate()
    assert float(optimizer.stability(rows).max()) > 0.0
