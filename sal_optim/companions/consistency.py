"""``ConsistencyEdges``: blocks of a network that are trained side by side, joined by constraints.

No gradient passes from one block to another. Multipliers and the augmented Lagrangian are cooper's
(extra ``channels``). Which samples are stepped on, and where blocks run, is the caller's.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim.companions.channels import augmented, cooper_for
from sal_optim.utils import checks

Make = Callable[[Iterable[nn.Parameter]], Optimizer]


class ConsistencyEdges:
    """Trains blocks f₁ … f_K on a fixed set of samples, with an edge between each two.

    Each edge k has a value z_k for each sample, and holds f_k(z_{k-1}) = z_k by multipliers λ_k and
    a penalty r, with z₀ = x; the loss is that of f_K(z_{K-1}):

        loss(f_K(z_{K-1}), y) + Σ_k [ λ_k·h_k + r/2·|h_k|² ],        h_k = f_k(z_{k-1}) - z_k

    - :meth:`local` steps the weights of each block on its own term, with z and λ as they are. The
      blocks need nothing of each other for that.
    - :meth:`outer` steps z along the gradient, and then λ ← λ + r·h.

    The method of auxiliary coordinates (Carreira-Perpiñán & Wang 2014, arXiv 1212.5921) with the
    multipliers of Taylor et al. (2016, arXiv 1605.02026), by gradient steps. It keeps two numbers
    for each sample and feature of each edge.

    Args:
        blocks: two or more modules; each takes what the one before puts out, samples first.
        inputs: all training samples; the first dimension is that of samples.
        targets: of the samples, in the same order.
        loss: of the last block's output and targets, averaged over samples. Default: cross-entropy.
        optimizer: makes the optimizer of a block's parameters. Default: ``Adam(lr=1e-3)``.
        penalty: r, above 0.
        edge_lr: step of z, above 0. Above 2 / r it diverges.

    Raises:
        ValueError: there are fewer than 2 blocks or samples, targets of another number, or a block
            that puts out no samples by features.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        optimizer: Make | None = None,
        penalty: float = 1.0,
        edge_lr: float = 0.5,
    ) -> None:
        self.blocks = _blocks(blocks)
        for name, value in (("inputs", inputs), ("targets", targets)):
            if not isinstance(value, Tensor) or not value.dim() or len(value) < 2:
                shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
                raise TypeError(
                    f"Invalid {name} value: a {type(value).__name__}{shape}; {name} must be a "
                    "tensor of 2 samples or more"
                )
        if len(inputs) != len(targets):
            raise ValueError(
                f"Invalid targets value: {len(targets)} samples; targets must be as many as the "
                f"{len(inputs)} inputs"
            )
        loss = nn.functional.cross_entropy if loss is None else loss
        checks.function("loss", loss, "a function of outputs and targets")
        self._x, self._y, self._loss = inputs, targets, loss
        self.penalty = checks.number("penalty", penalty, low_open=True)
        self.edge_lr = checks.number("edge_lr", edge_lr, low_open=True)
        make = partial(torch.optim.Adam, lr=1e-3) if optimizer is None else optimizer
        checks.function("optimizer", make, "a function of parameters")
        self.optimizers = [make(block.parameters()) for block in self.blocks]
        for made in self.optimizers:
            allowed = "optimizer must make one of torch.optim that steps without a closure"
            checks.kind("optimizer", made, Optimizer, allowed)
            if isinstance(made, torch.optim.LBFGS):
                raise TypeError(f"Invalid optimizer value: LBFGS; {allowed}")
        self.values = self._forward()
        self._problem, self._edges = _problem(self.values, self.penalty)
        # The method of multipliers ascends by r.
        self._dual = torch.optim.SGD(
            self._problem.dual_parameters(), lr=self.penalty, maximize=True
        )

    @property
    def edges(self) -> int:
        """Number of edges: one less than blocks."""
        return len(self.values)

    def multiplier(self, edge: int) -> Tensor:
        """λ of an edge, samples by features: the tensor itself."""
        weight: Tensor = self._edges[edge].multiplier.weight.data
        return weight.view(len(self._x), -1)

    def local(self, rows: Tensor, block: int | None = None) -> float:
        """A step of one block's weights, or of each in turn, on samples of these numbers.

        Returns:
            The sum of the terms that were stepped on, averaged over samples.

        Raises:
            ValueError: there is no such block, or no rows.
        """
        rows = self._rows(rows)
        chosen: Sequence[int] = range(len(self.blocks))
        if block is not None:
            allowed = f"block must be a whole number from 0, below {len(self.blocks)}"
            chosen = [checks.whole("block", block, low=0, high=chosen[-1], allowed=allowed)]
        total = 0.0
        for place in chosen:
            self.optimizers[place].zero_grad()
            value = self._term(place, rows, self._given(place, rows)) / len(rows)
            value.backward()  # type: ignore[no-untyped-call]
            self.optimizers[place].step()
            total += float(value.detach())
        return total

    def outer(self, rows: Tensor) -> None:
        """A step of z and of λ on samples of these numbers.

        Raises:
            ValueError: there are no rows.
        """
        rows = self._rows(rows)
        held = [value[rows].requires_grad_() for value in self.values]
        given = [self._x[rows], *held]
        whole = sum(self._term(k, rows, given[k], given) for k in range(len(self.blocks)))
        assert isinstance(whole, Tensor)
        for value, old, grad in zip(
            self.values, held, torch.autograd.grad(whole, held), strict=True
        ):
            value[rows] = old.detach() - self.edge_lr * grad
        with torch.no_grad():
            states = {
                self._edges[k]: self._state(k, rows, self.blocks[k](self._given(k, rows)))
                for k in range(self.edges)
            }
        self._dual.zero_grad()
        _cooper().CMPState(None, states).compute_dual_lagrangian().backward()
        self._dual.step()

    @torch.no_grad()
    def violations(self) -> list[float]:
        """|h| / |z| of each edge, over all samples; 0 where blocks are consistent."""
        everything = torch.arange(len(self._x), device=self._x.device)
        found = []
        for k, value in enumerate(self.values):
            gap = self.blocks[k](self._given(k, everything)) - value
            found.append(float(gap.norm() / value.norm().clamp_min(1e-30)))
        return found

    def model(self) -> nn.Sequential:
        """The blocks as one network, with the same weights."""
        return nn.Sequential(*self.blocks)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "ConsistencyEdges can't be copied or pickled: save values, multiplier() of each edge, "
            "and the state_dict() of blocks and optimizers"
        )

    def _given(self, place: int, rows: Tensor) -> Tensor:
        return self._x[rows] if place == 0 else self.values[place - 1][rows]

    def _term(
        self, place: int, rows: Tensor, given: Tensor, held: list[Tensor] | None = None
    ) -> Tensor:
        """A block's part of the Lagrangian, summed over samples."""
        out = self.blocks[place](given)
        if place == self.edges:
            return self._loss(out, self._y[rows]) * len(rows)
        target = self.values[place][rows] if held is None else held[place + 1]
        state = {self._edges[place]: self._state(place, rows, out, target)}
        found: Tensor = _cooper().CMPState(None, state).compute_primal_lagrangian().lagrangian
        return found

    def _state(self, edge: int, rows: Tensor, out: Tensor, target: Tensor | None = None) -> Any:
        """cooper's state of a constraint: a violation by sample and feature, and their places."""
        target = self.values[edge][rows] if target is None else target
        gap = (out - target).flatten(1)
        width = gap.shape[1]
        places = rows[:, None] * width + torch.arange(width, device=rows.device)
        gap = gap.to(self._edges[edge].multiplier.weight.dtype)
        return _cooper().ConstraintState(gap.flatten(), constraint_features=places.flatten())

    def _rows(self, rows: Any) -> Tensor:
        allowed = f"rows must be a tensor of one or more numbers below {len(self._x)}"
        if not isinstance(rows, Tensor) or rows.dtype != torch.long or rows.dim() != 1:
            raise ValueError(f"Invalid rows value: {rows!r:.80}; {allowed}")
        if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(self._x):
            raise ValueError(f"Invalid rows value: {len(rows)} of them; {allowed}")
        return rows.to(self._x.device)

    @torch.no_grad()
    def _forward(self) -> list[Tensor]:
        """What each block but the last puts out of all samples."""
        found, now = [], self._x
        for place, block in enumerate(self.blocks[:-1]):
            now = block(now)
            if not isinstance(now, Tensor) or not now.is_floating_point():
                raise TypeError(
                    f"Invalid blocks value: block {place} puts out a {type(now).__name__}; blocks "
                    "must put out tensors of floating dtype"
                )
            if now.dim() < 2 or len(now) != len(self._x):
                raise ValueError(
                    f"Invalid blocks value: block {place} puts out shape {tuple(now.shape)} of "
                    f"{len(self._x)} samples; blocks must put out samples by features"
                )
            found.append(now.detach().clone())
        return found


