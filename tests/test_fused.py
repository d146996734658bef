"""torch's kernel takes a protected step as the rule of the family does, or is not asked to."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sal_optim
from sal_optim import fused, optimizer


def trained(
    name: str, steps: int, dtype: torch.dtype = torch.float32, **settings: Any
) -> list[torch.Tensor]:
    """Parameters after a consolidation and some more steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 5)).to(dtype)
    if settings.pop("channels_last", False):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = getattr(sal_optim, name)(model.parameters(), lr=1e-2, protection=0.5, **settings)
    inputs = torch.randn(8, 2, 8, 8, dtype=dtype)
    for step in range(steps):
        if step == steps // 2:
            made.consolidate()
            inputs = inputs.roll(1, 0) * 2
        made.zero_grad()
        model(inputs).square().mean().backward()
        made.step()
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize("name", ["SALAdam", "SALAdamW"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True, "weight_decay": 0.1},
        {"granularity": "factored"},
        {"granularity": "tensor"},
        {"state_dtype": "bfloat16"},
        {"pull": 0.0},
        {"channels_last": True},
        {"foreach": True},
    ],
    ids=str,
)
def test_kernel_and_rule_agree(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    adam = fused.adam

    def watched(*args: object, **kwargs: object) -> object:
        asked.append(args)
        return adam(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "adam", watched)
    by_kernel = trained(name, 24, **copy.deepcopy(settings))
    # A kernel reads memory as it lies, which a tensor with other strides is not laid out for.
    assert bool(asked) != ("channels_last" in settings)
    asked.clear()
    monkeypatch.setattr(optimizer, "fits", lambda *_: False)
    by_rule = trained(name, 24, **copy.deepcopy(settings))
    assert not asked
    for one, other in zip(by_kernel, by_rule, strict=True):
        # The rule multiplies evidence in its own precision, the kernel's gate in the parameter's.
        atol = 1e-5 if "state_dtype" in settings else 1e-6
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


def test_two_byte_weights_go_by_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "adam", None)
    for param in trained("SALAdam", 12, torch.bfloat16):
        assert param.isfinite().all()
