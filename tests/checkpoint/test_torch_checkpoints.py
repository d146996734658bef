"""torch's checks of its optimizers' state dicts, copies and hooks, on our classes.

As in ``test_torch_suite.py``, written anew from what torch's own test asserts.
"""

# torch's TestCase compares tensors, dicts of tensors and dtypes in its own assertions.
# ruff: noqa: PT009
from __future__ import annotations

import io
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import optim_db, optims
from torch.testing._internal.common_utils import TestCase

from tests.testing.judged import all_inputs, assert_same, linear, run


class TestSALCheckpoints(TestCase):
    """One check each, over every class, input and mode."""

    optimizers: ClassVar[Any] = optim_db

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
                assert_same(self, params, twins, rtol=0, atol=0)
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
            flags = set(optim_info.not_og_supported_flags) & set(optimizer.defaults)
            self.assertGreater(len(flags), 2)
            for group in older["param_groups"]:
                for flag in flags:
                    del group[flag]
            optimizer.load_state_dict(older)
            for group in optimizer.param_groups:
                for flag in flags:
                    self.assertEqual(group[flag], optimizer.defaults[flag])
            run(optimizer, closure, 3)

    @optims(optim_db)
    def test_a_step_saved_as_a_number(self, device: str, dtype: Any, optim_info: Any) -> None:
        """As torch once saved it."""
        for case in all_inputs(optim_info, device):
            params, closure = linear(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(case.kwargs))
            run(optimizer, closure, 3)
            older = deepcopy(optimizer.state_dict())
            counted = [state for state in older["state"].values() if "step" in state]
            group = optimizer.param_groups[0]
            kept = [optimizer._moments_of(param, group) for param in params]
            self.assertEqual(len(counted), sum("exp_avg_sq" in names for names in kept))
            for state in counted:
                state["step"] = state["step"].item()
            optimizer.load_state_dict(older)
            run(optimizer, closure, 1)
            now = [state for state in optimizer.state.values() if "step" in state]
            self.assertEqual(len(now), len(counted))
            for state in now:
                self.assertIsInstance(state["step"], Tensor)
                self.assertEqual(state["step"].item(), 4.0)

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


instantiate_device_type_tests(TestSALCheckpoints, globals(), only_for="cpu")
