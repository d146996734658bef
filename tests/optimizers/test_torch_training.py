"""torch's checks of whole runs: towards less loss, under its schedulers, group by group.

As in ``test_torch_suite.py``, written anew from what torch's own test asserts.
"""

# torch's TestCase compares tensors, dicts of tensors and dtypes in its own assertions.
# ruff: noqa: PT009
from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import optim_db, optims
from torch.testing._internal.common_utils import TestCase

from tests.testing.judged import all_inputs, assert_same, linear, run


class TestSALTraining(TestCase):
    """One check each, over every class, input and mode."""

    optimizers: ClassVar[Any] = optim_db

    def _right_direction(
        self,
        optim_info: Any,
        kwargs: dict[str, Any],
        schedulers: Any = (),
        contiguous: bool = True,
        groups: bool = False,
    ) -> None:
        torch.manual_seed(1)
        if contiguous:
            weight, bias = Parameter(torch.randn(10, 5)), Parameter(torch.randn(10))
        else:
            weight = Parameter(torch.randn(10, 5, 2)[..., 0])
            bias = Parameter(torch.randn(10, 2)[..., 0])
        features = torch.randn(5)
        params: Any = [weight, bias]
        if groups:
            params = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
        optimizer = optim_info.optim_cls(params, **deepcopy(kwargs))
        schedules = [make(optimizer) for make in schedulers]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (weight.mv(features) + bias).pow(2).sum()
            loss.backward()
            return loss.detach()

        first = closure().item()
        for _ in range(20):
            loss = optimizer.step(closure)
            for schedule in schedules:
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(loss)
                else:
                    schedule.step()
        last = closure().item()
        if kwargs.get("maximize"):
            self.assertGreater(last, first)
        else:
            self.assertLess(last, first)

    @optims(optim_db)
    def test_goes_right_direction(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            for contiguous in (True, False):
                self._right_direction(optim_info, case.kwargs, contiguous=contiguous)

    @optims(optim_db)
    def test_goes_right_direction_with_schedulers(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        self.assertGreater(len(optim_info.scheduler_inputs), 3)
        for schedulers in optim_info.scheduler_inputs:
            for case in all_inputs(optim_info, device):
                if case.kwargs["foreach"]:
                    continue
                self._right_direction(optim_info, case.kwargs, schedulers, groups=True)

    @optims(optim_db)
    def test_param_group_lr(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            if "lr" in case.kwargs or "weight_decay" in case.kwargs or "protected" in case.desc:
                continue
            params, closure = linear(device, dtype)
            still = params[1].detach().clone()
            groups = [{"params": [params[0], params[2]]}, {"params": [params[1]], "lr": 0.0}]
            optimizer = optim_info.optim_cls(groups, lr=0.01, **case.kwargs)
            losses = run(optimizer, closure, 20)
            self.assertLess(losses[-1], losses[0])
            self.assertEqual(params[1].detach(), still, rtol=0, atol=0)

    @optims(optim_db)
    def test_param_group_weight_decay(self, device: str, dtype: Any, optim_info: Any) -> None:
        for foreach in (False, True):
            params = [Parameter(torch.ones(3)), Parameter(torch.ones(3))]
            groups = [{"params": params[:1], "weight_decay": 0.5}, {"params": params[1:]}]
            optimizer = optim_info.optim_cls(groups, lr=0.1, weight_decay=0.0, foreach=foreach)
            for _ in range(3):
                for param in params:
                    param.grad = torch.zeros(3)
                optimizer.step()
            self.assertLess(params[0].detach().abs().max().item(), 1.0)
            self.assertEqual(params[1].detach(), torch.ones(3), rtol=0, atol=0)

    @optims(optim_db)
    def test_tensor_lr(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in optim_info.optim_inputs_func(device):
            ends = []
            for rate in (0.01, torch.tensor(0.01), torch.tensor([0.01])):
                params, closure = linear(device, dtype)
                kwargs = {**deepcopy(case.kwargs), "lr": rate}
                optimizer = optim_info.optim_cls(params, **kwargs)
                run(optimizer, closure, 5)
                self.assertEqual(type(optimizer.param_groups[0]["lr"]), type(rate))
                ends.append(params)
            assert_same(self, ends[0], ends[1])
            assert_same(self, ends[0], ends[2])

    @optims(optim_db)
    def test_trains_a_module(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Through parameters() and named_parameters() of a module, without a warning."""
        for case in all_inputs(optim_info, device):
            for way in ("parameters", "named_parameters"):
                torch.manual_seed(0)
                model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
                kwargs = {**deepcopy(case.kwargs), "maximize": False}
                optimizer = optim_info.optim_cls(getattr(model, way)(), **kwargs)
                features = torch.randn(8, 4)

                def closure(m: Any = model, o: Any = optimizer, x: Tensor = features) -> Tensor:
                    o.zero_grad()
                    loss = (m(x) - 1).square().mean()
                    loss.backward()
                    return loss.detach()

                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    losses = run(optimizer, closure, 15)
                self.assertLess(losses[-1], losses[0])


instantiate_device_type_tests(TestSALTraining, globals(), only_for="cpu")
