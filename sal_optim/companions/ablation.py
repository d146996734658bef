"""``ablate`` and ``necessity_gap``: is a route of the network needed, or only there?

A causal probe: what a module puts out is replaced, and the fall of a metric is measured. Weights
are not touched, and nothing is trained.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sal_optim.utils import checks
from sal_optim.utils.warning import warn

_HOW = ("zero", "mean", "scramble")


@contextmanager
def ablate(
    module: nn.Module, how: str = "mean", *, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Within the block, a module's output is replaced; afterwards it is itself again.

    Of an output that is a tuple or a list, each tensor of floating dtype is replaced; those that
    are nested deeper, as an LSTM's state, stay. One warning where the module was not called, as
    within a model that ``torch.compile`` has traced before.

    Args:
        module: the route, such as ``model.get_submodule("memory")``.
        how: ``"zero"``; ``"mean"``, its mean over the batch, the first dimension; or
            ``"scramble"``, in which each sample has the output of another one.
        generator: of the permutation, on the CPU. Default: one with a fixed seed for each block, so
            that the global random state stays as it is.

    Raises:
        ValueError: in the forward pass, ``"mean"`` or ``"scramble"`` of a batch of fewer than 2
            samples, ``"mean"`` of whole numbers, or an output without a tensor.
    """
    checks.kind("module", module, nn.Module, "module must be a torch.nn.Module")
    how = checks.choice("how", how, _HOW)
    generator = generator or torch.Generator().manual_seed(0)

    called = False

    def replace(_: nn.Module, __: Any, output: Any) -> Any:
        nonlocal called
        called = True
        return _replaced(output, how, generator)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
    if not called:
        warn(
            f"ablate() replaced nothing: the {type(module).__name__} was not called; run the model "
            "that it is in, without torch.compile"
        )


def necessity_gap(
    module: nn.Module,
    metric: Callable[[], float | Tensor],
    how: str = "mean",
    *,
    repeats: int = 1,
    seed: int = 0,
) -> float:
    """How far a metric falls when a module is ablated: ``metric() - mean of metric() ablated``.

    Near 0 the route is not needed for what is measured; below 0 it does harm. The metric is taken
    without gradients, and in the mode that the model is in: call ``model.eval()`` before.

    Args:
        module: the route.
        metric: takes nothing and returns a number that is higher when better, such as the accuracy
            of the model on a batch.
        how: as of :func:`ablate`.
        repeats: times that the ablated metric is taken, for ``"scramble"``.
        seed: of the permutations.

    Raises:
        ValueError: as of :func:`ablate`; ``metric`` returns no finite number.
    """
    checks.function("metric", metric, "a function without arguments")
    repeats = checks.whole("repeats", repeats, low=1)
    generator = torch.Generator().manual_seed(checks.whole("seed", seed, low=0))
    with torch.no_grad():
        with ablate(module, how, generator=generator):
            ablated = [_value(metric()) for _ in range(repeats)]
        return _value(metric()) - sum(ablated) / repeats


def _value(result: Any) -> float:
    return checks.number("metric()", result, low=-math.inf)


def _replaced(output: Any, how: str, generator: torch.Generator) -> Any:
    if isinstance(output, Tensor):
        return _ablated(output, how, generator)
    if isinstance(output, (tuple, list)):
        new = [
            _ablated(item, how, generator)
            if isinstance(item, Tensor) and item.is_floating_point()
            else item
            for item in output
        ]
        if any(a is not b for a, b in zip(new, output, strict=True)):
            named = hasattr(output, "_fields")
            return type(output)(*new) if named else type(output)(new)
    raise ValueError(
        f"Invalid module value: it puts out a {type(output).__name__}; module must put out a "
        "tensor, or a tuple with a tensor of floating dtype"
    )


def _ablated(output: Tensor, how: str, generator: torch.Generator) -> Tensor:
    if how == "zero":
        return torch.zeros_like(output)
    samples = len(output) if output.dim() else 0
    if samples < 2:
        raise ValueError(
            f"Invalid how value: {how!r} of an output of shape {tuple(output.shape)}; how must be "
            "'zero' for a batch of fewer than 2 samples"
        )
    if how == "mean":
        if not (output.is_floating_point() or output.is_complex()):
            raise ValueError(
                f"Invalid how value: 'mean' of an output of {output.dtype}; how must be 'zero' or "
                "'scramble' for whole numbers"
            )
        return output.mean(0, keepdim=True).expand_as(output).clone()
    # One cycle through all samples, so that none keeps its own.
    order = torch.randperm(samples, generator=generator, device="cpu")
    source = torch.empty_like(order)
    source[order] = order.roll(1)
    return output[source.to(output.device)]
