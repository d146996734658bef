"""``SelfModel``: a network also predicts activations of its own, as a regulariser.

An auxiliary linear head reads a layer by a forward hook; the model is not changed. It is a term of
a loss, and no measure of complexity: for what it does to a spectrum see ``spectral.py``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sal_optim.companions.activations import Tap, layer_of, unwrapped
from sal_optim.utils import checks

# Where a layer says how many features come out of it.
_WIDTHS = ("out_features", "out_channels", "num_features", "embedding_dim")


class SelfModel(nn.Module):
    """A linear head that predicts a layer's activations ``a``, and the loss of it.

    ``loss() = weight · mean((head(h) - a)²)``, of the forward pass that came last, where ``a`` is
    the output of ``layer``, cut from the graph, and ``h`` that of ``source``, by default ``a``
    itself with its graph. Source: Unexpected Benefits of Self-Modeling in Neural Systems
    (arXiv 2407.10188), which has the head as further outputs of the final layer; a head of its own
    is the same where ``source`` feeds the final layer.

    The optimizer must be given ``parameters()`` of this module too. Make it before
    ``torch.compile(model)`` traces the model, and on the model's device. Under autocast the loss is
    taken in float32. A copy of the model is not watched.

    Args:
        model: the network. Its parameters, buffers and ``state_dict`` stay as they are.
        layer: name of the layer whose output is predicted, as in ``model.named_modules()``.
        weight: of the term, at least 0. At 0 nothing is computed.
        detach: whether the target is cut from the graph. Where it is not, the network learns to
            have activations that are easily predicted, at the cost of its task.
        source: name of the layer that feeds the head. Default: ``layer``.
        features: how many features come out of ``layer`` and of ``source``, a number or a pair.
            Default: what they tell, or the layer before them in an ``nn.Sequential``.

    Raises:
        ValueError: ``features`` can't be told.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        weight: float,
        detach: bool = True,
        *,
        source: str | None = None,
        features: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.weight = checks.number("weight", weight)
        self.detach = checks.flag("detach", detach)
        source = layer if source is None else source
        layer_of(model, layer)
        layer_of(model, source, "source")
        out, width = _features(features, unwrapped(model), layer, source)
        first = next(model.parameters(), torch.empty(()))
        dtype = first.dtype if first.dtype == torch.float64 else torch.float32
        self.head = nn.Linear(width, out, device=first.device, dtype=dtype)
        self._target = Tap(self, model, layer)
        self._source = self._target if source == layer else Tap(self, model, source)
        self._removed = False

    def forward(self, h: Tensor) -> Tensor:
        """The prediction, from what feeds the head: samples by features."""
        return self.head(h)  # type: ignore[no-any-return]

    def loss(self) -> Tensor:
        """The weighted loss of the last forward pass, a scalar with its graph.

        Raises:
            RuntimeError: there was no forward pass, or the object was removed.
            ValueError: the activations do not have the features that the head has.
        """
        if self.weight == 0.0 and not self._removed:
            return self.head.weight.new_zeros(())
        prediction, target = self._both()
        return self.weight * nn.functional.mse_loss(prediction, target)

    @torch.no_grad()
    def r2(self) -> float:
        """The share of the activations' variance that the head predicts, of the last forward pass.

        1 is all of it; 0 is as good as their mean; less than 0 is worse. Of activations that do not
        vary it is 0. It raises as :meth:`loss` does.
        """
        prediction, target = self._both()
        total = (target - target.mean(0)).square().sum()
        if not float(total) > 0.0:
            return 0.0
        return 1.0 - float((target - prediction).square().sum() / total)

    def diagnostics(self) -> dict[str, float]:
        """``self_model_loss`` (without its weight) and ``self_model_r2``, for a logger."""
        with torch.no_grad():
            prediction, target = self._both()
            loss = float(nn.functional.mse_loss(prediction, target))
        return {"self_model_loss": loss, "self_model_r2": self.r2()}

    def remove(self) -> None:
        """Take the hooks away; the head stays. Calling it twice is harmless."""
        self._target.remove()
        self._source.remove()
        self._removed = True

    def _both(self) -> tuple[Tensor, Tensor]:
        target, source = self._target.caught, self._source.caught
        if self._removed or target is None or source is None:
            what = "was removed" if self._removed else "has seen no forward pass of the model"
            raise RuntimeError(f"this SelfModel {what}: it has no activations to predict")
        weight = self.head.weight
        a = _rows(target, self.head.out_features, "layer").to(weight.dtype)
        h = _rows(source, self.head.in_features, "source").to(weight.dtype)
        if len(a) != len(h):
            raise ValueError(
                f"layer and source put out {len(a)} and {len(h)} samples; they must be as many"
            )
        with torch.autocast(weight.device.type, enabled=False):
            prediction = self(h)
        return prediction, a.detach() if self.detach else a

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a SelfModel can't be copied or pickled, since it is hooked to its model: save its "
            "state_dict()"
        )


def _rows(caught: Tensor, features: int, argument: str) -> Tensor:
    """Samples by features, of activations whose last or, of images, second dimension has them."""
    h = caught.movedim(1, -1) if caught.dim() >= 4 else caught
    if h.dim() == 0 or h.shape[-1] != features:
        raise ValueError(
            f"{argument} puts out activations of shape {tuple(caught.shape)}, and the head has "
            f"{features} features; features must be what the {argument} puts out"
        )
    return h.reshape(-1, features)


def _features(features: Any, model: nn.Module, layer: str, source: str) -> tuple[int, int]:
    if features is None:
        return _width(model, layer), _width(model, source)
    pair = features if isinstance(features, (tuple, list)) else (features, features)
    if len(pair) != 2:
        raise ValueError(
            f"Invalid features value: {features!r}; features must be a whole number or a pair"
        )
    out, width = (checks.whole("features", value, low=1) for value in pair)
    return out, width


def _width(model: nn.Module, name: str) -> int:
    """How many features a layer says that it puts out, or the one before it in a sequence."""
    modules = dict(model.named_modules())
    layer, parent = modules[name], modules[name.rpartition(".")[0]]
    before = [layer]
    if isinstance(parent, nn.Sequential):
        members = list(parent)
        before += reversed(members[: next(i for i, m in enumerate(members) if m is layer)])
    for module in before:
        if isinstance(module, nn.Flatten):
            break
        for attribute in _WIDTHS:
            if isinstance(getattr(module, attribute, None), int):
                return int(getattr(module, attribute))
        shape = getattr(module, "normalized_shape", None)
        if shape:
            return int(shape[-1])
    raise ValueError(
        "Invalid features value: None; features must be a whole number or a pair where a layer, "
        f"as {name!r} of class {type(layer).__name__}, does not tell how many come out of it"
    )
