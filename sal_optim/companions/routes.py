"""``TypedRoutes``: a small mixture of experts in which each channel's loss trains its own expert.

The losses and their budgets are ``Channels``'s (``channels.py``). Whether a route carries its
channel is told by :func:`route_gaps`, which is ``necessity_gap`` for each route and metric.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sal_optim.companions.ablation import necessity_gap
from sal_optim.utils import checks


class TypedRoutes(nn.Module):
    """y = Σ g_r(x) · E_r(x): experts with one hidden layer of ReLU, and a softmax gate g over them.

    Called with a channel, the output is the same, but gradients flow into that channel's expert and
    the gate alone, so that a loss is paid by its own route. Called without, all experts have
    gradients: untyped routing of the same size.

    Args:
        inputs: features of a sample.
        hidden: width of each expert.
        outputs: of the mixture.
        names: of the routes, two or more; those of channels, the task's among them.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        names: Sequence[str] = ("task", "memory", "safety"),
    ) -> None:
        super().__init__()
        self.names = checks.names("names", names)
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise ValueError(f"Invalid names value: {names!r}; names must be 2 or more, different")
        for name in self.names:
            if not name or "." in name or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"Invalid names value: {name!r}; names must not be empty, have a dot, or be "
                    "that of an attribute of torch.nn.ModuleDict"
                )
        inputs = checks.whole("inputs", inputs, low=1)
        hidden = checks.whole("hidden", hidden, low=1)
        outputs = checks.whole("outputs", outputs, low=1)
        self.gate = nn.Linear(inputs, len(self.names))
        self.routes = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
                )
                for name in self.names
            }
        )

    def forward(self, x: Tensor, channel: str | None = None) -> Tensor:
        """Samples by inputs -> samples by outputs."""
        if channel is not None:
            channel = checks.choice("channel", channel, self.names)
        shares = self._shares(x)
        out = x.new_zeros(())
        for place, (name, route) in enumerate(self.routes.items()):
            found = route(x)
            if channel not in (None, name):
                found = found.detach()
            out = out + shares[..., place : place + 1] * found
        return out

    @torch.no_grad()
    def shares(self, x: Tensor) -> dict[str, float]:
        """Mean share of each route in the gate, over the samples."""
        means = self._shares(x).reshape(-1, len(self.names)).mean(0)
        return dict(zip(self.names, means.tolist(), strict=True))

    def _shares(self, x: Tensor) -> Tensor:
        features = self.gate.in_features
        allowed = f"x must be a tensor of samples by {features} features"
        checks.kind("x", x, Tensor, allowed)
        if x.shape[-1:] != (features,):
            raise ValueError(f"Invalid x value: shape {tuple(x.shape)}; {allowed}")
        return self.gate(x).softmax(-1)  # type: ignore[no-any-return]


def route_gaps(
    routes: Mapping[str, nn.Module] | nn.ModuleDict,
    metrics: Mapping[str, Callable[[], float | Tensor]],
    how: str = "zero",
    *,
    repeats: int = 5,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """``necessity_gap`` of each route for each metric: ``found[route][metric]``.

    A route carries its channel where the gap of its own metric is clearly above 0, and above those
    of the other metrics.

    Args:
        routes: modules by name, such as ``typed.routes``.
        metrics: by channel; each takes nothing and returns a number that is higher when better.
        how: ``"zero"``, ``"mean"`` or ``"scramble"``, as of ``ablate``.
        repeats: times that a scramble is drawn anew.
        seed: of the scrambles.

    Raises:
        ValueError: as of ``necessity_gap``.
    """
    for name, value in (("routes", routes), ("metrics", metrics)):
        checks.kind(name, value, (Mapping, nn.ModuleDict), f"{name} must be a dict by name")
    times = repeats if how == "scramble" else 1
    return {
        route: {
            name: necessity_gap(module, metric, how, repeats=times, seed=seed)
            for name, metric in metrics.items()
        }
        for route, module in routes.items()
    }
