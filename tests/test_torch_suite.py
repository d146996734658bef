"""torch's own machinery as the judge: its inputs, error inputs and checks, on our classes.

The checks are those of torch's test of its own optimizers, written anew from what they assert, over
``OptimizerInfo`` rows whose inputs, error inputs and schedulers are torch's. What does not apply is
listed in ``NOT_APPLICABLE``.
"""

# torch's TestCase compares tensors, dicts of tensors and dtypes in its own assertions.
# ruff: noqa: PT009, PT027
from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal import common_optimizers as torchs
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    optim_db,
    optims,
)
from torch.testing._internal.common_utils import TestCase

from sal_optim import SALSGD, SALAdam, SALAdamW, SALLion
from tests.drive import consolidations

# Torch's checks, and inputs of its checks, that do not apply; with the reason.
NOT_APPLICABLE: dict[str, str] = {
    "fused": "there is no fused implementation and no such argument: TypeError",
    "capturable": "refused by the constructor: the threshold reads the gradient norm on the host",
    "differentiable": "refused by the constructor: every update is in place",
    "sparse gradients": "refused by step(), tested in test_behaviours_parameters.py",
    "several GPUs, moves between CPU and GPU, peak memory on CUDA, CUDA graphs": "no GPU here",
    "foreach by default": "by default the mode follows the device, and on a CPU it is the loop",
    "LBFGS, Muon and Adafactor": "checks of those classes alone",
    "betas as tensors": "0-dim tensors are converted to floats, alone, in pairs and with foreach",
}
# Error inputs of torch that are no errors here, by their description.
NO_ERROR = (
    "betas must be either both floats or both Tensors",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
)

# Short runs see no change of regime, so protection acts in some inputs by the clock.
PROTECTED = (
    {"protection": 0.3, "pull": 1.0, "consolidate_every": 2},
    {"protection": 10.0, "consolidate_every": 2, "granularity": "factored", "weight_decay": 0.1},
    {"protection": 1.0, "pull": 0.0, "consolidate_every": 3, "granularity": "tensor"},
)


def _inputs(func: Callable[..., list[OptimizerInput]]) -> Callable[..., list[OptimizerInput]]:
    def inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
        ours = [OptimizerInput(None, dict(kwargs), f"protected {kwargs}") for kwargs in PROTECTED]
        return [*func(device, dtype), *ours]

    return inputs


def _errors(func: Callable[..., list[ErrorOptimizerInput]]) -> Any:
    def errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
        cases = func(device, dtype)
        return [case for case in cases if case.optimizer_error_input.desc not in NO_ERROR]

    return errors


def _lion_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    return [
        OptimizerInput(None, {}, "default"),
        OptimizerInput(None, {"lr": 1e-3}, "non-default lr"),
        OptimizerInput(None, {"lr": torch.tensor(1e-3)}, "Tensor lr"),
        OptimizerInput(None, {"weight_decay": 0.1}, "nonzero weight_decay"),
        OptimizerInput(None, {"weight_decay": 0.1, "maximize": True}, "maximize"),
        OptimizerInput(None, {"betas": (0.5, 0.9)}, "betas"),
    ]


