"""``Drift``: how far a network has moved from where it was, in weights, outputs and features.

It compares one network with its own past on a probe batch. Whether data is new is told by
``shift.py``; the drift from an optimizer's anchor is in its ``diagnostics()``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sal_optim.companions.activations import Tap, as_rows, layer_of, tensor_of, unwrapped
from sal_optim.utils import checks
from sal_optim.utils.evaluating import evaluating

_PROBE = (
    "probe must be a tensor, a tuple of arguments or a dict of named ones, of at least 2 samples"
)


class Drift:
    """Keeps a network's weights, outputs and features as they are, to compare with later.

    ``measure()`` runs the network on the probe in ``eval()`` mode, without gradients, and puts the
    mode of each module back. It keeps a copy of the weights that train, on their device.

    Args:
        model: the network.
        probe: a batch of what the network takes: a tensor, a tuple of arguments, or a dict of named
            ones; at least 2 samples. It is kept, not copied.
        layer: name of the layer whose features are compared, as in ``model.named_modules()``.
            Default: the output.

    Raises:
        TypeError: the network puts out no tensor of floating dtype, ``.logits`` or tuple that
            begins with one.
        ValueError: the network has no weights.
    """

    def __init__(self, model: nn.Module, probe: Any, layer: str | None = None) -> None:
        self._model = unwrapped(model)
        if layer is not None:
            layer_of(model, layer)
        self._layer = layer
        self._probe = _probe(probe)
        self._weights = {
            name: param.detach().clone()
            for name, param in self._model.named_parameters()
            if param.requires_grad
        }
        if not any(weight.numel() for weight in self._weights.values()):
            raise ValueError(
                f"Invalid model value: a {type(model).__name__} without parameters that require a "
                "gradient; model must have some"
            )
        self._outputs, self._features = self._run()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """How far the network has moved, as floats for a logger.

        - ``drift_weights``: norm(w - w₀) / norm(w₀), of all weights together.
        - ``drift_kl``: mean KL(p₀ ‖ p) in nats of the softmax of the outputs, over the probe; 0 if
          the predictions are the same. Outputs of one feature are logits of a yes.
        - ``drift_cka``: linear CKA of the features then and now (Kornblith et al. 2019,
          arXiv 1905.00414): 1 if they are the same up to rotation and scale.

        Raises:
            ValueError: the network has other weights, or other shapes of outputs, than it had.
        """
        outputs, features = self._run()
        if outputs.shape != self._outputs.shape or len(features) != len(self._features):
            raise ValueError(
                f"Invalid model value: its output has shape {tuple(outputs.shape)}; model must put "
                f"out {tuple(self._outputs.shape)}, as it did"
            )
        return {
            "drift_weights": self._relative_distance(),
            "drift_kl": _kl(self._outputs, outputs),
            "drift_cka": linear_cka(self._features, features),
        }

    def _relative_distance(self) -> float:
        now = dict(self._model.named_parameters())
        other = [
            name
            for name, weight in self._weights.items()
            if name not in now or now[name].shape != weight.shape
        ]
        if other:
            raise ValueError(
                f"Invalid model value: {other[0]!r} is gone or has another shape; model must have "
                "the weights that it had"
            )
        moved = start = 0.0
        for name, weight in self._weights.items():
            # abs() for complex ones.
            moved += (now[name].detach().to(weight) - weight).abs().double().square().sum().item()
            start += weight.abs().double().square().sum().item()
        if start == 0.0:
            return 0.0 if moved == 0.0 else float("inf")
        return float((moved / start) ** 0.5)

    @torch.no_grad()
    def _run(self) -> tuple[Tensor, Tensor]:
        """Outputs and features on the probe, as rows."""
        tap = None if self._layer is None else Tap(self, self._model, self._layer, detach=True)
        try:
            with evaluating(self._model):
                args, named = self._probe
                output = _output(self._model(*args, **named))
            caught = output if tap is None else tap.caught
        finally:
            if tap is not None:
                tap.remove()
        if caught is None:
            raise ValueError(
                f"Invalid layer value: {self._layer!r}; layer must take part when the model runs "
                "on the probe"
            )
        outputs, features = as_rows(output), as_rows(caught)
        if len(outputs) < 2 or len(features) < 2 or outputs.shape[1] < 1:
            raise ValueError(
                f"Invalid probe value: the model puts out {tuple(output.shape)} of it; {_PROBE}"
            )
        return outputs.float().clone(), features.float().clone()


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same samples, in [0, 1].

    ``norm(YᵀX)² / (norm(XᵀX) norm(YᵀY))`` in Frobenius norms of centred matrices. Of one that does
    not vary it is 0, unless both are equal.

    Args:
        x: samples by features.
        y: as many samples by features, as many or other ones.

    Raises:
        TypeError: one of them is no tensor of real numbers.
        ValueError: they have no 2 dimensions, fewer than 2 samples, or not as many.
    """
    for name, value in (("x", x), ("y", y)):
        checks.kind(name, value, Tensor, f"{name} must be a tensor")
        if value.is_complex():
            raise TypeError(f"Invalid {name} value: {value.dtype}; {name} must be of real numbers")
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"Invalid x and y values: shapes {tuple(x.shape)} and {tuple(y.shape)}; x and y must "
            "be matrices of as many samples, at least 2"
        )
    if x.shape == y.shape and bool(torch.equal(x, y)):
        return 1.0
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    if x.shape[1] > len(x) or y.shape[1] > len(x):
        # As much, by matrices of samples by samples.
        kx, ky = x @ x.T, y @ y.T
        cross, own = (kx * ky).sum(), kx.norm() * ky.norm()
    else:
        cross, own = (y.T @ x).square().sum(), (x.T @ x).norm() * (y.T @ y).norm()
    return min(1.0, float(cross / own)) if float(own) > 0.0 else 0.0


def _kl(before: Tensor, now: Tensor) -> float:
    if before.shape[1] == 1:
        before, now = (torch.cat([logit, torch.zeros_like(logit)], 1) for logit in (before, now))
    p, q = before.double().log_softmax(1), now.double().log_softmax(1)
    return max(0.0, (p.exp() * (p - q)).sum(1).mean().item())


def _probe(probe: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(probe, Tensor):
        args = (probe,)
    elif isinstance(probe, Mapping):
        named = dict(probe)
    elif isinstance(probe, (tuple, list)):
        args = tuple(probe)
    else:
        raise TypeError(f"Invalid probe value: a {type(probe).__name__}; {_PROBE}")
    tensors = [value for value in (*args, *named.values()) if isinstance(value, Tensor)]
    if not tensors or any(value.numel() == 0 for value in tensors):
        shapes = [tuple(value.shape) for value in tensors]
        raise ValueError(f"Invalid probe value: tensors of shapes {shapes}; {_PROBE}")
    return args, named


def _output(output: Any) -> Tensor:
    first = tensor_of(getattr(output, "logits", output))
    if first is None:
        raise TypeError(
            f"Invalid model value: it puts out a {type(output).__name__}; model must put out a "
            "tensor of floating dtype, one as .logits, or a tuple that begins with one"
        )
    return first
