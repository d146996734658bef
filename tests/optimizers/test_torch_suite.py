"""torch's own machinery as the judge: its inputs, error inputs and checks of steps, on our classes.

The checks are those of torch's test of its own optimizers, written anew from what they assert, over
the rows of ``judged.py``. Those of whole runs are in ``test_torch_training.py``, those of state
dicts and hooks in ``checkpoint/test_torch_checkpoints.py``.
"""

# torch's TestCase compares tensors, dicts of tensors and dtypes in its own assertions.
# ruff: noqa: PT009, PT027
from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db, optims
from torch.testing._internal.common_utils import TestCase

from tests.checkpoint import test_torch_checkpoints
from tests.optimizers import test_torch_training
from tests.testing.drive import consolidations
from tests.testing.judged import (
    NOT_APPLICABLE,
    PROTECTED,
    all_inputs,
    assert_same,
    by_element,
    linear,
    run,
)
from tests.testing.rows import CLASSES


class TestSALOptim(TestCase):
    """One check each, over every class, input and mode."""

    optimizers: ClassVar[Any] = optim_db

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
                # Lion's sign hides what acts on gradients until some of them are near 0.
                steps = 200 if optim_info.name == "SALLion" else 10
                run(optimizer, closure, steps)
                # Until something calls for it, protection of a network that still learns is slight.
                optimizer.consolidate()
                run(optimizer, closure, steps)
                # protection=0 keeps no importance, so that there is none to consolidate.
                if protection:
                    self.assertGreater(consolidations(optimizer), 2)
                else:
                    self.assertEqual(consolidations(optimizer), 0)
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
        if optim_info.name == "SALLion":
            with self.assertRaisesRegex(TypeError, "fused"):
                optim_info.optim_cls(params, fused=True)
        with self.assertRaisesRegex(ValueError, "differentiable"):
            optim_info.optim_cls(params, differentiable=True)

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
            assert_same(self, ends[0][0], ends[1][0])
            self.assertEqual(ends[0][1], ends[1][1])

    @optims(optim_db, dtypes=[torch.complex64])
    def test_complex(self, device: str, dtype: Any, optim_info: Any) -> None:
        """Complex parameters move as their real views, whose gradients are the views'."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            real = [Parameter(torch.view_as_real(param.detach().clone())) for param in params]
            one = optim_info.optim_cls(params, **by_element(optim_info, case))
            other = optim_info.optim_cls(real, **by_element(optim_info, case))
            for _ in range(5):
                closure()
                for param, view in zip(params, real, strict=True):
                    assert param.grad is not None
                    view.grad = torch.view_as_real(param.grad).clone()
                one.step()
                other.step()
                assert_same(self, [torch.view_as_real(p.detach()) for p in params], real)

    @optims(optim_db, dtypes=[torch.complex64])
    def test_complex_as_two(self, device: str, dtype: Any, optim_info: Any) -> None:
        """A complex parameter moves as its real and its imaginary part, each a parameter."""
        for case in all_inputs(optim_info, device):
            if "protected" in case.desc and case.kwargs.get("importance") != "diagonal":
                continue  # one complex tensor has one pair of factors, two real ones have two
            whole, closure = linear(device, dtype)
            kinds = (torch.real, torch.imag)
            parts = [[Parameter(kind(p.detach()).clone()) for kind in kinds] for p in whole]
            one = optim_info.optim_cls(whole, **by_element(optim_info, case))
            other = optim_info.optim_cls(
                [part for pair in parts for part in pair], **by_element(optim_info, case)
            )
            for _ in range(10):
                closure()
                for param, pair in zip(whole, parts, strict=True):
                    assert param.grad is not None
                    for kind, part in zip(kinds, pair, strict=True):
                        part.grad = kind(param.grad).clone()
                one.step()
                other.step()
                for param, pair in zip(whole, parts, strict=True):
                    assert_same(self, [kind(param.detach()) for kind in kinds], pair)

    @optims(optim_db, dtypes=[torch.float64])
    def test_other_default_dtypes(self, device: str, dtype: Any, optim_info: Any) -> None:
        """A default dtype changes nothing."""
        for case in optim_info.optim_inputs_func(device):
            for foreach in (False, True):
                if foreach and isinstance(case.kwargs.get("lr"), Tensor):
                    continue
                ends = []
                for default in (torch.float32, torch.float64, torch.float16):
                    torch.set_default_dtype(default)
                    self.addCleanup(torch.set_default_dtype, torch.float32)
                    params, closure = linear(device, dtype)
                    kwargs = {**deepcopy(case.kwargs), "foreach": foreach}
                    optimizer = optim_info.optim_cls(params, **kwargs)
                    run(optimizer, closure, 6)
                    ends.append(params)
                torch.set_default_dtype(torch.float32)
                assert_same(self, ends[0], ends[1], rtol=0, atol=0)
                assert_same(self, ends[0], ends[2], rtol=0, atol=0)

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
            assert_same(self, *ends)
            for param in ends[0]:
                self.assertTrue(torch.isfinite(param).all())

    @optims(optim_db)
    def test_step_is_noop_without_gradients(self, device: str, dtype: Any, optim_info: Any) -> None:
        for case in all_inputs(optim_info, device):
            params = [torch.randn(2, 3, requires_grad=False), Parameter(torch.randn(3))]
            before = [param.detach().clone() for param in params]
            optimizer = optim_info.optim_cls(params, **case.kwargs)
            optimizer.step()
            assert_same(self, params, before, rtol=0, atol=0)

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
                assert_same(self, [g for g in grads if g is not None], before, rtol=0, atol=0)

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


instantiate_device_type_tests(TestSALOptim, globals(), only_for="cpu")


def test_all_classes_are_judged() -> None:
    assert [info.optim_cls for info in optim_db] == [row.cls for row in CLASSES]
    judges = (
        globals()["TestSALOptimCPU"],
        vars(test_torch_checkpoints)["TestSALCheckpointsCPU"],
        vars(test_torch_training)["TestSALTrainingCPU"],
    )
    names = [name for judge in judges for name in dir(judge) if name.startswith("test_")]
    for info in optim_db:
        assert sum(f"_{info.name}_" in name for name in names) >= 29
    assert all(NOT_APPLICABLE.values())