def _blocks(blocks: Any) -> list[nn.Module]:
    allowed = "blocks must be two or more modules that have parameters to train"
    found = list(blocks) if isinstance(blocks, (list, tuple, nn.Sequential, nn.ModuleList)) else []
    if len(found) < 2 or not all(isinstance(block, nn.Module) for block in found):
        raise ValueError(f"Invalid blocks value: {len(found)} modules; {allowed}")
    for place, block in enumerate(found):
        if not any(param.requires_grad for param in block.parameters()):
            raise ValueError(f"Invalid blocks value: block {place} has none; {allowed}")
    return found


def _cooper() -> Any:
    return cooper_for("ConsistencyEdges")


def _problem(values: list[Tensor], penalty: float) -> tuple[Any, list[Any]]:
    """cooper's problem, with an equality for each number of each edge."""
    cooper = _cooper()
    made = cooper.multipliers.IndexedMultiplier
    own = {
        f"edge{k}": made(
            v.numel(), device=v.device, dtype=torch.promote_types(v.dtype, torch.float32)
        )
        for k, v in enumerate(values)
    }
    # Its states are made by the caller, phase by phase.
    problem = augmented(cooper, "EQUALITY", own, penalty, lambda self: cooper.CMPState())
    return problem, [constraint for _, constraint in problem.named_constraints()]