def _lion_errors(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    adam = torchs.optim_error_inputs_func_adam(device, dtype)
    return [case for case in adam if "amsgrad" not in case.optimizer_error_input.kwargs]


_torch_rows = {info.optim_cls: info for info in optim_db}


def _info(cls: Any, inputs: Any, errors: Any) -> OptimizerInfo:
    return OptimizerInfo(
        cls,
        optim_inputs_func=_inputs(inputs),
        optim_error_inputs_func=_errors(errors),
        scheduler_inputs=_torch_rows[torch.optim.Adam].scheduler_inputs,
        supported_impls=("foreach",),
        not_og_supported_flags=("foreach", "maximize", "capturable", "differentiable"),
        supports_sparse=False,
    )


optim_db[:] = [
    _info(
        SALAdam,
        torchs.optim_inputs_func_adam,
        torchs.optim_error_inputs_func_adam,
    ),
    _info(
        SALAdamW,
        torchs.optim_inputs_func_adamw,
        torchs.optim_error_inputs_func_adamw,
    ),
    _info(SALSGD, torchs.optim_inputs_func_sgd, torchs.optim_error_inputs_func_sgd),
    _info(SALLion, _lion_inputs, _lion_errors),
]


def all_inputs(
    info: OptimizerInfo, device: str, dtype: torch.dtype | None = None
) -> Iterator[OptimizerInput]:
    """Each input, in the loop and in foreach mode (which torch's own list has on GPUs only)."""
    for case in info.optim_inputs_func(device, dtype):
        for foreach in (False, True):
            if foreach and isinstance(case.kwargs.get("lr"), Tensor):
                continue
            kwargs = {**deepcopy(case.kwargs), "foreach": foreach}
            yield OptimizerInput(None, kwargs, f"{case.desc}, foreach={foreach}")


def linear(device: str, dtype: torch.dtype) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Weight, bias and a gradient of a linear layer's squared error; returns its closure."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    params: list[Tensor] = [Parameter(draw(2, 3)), Parameter(draw(2)), Parameter(draw(1, 3))]
    features, targets = draw(4, 3), draw(4, 2)

    def closure() -> Tensor:
        for param in params:
            param.grad = None
        outputs = (features + params[2]) @ params[0].T + params[1]
        loss = (outputs - targets).abs().square().sum()
        loss.backward()
        return loss.detach()

    return params, closure


def run(optimizer: Any, closure: Callable[[], Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(closure().item())
        optimizer.step()
    return losses


class TestSALOptim(TestCase):
    """One check each, over every class, input and mode."""

    optimizers: ClassVar[Any] = optim_db

    def assert_same(self, one: list[Tensor], other: list[Tensor], **kwargs: Any) -> None:
        for left, right in zip(one, other, strict=True):
            self.assertEqual(left.detach(), right.detach(), **kwargs)

    @optims(optim_db)
    def test_infos_hold_no_cliquey_flags(self, device: str, dtype: Any, optim_info: Any) -> None:
        cases = optim_info.optim_inputs_func(device)
        self.assertGreater(len(cases), len(PROTECTED) + 3)
        for case in cases:
            self.assertFalse({"foreach", "fused", "differentiable"} & set(case.kwargs))

    @optims(optim_db)
    def test_protection_acts_in_these_inputs(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        for kwargs in PROTECTED:
            ends = []
            for protection in (kwargs["protection"], 0.0):
                params, closure = linear(device, dtype)
                kwargs = {**kwargs, "protection": protection, "lr": 1e-2}
                optimizer = optim_info.optim_cls(params, **kwargs)
                run(optimizer, closure, 10)
                self.assertGreater(consolidations(optimizer), 2)
                ends.append(params)
            self.assertNotEqual(ends[0][0].detach(), ends[1][0].detach())

    @optims(optim_db)
    def test_errors(self, device: str, dtype: Any, optim_info: Any) -> None:
        cases = optim_info.optim_error_inputs_func(device=device, dtype=dtype)
        self.assertGreater(len(cases), 5)
        sample = Parameter(torch.randn(1, 1, device=device, dtype=dtype))
        for case in cases:
            given = case.optimizer_error_input
            params = [sample] if given.params is None else given.params
            self.assertEqual(case.error_on, OptimizerErrorEnum.CONSTRUCTION_ERROR)
            if issubclass(case.error_type, Warning):
                with self.assertWarnsRegex(case.error_type, case.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)
            else:
                with self.assertRaisesRegex(case.error_type, case.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)

    @optims(optim_db)
    def test_what_is_not_supported_is_refused(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        params, _ = linear(device, dtype)
        with self.assertRaisesRegex(TypeError, "fused"):
            optim_info.optim_cls(params, fused=True)
        for flag in ("capturable", "differentiable"):
            with self.assertRaisesRegex(ValueError, flag):
                optim_info.optim_cls(params, **{flag: True})

    def _right_direction(
        self, optim_info: Any, kwargs: dict[str, Any], schedulers: Any, contiguous: bool
    ) -> None:
        torch.manual_seed(1)
        if contiguous:
            weight, bias = Parameter(torch.randn(10, 5)), Parameter(torch.randn(10))
        else:
            weight = Parameter(torch.randn(10, 5, 2)[..., 0])
            bias = Parameter(torch.randn(10, 2)[..., 0])
        features = torch.randn(5)
        optimizer = optim_info.optim_cls([weight, bias], **deepcopy(kwargs))
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
                self._right_direction(optim_info, case.kwargs, (), contiguous)

    @optims(optim_db)
    def test_goes_right_direction_with_schedulers(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        self.assertGreater(len(optim_info.scheduler_inputs), 3)
        for schedulers in optim_info.scheduler_inputs:
            for case in all_inputs(optim_info, device):
                if case.kwargs["foreach"]:
                    continue
                self._right_direction(optim_info, case.kwargs, schedulers, True)

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

    @optims(optim_db, dtypes=[torch.float64])
    def test_foreach_matches_forloop(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in optim_info.optim_inputs_func(device):
            if isinstance(case.kwargs.get("lr"), Tensor):
                continue
            ends = []
            for foreach in (False, True):
                params, closure = linear(device, dtype)
                kwargs = {**deepcopy(case.kwargs), "foreach": foreach}
                optimizer = optim_info.optim_cls(params, **kwargs)
                run(optimizer, closure, 7)
                ends.append((params, optimizer.state_dict()["state"]))
            self.assert_same(ends[0][0], ends[1][0])
            self.assertEqual(ends[0][1], ends[1][1])

    @optims(optim_db, dtypes=[torch.complex64])
    def test_complex(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Complex parameters move as their real views, whose gradients are the views'."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            real = [Parameter(torch.view_as_real(param.detach().clone())) for param in params]
            one = optim_info.optim_cls(params, **deepcopy(case.kwargs))
            other = optim_info.optim_cls(real, **deepcopy(case.kwargs))
            if case.kwargs.get("granularity") == "factored":
                continue  # rows and columns differ between (n,) complex and (n, 2) real
            for _ in range(5):
                closure()
                for param, view in zip(params, real, strict=True):
                    assert param.grad is not None
                    view.grad = torch.view_as_real(param.grad).clone()
                one.step()
                other.step()
                self.assert_same([torch.view_as_real(p.detach()) for p in params], real)

    @optims(optim_db)
    def test_mixed_dtypes(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Parameters of several dtypes in one optimizer: foreach equals the loop."""
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float16)
        for case in optim_info.optim_inputs_func(device):
            if isinstance(case.kwargs.get("lr"), Tensor):
                continue
            kwargs = deepcopy(case.kwargs)
            if "exp_avg_sq" in optim_info.optim_cls._moments:
                kwargs["eps"] = 0.1  # as in torch's inputs for float16
            ends = []
            for foreach in (False, True):
                generator = torch.Generator().manual_seed(0)
                params = [
                    Parameter(torch.rand(2, 3, generator=generator).to(dtype=d)) for d in dtypes
                ]
                optimizer = optim_info.optim_cls(params, foreach=foreach, **kwargs)
                for _ in range(5):
                    for param in params:
                        draw = torch.rand(2, 3, generator=generator)
                        param.grad = draw.to(param.dtype)
                    optimizer.step()
                ends.append(params)
            self.assert_same(*ends)
            for param in ends[0]:
                self.assertTrue(torch.isfinite(param).all())

    @optims(optim_db)
    def test_step_is_noop_without_gradients(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params = [torch.randn(2, 3, requires_grad=False), Parameter(torch.randn(3))]
            before = [param.detach().clone() for param in params]
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            optimizer.step()
            self.assert_same(params, before, rtol=0, atol=0)

    @optims(optim_db)
    def test_step_is_noop_for_zero_gradients(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        for case in all_inputs(optim_info, device):
            param = Parameter(torch.randn(5, 1))
            before = param.detach().clone()
            kwargs = {**case.kwargs, "weight_decay": 0.0}
            optimizer = optim_info.optim_cls([param], **kwargs)
            param.grad = torch.zeros_like(param)
            optimizer.step()
            self.assertEqual(param.detach(), before, rtol=0, atol=0)

    @optims(optim_db)
    def test_gradients_are_not_written(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            for _ in range(6):
                closure()
                grads = [param.grad for param in params]
                before = [grad.clone() for grad in grads if grad is not None]
                optimizer.step()
                self.assertTrue(all(p.grad is g for p, g in zip(params, grads, strict=True)))
                self.assert_same([g for g in grads if g is not None], before, rtol=0, atol=0)

    @optims(optim_db)
    def test_non_empty_state(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            run(optimizer, closure, 1)
            for state in optimizer.state.values():
                self.assertGreater(len(state), 0)
            self.assertEqual(len(optimizer.state), len(params))

    @optims(optim_db)
    def test_can_be_printed(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, _ = linear(device, dtype)
            text = repr(optim_info.optim_cls(params, **case.kwargs))
            self.assertIn(optim_info.optim_cls.__name__, text)
            self.assertIn("protection", text)

    # ------------------------------------------------------------------ state dicts

    @optims(optim_db)
    def test_state_dict_is_deterministic(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Loaded into a new optimizer on copies of the parameters, steps are the same."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(case.kwargs))
            run(optimizer, closure, 6)
            twins = [Parameter(param.detach().clone()) for param in params]
            twin = optim_info.optim_cls(twins, **deepcopy(case.kwargs))
            twin.load_state_dict(deepcopy(optimizer.state_dict()))
            self.assertEqual(optimizer.state_dict(), twin.state_dict())
            for _ in range(5):
                closure()
                for param, other in zip(params, twins, strict=True):
                    other.grad = None if param.grad is None else param.grad.clone()
                optimizer.step()
                twin.step()
                self.assert_same(params, twins, rtol=0, atol=0)
            self.assertEqual(optimizer.state_dict(), twin.state_dict())

    @optims(optim_db)
    def test_save_load_with_weights_only(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            run(optimizer, closure, 3)
            with io.BytesIO() as file:
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                loaded = torch.load(file, weights_only=True)
            self.assertEqual(optimizer.state_dict(), loaded)

    @optims(optim_db)
    def test_can_load_older_state_dict(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Group keys that came later than the first release may be missing."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(case.kwargs))
            run(optimizer, closure, 3)
            older = deepcopy(optimizer.state_dict())
            for group in older["param_groups"]:
                for flag in optim_info.not_og_supported_flags:
                    del group[flag]
            optimizer.load_state_dict(older)
            for group in optimizer.param_groups:
                for flag in optim_info.not_og_supported_flags:
                    self.assertEqual(group[flag], optimizer.defaults[flag])
            run(optimizer, closure, 3)

    @optims(optim_db)
    def test_loads_from_and_to_named_parameters(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        for case in all_inputs(optim_info, device):
            for named_first in (False, True):
                params, closure = linear(device, dtype)
                named = [(f"p{index}", param) for index, param in enumerate(params)]
                first, second = (named, params) if named_first else (params, named)
                one = optim_info.optim_cls(first, **deepcopy(case.kwargs))
                run(one, closure, 3)
                other = optim_info.optim_cls(second, **deepcopy(case.kwargs))
                other.load_state_dict(deepcopy(one.state_dict()))
                self.assertEqual(one.state_dict()["state"], other.state_dict()["state"])
                names = other.state_dict()["param_groups"][0]["param_names"]
                self.assertEqual(names, ["p0", "p1", "p2"])
                run(other, closure, 2)

    @optims(optim_db)
    def test_deepcopy_keeps_public_attributes(
        self, device: str, dtype: Any, optim_info: Any
    ) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            run(optimizer, closure, 3)
            public = {name for name in vars(optimizer) if not name.startswith("_")}
            self.assertEqual(public, {n for n in vars(deepcopy(optimizer)) if n[0] != "_"})

    # ------------------------------------------------------------------ hooks

    @optims(optim_db)
    def test_step_hooks(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            calls: list[str] = []
            handles = [
                register_optimizer_step_pre_hook(lambda *_, calls=calls: calls.append("pre, all")),
                register_optimizer_step_post_hook(
                    lambda *_, calls=calls: calls.append("post, all")
                ),
                optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("pre")),
                optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("post")),
            ]
            run(optimizer, closure, 1)
            expected = ["pre, all", "pre", "post", "post, all"]
            self.assertEqual(sorted(calls), sorted(expected))
            self.assertLess(calls.index("pre"), calls.index("post"))
            for handle in handles:
                handle.remove()
            run(optimizer, closure, 1)
            self.assertEqual(len(calls), 4)

    @optims(optim_db)
    def test_state_dict_hooks(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            run(optimizer, closure, 2)
            calls: list[str] = []

            def before(optimizer: Any, calls: list[str] = calls) -> None:
                calls.append("before")
                optimizer.param_groups[0]["note"] = "kept"

            def after(optimizer: Any, state: Any, calls: list[str] = calls) -> Any:
                calls.append("after")
                return {**state, "extra": 1}

            optimizer.register_state_dict_pre_hook(before)
            optimizer.register_state_dict_post_hook(after)
            saved = optimizer.state_dict()
            self.assertEqual(calls, ["before", "after"])
            self.assertEqual(saved["extra"], 1)
            self.assertEqual(saved["param_groups"][0]["note"], "kept")

    @optims(optim_db)
    def test_load_state_dict_hooks(self, device: str, dtype: Any, optim_info: Any) -> None:
        """A pre-hook may replace the state dict; a post-hook sees what was loaded."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(case.kwargs))
            run(optimizer, closure, 2)
            saved = deepcopy(optimizer.state_dict())
            calls: list[Any] = []

            def replace(optimizer: Any, state: Any, calls: list[Any] = calls) -> Any:
                calls.append("pre")
                other = deepcopy(state)
                other["param_groups"][0]["protection"] = 7.0
                return other

            def see(optimizer: Any, calls: list[Any] = calls) -> None:
                calls.append(optimizer.param_groups[0]["protection"])

            optimizer.register_load_state_dict_pre_hook(replace)
            optimizer.register_load_state_dict_post_hook(see)
            optimizer.load_state_dict(saved)
            self.assertEqual(calls, ["pre", 7.0])
            self.assertNotEqual(saved["param_groups"][0]["protection"], 7.0)
            run(optimizer, closure, 2)

    # ------------------------------------------------------------------ a Tensor as lr

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
            self.assert_same(ends[0], ends[1])
            self.assert_same(ends[0], ends[2])

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


instantiate_device_type_tests(TestSALOptim, globals(), only_for="cpu")


def test_all_four_classes_are_judged() -> None:
    assert [info.name for info in optim_db] == ["SALAdam", "SALAdamW", "SALSGD", "SALLion"]
    judged = globals()["TestSALOptimCPU"]
    names = [name for name in dir(judged) if name.startswith("test_")]
    for info in optim_db:
        assert sum(f"_{info.name}_" in name for name in names) >= 25
    assert all(NOT_APPLICABLE.values())
