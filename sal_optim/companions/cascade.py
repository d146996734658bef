"""``Cascade``: a checkpoint is perturbed and trained in branches, which live on, merge or die.

It keeps and swaps checkpoints, and counts scores. How a branch is trained, and on which data it is
scored, is the caller's. The tree of branches is drawn by ``lineage.py``.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim.companions.lineage import Node
from sal_optim.utils import checks
from sal_optim.utils.rounding import wide

_EPS = 1e-3  # of the mean importance, so that weights without any are averaged plainly


class _Kept(NamedTuple):
    """A checkpoint: both state dicts, and its node in the lineage."""

    node: Node
    model: dict[str, Any]
    optimizer: dict[str, Any]


class Cascade:
    """Trains branches of a network side by side in one model, by rounds.

    Each :meth:`round`:

    - *pulse*: the checkpoints that live are shared out over the branches. The first branch of each
      is itself; to the weights of others, noise is added: ``pulse`` · rms(w) · n / (1 + i/mean(i))
      for each tensor w, with n normal, so that weights of little importance i move most.
    - *split*: ``train(branch)`` trains each of them.
    - *cascade*: all are scored. A merger of the best ``survivors``, weights averaged by importance
      (Matena & Raffel 2022, arXiv 2111.09832), is scored too. The best ``survivors`` of all these
      live on, the others die. Then the model is the best one.

    Importance is the running mean of squared gradients in the optimizer's state, ``exp_avg_sq``, an
    estimate of the diagonal empirical Fisher; where there is none, all weights count alike. Between
    rounds it keeps a copy of the model and of the optimizer's state for each that lives, and within
    one for each branch. Outside of a round it does nothing.

    Args:
        model: the network; other parameters than the optimizer's are kept and swapped too.
        optimizer: of its weights, any of ``torch.optim``'s kind.
        score: takes nothing and returns a finite number, higher when better, such as the accuracy
            on held-out data. It is called in the mode that the model is in, without gradients.
        branches: of each round, at least 2.
        survivors: checkpoints that live on, from 1 to ``branches``.
        pulse: size of the noise, relative to the weights; at least 0.
        merge: whether mergers are tried.
        seed: of the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        score: Callable[[], float | Tensor],
        branches: int = 4,
        *,
        survivors: int = 2,
        pulse: float = 0.01,
        merge: bool = True,
        seed: int = 0,
    ) -> None:
        checks.optimizer(optimizer)
        self._model = checks.model(model, optimizer.param_groups)
        self._optimizer = optimizer
        checks.function("score", score, "a function without arguments")
        self._score = score
        self.branches = checks.whole("branches", branches, low=2)
        allowed = f"survivors must be a whole number from 1, at most the {self.branches} branches"
        self.survivors = checks.whole(
            "survivors", survivors, low=1, high=self.branches, allowed=allowed
        )
        self.pulse = checks.number("pulse", pulse)
        self.merge = checks.flag("merge", merge)
        self._draw = torch.Generator().manual_seed(checks.whole("seed", seed, low=0))
        self.rounds = 0
        self.lineage: list[Node] = []
        self._living: list[_Kept] = []

    def round(self, train: Callable[[int], None]) -> float:
        """Pulse, split and cascade once; the score of the best, which the model then is.

        Args:
            train: takes the number of the branch and trains the model with the optimizer.

        Raises:
            ValueError: the score is no finite number. The model is then as that branch was.
        """
        checks.function("train", train, "a function of the number of the branch")
        if not self._living:
            self._living = [self._keep((), "lives")]
        parents, found = self._living, list[_Kept]()
        for branch in range(self.branches):
            parent = parents[branch % len(parents)]
            self._load(parent)
            if branch >= len(parents):
                self._perturb()
            train(branch)
            found.append(self._keep((parent.node.id,), "dies", self.rounds + 1))
        self.rounds += 1
        found.sort(key=lambda kept: -kept.node.score)
        if self.merge and self.survivors > 1:
            found.append(self._merged(found[: self.survivors]))
            found.sort(key=lambda kept: -kept.node.score)
        self._living = []
        for kept in found[: self.survivors]:
            node = self.lineage[kept.node.id] = kept.node._replace(fate="lives")
            self._living.append(kept._replace(node=node))
        self._load(self._living[0])
        return self._living[0].node.score

    def restart(self) -> None:
        """Begin the next round from the model as it is; the lineage goes on."""
        self._living = []

    def _keep(self, parents: tuple[int, ...], fate: str, at: int | None = None) -> _Kept:
        """A copy of what the model is now, scored."""
        with torch.no_grad():
            score = checks.number("score()", self._score(), low=-math.inf)
        at = self.rounds if at is None else at
        node = Node(len(self.lineage), parents, at, score, fate)
        self.lineage.append(node)
        state = {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in self._model.state_dict().items()
        }
        return _Kept(node, state, copy.deepcopy(self._optimizer.state_dict()))

    def _load(self, kept: _Kept) -> None:
        self._model.load_state_dict(kept.model)
        self._optimizer.load_state_dict(copy.deepcopy(kept.optimizer))

    @torch.no_grad()
    def _perturb(self) -> None:
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                own = _real(param)
                noise = torch.randn(
                    own.shape, generator=self._draw, dtype=torch.float32, device="cpu"
                )
                size = self.pulse * _wide(own).square().mean().sqrt()
                importance = self._importance(param)
                free = 1.0 / (1.0 + importance / importance.mean().clamp_min(1e-30))
                own.add_((size * free * noise.to(own.device)).to(own.dtype))

    def _importance(self, param: Tensor) -> Tensor:
        """Mean squared gradient of each real weight; ones where it is not kept."""
        found = self._optimizer.state.get(param, {}).get("exp_avg_sq")
        if not isinstance(found, Tensor) or found.shape != param.shape:
            return torch.ones_like(_wide(_real(param)))
        return _wide(_real(found))

    @torch.no_grad()
    def _merged(self, best: list[_Kept]) -> _Kept:
        """A checkpoint whose weights are averages by importance; the rest is of the best one."""
        trained = {param for group in self._optimizer.param_groups for param in group["params"]}
        params = [param for param in self._model.parameters() if param in trained]
        sums: dict[Tensor, tuple[Tensor, Tensor]] = {}
        for kept in best:
            self._load(kept)
            for param in params:
                importance = self._importance(param)
                weight = importance + _EPS * importance.mean() + 1e-30
                total, weights = sums.get(param, (0.0, 0.0))
                sums[param] = (total + weight * _wide(_real(param)), weights + weight)
        self._load(best[0])
        for own, (total, weights) in sums.items():
            _real(own).copy_(total / weights)
        return self._keep(tuple(kept.node.id for kept in best), "dies")


def _real(tensor: Tensor) -> Tensor:
    """The tensor itself, or of a complex one its real and imaginary parts."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(wide(tensor.dtype))
