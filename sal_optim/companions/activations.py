"""What comes out of a layer: finding it by name, catching it with a hook, laying it out as rows.

Used by the files beside it. It computes nothing of what it catches, and a hook of it is gone when
it is removed or when the object that it was made for is.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sal_optim.utils import checks


def unwrapped(model: Any) -> nn.Module:
    """The module itself, of one that ``torch.compile`` returned too."""
    checks.kind("model", model, nn.Module, "model must be a torch.nn.Module")
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def layer_of(model: object, name: object, argument: str = "layer") -> nn.Module:
    """The submodule of that name, as ``model.named_modules()`` has it, or an error."""
    found: dict[str, nn.Module] = dict(unwrapped(model).named_modules())
    names = [known for known in found if known]
    some = ", ".join(repr(known) for known in names[:20]) + (", …" if len(names) > 20 else "")
    allowed = f"{argument} must be one of {some}" if names else "the model has no layers"
    if not isinstance(name, str):
        raise TypeError(f"Invalid {argument} value: {name!r}; {allowed}")
    if not name or name not in found:
        raise ValueError(f"Invalid {argument} value: {name!r}; {allowed}")
    return found[name]


def tensor_of(output: Any) -> Tensor | None:
    """The floating tensor that was put out: the output, or the first of a tuple; None: neither."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


class _Catch:
    """A forward hook that keeps what came last.

    It is an object, so that a copied or pickled model does not write into it.
    """

    def __init__(self, name: str, detach: bool, training_only: bool) -> None:
        self.name = name
        self.detach = detach
        self.training_only = training_only
        self.wanted = True
        self.caught: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.wanted and (module.training or not self.training_only):
            tensor = tensor_of(output)
            if tensor is None:
                raise TypeError(
                    f"layer {self.name!r} put out a {type(output).__name__}; it must put out a "
                    "tensor of floating dtype, or a tuple that begins with one"
                )
            self.caught = tensor.detach() if self.detach else tensor

    def __reduce__(self) -> Any:
        return (_no_hook, ())


def _ignore(module: nn.Module, args: Any, output: Any) -> None:
    """The hook that a copy of the model has in its place."""


def _no_hook() -> Any:
    return _ignore


class Tap:
    """Catches the output of a layer at each forward pass, until it is removed.

    The hook goes when ``owner`` is no more, too: it has no reference to it.

    Args:
        owner: the object that the hook is made for.
        detach: whether what is caught is cut from the graph.
        training_only: whether passes in ``eval()`` mode are passed over.
    """

    def __init__(
        self,
        owner: object,
        model: object,
        name: str,
        *,
        detach: bool = False,
        training_only: bool = False,
    ) -> None:
        self._catch = _Catch(name, detach, training_only)
        handle = layer_of(model, name).register_forward_hook(self._catch)
        self._remove = weakref.finalize(owner, handle.remove)
        # At the end of the process, modules may be gone already.
        self._remove.atexit = False

    def want(self, wanted: bool) -> None:
        """Whether passes are caught, from the next one on; what was caught is let go of."""
        self._catch.wanted = wanted
        self._catch.caught = None

    @property
    def caught(self) -> Tensor | None:
        """What came last, or None."""
        return self._catch.caught

    def remove(self) -> None:
        """Take the hook away. Calling it twice is harmless."""
        self.want(False)
        self._remove()


def as_rows(h: Tensor) -> Tensor:
    """Activations as a matrix of samples by features.

    Of two or three dimensions, the last has the features (a batch, or a batch of sequences); of
    four and more, the second has (images).
    """
    if h.dim() >= 4:
        h = h.movedim(1, -1)
    return h.reshape(-1, h.shape[-1]) if h.dim() >= 2 else h.reshape(-1, 1)


def centred(h: Tensor, limit: int | None = None) -> Tensor:
    """Rows in float32 or float64, at most ``limit`` of them, evenly spread, less their mean."""
    rows = as_rows(h)
    if limit is not None and len(rows) > limit:
        at = torch.linspace(0, len(rows) - 1, limit, dtype=torch.float64).round().long()
        rows = rows[at.to(rows.device)]
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows - rows.mean(0)
