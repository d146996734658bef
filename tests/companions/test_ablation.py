"""ablate and necessity_gap: what is replaced, what comes back, and a gap that is known."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sal_optim.companions import ablate, necessity_gap


class TwoRoutes(nn.Module):
    """The answer is in the first route; the second one adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.needed, self.idle = nn.Identity(), nn.Linear(4, 4)
        nn.init.zeros_(self.idle.weight)
        nn.init.zeros_(self.idle.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.needed(x) + self.idle(x)


X = torch.eye(4).repeat(5, 1)
LABELS = torch.arange(4).repeat(5)


def test_what_is_put_out_instead() -> None:
    module, x = nn.Identity(), torch.randn(6, 3)
    with ablate(module, "zero"):
        assert torch.equal(module(x), torch.zeros(6, 3))
    with ablate(module, "mean"):
        torch.testing.assert_close(module(x), x.mean(0).expand(6, 3))
    state = torch.get_rng_state()
    with ablate(module, "scramble"):
        scrambled = module(x)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.device("meta"), ablate(module, "scramble"):  # another default device
        assert torch.equal(module(x), scrambled)
    assert not (scrambled == x).all(1).any()  # none keeps its own
    assert torch.equal(scrambled.sort(0).values, x.sort(0).values)
    assert torch.equal(module(x), x)
    assert not module._forward_hooks


def test_the_hook_goes_after_an_error() -> None:
    module = nn.Identity()
    with pytest.raises(KeyError), ablate(module, "zero"):
        raise KeyError
    assert not module._forward_hooks


def test_the_gap() -> None:
    model = TwoRoutes().eval()

    def accuracy() -> Tensor:
        assert not torch.is_grad_enabled()
        return (model(X).argmax(1) == LABELS).float().mean()

    for how in ("zero", "mean"):
        assert necessity_gap(model.needed, accuracy, how) == pytest.approx(0.75)  # chance is 1/4
        assert necessity_gap(model.idle, accuracy, how) == 0.0
    gap = necessity_gap(model.needed, accuracy, "scramble", repeats=10)
    assert 0.5 < gap < 1.0
    assert gap == necessity_gap(model.needed, accuracy, "scramble", repeats=10)
    assert gap != necessity_gap(model.needed, accuracy, "scramble", repeats=10, seed=1)


class Pair(NamedTuple):
    value: Tensor
    index: Tensor


def test_several_outputs() -> None:
    class Several(nn.Module):
        def forward(self, kind: type) -> object:
            items = torch.ones(3, 2), torch.arange(3)
            return Pair(*items) if kind is Pair else kind(items)

    module = Several()
    for kind in (tuple, list, Pair):
        with ablate(module, "zero"):
            value, index = module(kind)
        assert not value.any()
        assert index.any()
        assert isinstance(module(kind), kind)


def test_what_is_refused() -> None:
    module = nn.Identity()
    with (
        pytest.raises(ValueError, match=r"how.*'noise'.*'zero', 'mean', 'scramble'"),
        ablate(module, "noise"),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"module.*str.*torch\.nn\.Module"),
        ablate(
            "memory"  # type: ignore[arg-type]
        ),
    ):
        pass
    with ablate(module, "scramble"), pytest.raises(ValueError, match=r"\(1, 3\).*'zero'.*2 samp"):
        module(torch.ones(1, 3))
    with ablate(module), pytest.raises(ValueError, match=r"'mean'.*int64.*'zero' or 'scramble'"):
        module(torch.arange(3))
    with ablate(module), pytest.raises(ValueError, match=r"module.*puts out a dict"):
        module({})
    with pytest.raises(TypeError, match=r"metric.*float.*function"):
        necessity_gap(module, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"repeats.*0.*>= 1"):
        necessity_gap(module, lambda: 1.0, repeats=0)
    with pytest.raises(ValueError, match=r"metric\(\).*nan"):
        necessity_gap(module, lambda: float("nan"))


def test_before_an_operation_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
    with ablate(model[0]):
        assert model(X).isfinite().all()


def test_a_module_that_is_not_called_is_said() -> None:
    """A model that was traced before does not see the hook, and the gap would be 0."""
    model = TwoRoutes().eval()
    traced = torch.compile(model, backend="eager")
    with torch.no_grad():
        traced(X)
    with pytest.warns(UserWarning, match=r"replaced nothing: the Identity was not.*torch\.compile"):
        found = necessity_gap(model.needed, lambda: (traced(X).argmax(1) == LABELS).float().mean())
    assert found == 0.0
