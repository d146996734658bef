"""``Channels``: a task loss under budgets for other losses, on cooper's multipliers and optimizers.

What is here is names, order and the scaffold; multipliers, penalties and steps are cooper's (extra
``channels``). Whether a route of the network is needed for a channel is told by ``ablation.py``.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sal_optim.utils import checks
from sal_optim.utils.lazy_import import extra_package

TASK = "task"


class Channels:
    """Minimises a task loss subject to ``loss ≤ budget`` for each channel, by priority.

    The augmented Lagrangian of Nocedal & Wright (2006, eq. 17.64): with the excess g = loss -
    budget, multiplier λ and penalty r of each channel, the primal optimizer descends:

        task + Σ (max(0, λ + r·g)² - λ²) / (2r)

    and λ ← max(0, λ + dual_lr·g) ascends by the signed excess, so that it returns to 0 where a
    budget is kept with room to spare. A channel in ``scaffold`` takes part only in steps in which
    every channel before it keeps its budget; in other steps its multiplier rests. Since the step is
    taken here, a ``GradScaler`` has no place; autocast in bfloat16 has.

    Args:
        optimizer: the primal one, any that steps without a closure.
        budgets: largest loss allowed, by channel, the most important first, such as
            ``{"safety": 0.1, "memory": 0.3, "action": 0.5}``.
        scaffold: channels that wait for those before them. Default: ``memory``, if there is one.
        penalty: r, above 0. Where it is no larger than ``dual_lr``, multipliers oscillate.
        dual_lr: of cooper's dual optimizer, which is ``torch.optim.SGD``; above 0.
        tolerance: how far a loss may be above its budget and yet keep it, for the scaffold; at
            least 0. A budget that is just reached is overstepped in every second step or so.
        lowest: the lowest value that a loss can have, which no budget may be below; None where it
            is not known.
        limit: a multiplier from which a budget that is overstepped still can't be met; above 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        budgets: Mapping[str, float],
        *,
        scaffold: Iterable[str] | None = None,
        penalty: float = 10.0,
        dual_lr: float = 1.0,
        tolerance: float = 0.01,
        lowest: float | None = 0.0,
        limit: float = 1e4,
    ) -> None:
        checks.optimizer(optimizer)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError("Invalid optimizer value: LBFGS; optimizer must step without a closure")
        low = -math.inf if lowest is None else checks.number("lowest", lowest, low=-math.inf)
        self._lowest = low
        self.budgets = _budgets(budgets, low)
        self._scaffold = _scaffold(scaffold, list(self.budgets))
        self._tolerance = checks.number("tolerance", tolerance)
        self._limit = checks.number("limit", limit, low_open=True)
        penalty = checks.number("penalty", penalty, low_open=True)
        dual_lr = checks.number("dual_lr", dual_lr, low_open=True)
        params = (param for group in optimizer.param_groups for param in group["params"])
        device = next(params, torch.empty(())).device
        self._problem = _problem(list(self.budgets), penalty, device)
        dual = torch.optim.SGD(self._problem.dual_parameters(), lr=dual_lr, maximize=True)
        simultaneous = cooper_for("Channels").optim.SimultaneousOptimizer
        self._steps = simultaneous(self._problem, optimizer, dual)
        self._last: dict[str, float] = {}
        self._taking_part: dict[str, bool] = dict.fromkeys(self.budgets, False)

    def step(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Gradients, a step of the primal optimizer and one of the multipliers.

        Gradients that parameters had are dropped. Channels that are left out rest in this step, and
        do not keep those waiting that come after them.

        Args:
            losses: ``"task"`` and any of the channels: scalars with their graph.

        Returns:
            :meth:`diagnostics`, after the step.

        Raises:
            ValueError: the task is missing, a loss is no finite scalar or has no graph, or a budget
                can't be met: its multiplier is beyond ``limit``. Nothing has changed then.
        """
        values = self._checked(losses)
        keeps, states = True, {}
        taking_part = dict.fromkeys(self.budgets, False)
        for name, budget in self.budgets.items():
            if name in values:
                taking_part[name] = keeps or name not in self._scaffold
                keeps = keeps and values[name] <= budget + self._tolerance
                states[name] = (losses[name] - budget, taking_part[name])
        self._steps.roll(compute_cmp_state_kwargs={"task": losses[TASK], "states": states})
        self._last, self._taking_part = values, taking_part
        return self.diagnostics()

    def multipliers(self) -> dict[str, float]:
        """λ by channel."""
        return {name: m.weight.item() for name, m in self._problem.named_multipliers()}

    def diagnostics(self) -> dict[str, float]:
        """Floats for a logger, by channel: ``…_multiplier``, ``…_excess`` (the last loss less its
        budget) and ``…_active`` (1 where it took part in the last step)."""
        found: dict[str, float] = {}
        for name, multiplier in self.multipliers().items():
            found[f"{name}_multiplier"] = multiplier
            if name in self._last:
                found[f"{name}_excess"] = self._last[name] - self.budgets[name]
            found[f"{name}_active"] = float(self._taking_part[name])
        return found

    def set_budget(self, channel: str, budget: float) -> None:
        """Another budget from the next step on; the multiplier goes on from where it is."""
        channel = checks.choice("channel", channel, list(self.budgets))
        self.budgets[channel] = checks.number("budget", budget, low=self._lowest)

    def state_dict(self) -> dict[str, Any]:
        """Multipliers, penalties and budgets; the primal optimizer has a state of its own."""
        return {
            "problem": copy.deepcopy(self._problem.state_dict()),
            "budgets": dict(self.budgets),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            TypeError: it is no dict.
            ValueError: something is missing, it has other channels, or a budget is out of range.
        """
        checks.saved(state_dict, {"problem": Mapping, "budgets": Mapping})
        own, problem = self._problem.state_dict(), state_dict["problem"]
        checks.saved(problem, dict.fromkeys(own, Mapping))
        for found in (state_dict["budgets"], *(problem[part] for part in own)):
            if list(found) != list(self.budgets):
                raise ValueError(
                    f"Invalid state_dict value: channels {list(found)}; they must be "
                    f"{list(self.budgets)}"
                )
        budgets = _budgets(state_dict["budgets"], self._lowest)
        self._problem.load_state_dict(problem)
        self.budgets = budgets

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("Channels can't be copied or pickled: save its state_dict()")

    def _checked(self, losses: Any) -> dict[str, float]:
        """The losses' values, or an error."""
        known = [TASK, *self.budgets]
        if not isinstance(losses, Mapping) or TASK not in losses or set(losses) - set(known):
            given = list(losses) if isinstance(losses, Mapping) else f"a {type(losses).__name__}"
            raise ValueError(
                f"Invalid losses value: {given}; losses must have 'task' and may have "
                f"{known[1:]}, and nothing else"
            )
        for name, loss in losses.items():
            if not isinstance(loss, Tensor):
                raise TypeError(
                    f"Invalid losses value: {name!r} is a {type(loss).__name__}; losses must be "
                    "scalar tensors"
                )
            one = loss.numel() == 1 and loss.is_floating_point()
            if not (one and math.isfinite(loss.item()) and loss.requires_grad):
                what = loss.item() if one else f"of shape {tuple(loss.shape)}, {loss.dtype}"
                graph = "" if loss.requires_grad else ", without a graph"
                raise ValueError(
                    f"Invalid losses value: {name!r} is {what}{graph}; losses must be finite "
                    "scalars with the graph of the weights"
                )
        values = {name: loss.item() for name, loss in losses.items() if name != TASK}
        for name, multiplier in self.multipliers().items():
            if multiplier >= self._limit and values.get(name, -math.inf) > self.budgets[name]:
                raise ValueError(
                    f"Invalid budgets value: {name!r} has {self.budgets[name]:g}, which can't be "
                    f"met: its loss is {values[name]:g} with a multiplier of {multiplier:g}; "
                    f"budgets must be met with multipliers below the limit of {self._limit:g}"
                )
        return values


def _budgets(budgets: Any, lowest: float) -> dict[str, float]:
    allowed = "budgets must be a dict from names of channels, other than 'task', to numbers"
    if not isinstance(budgets, Mapping):
        raise TypeError(f"Invalid budgets value: {budgets!r}; {allowed}")
    names = list(budgets)
    if not names or TASK in names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"Invalid budgets value: {budgets!r}; {allowed}, at least one")
    return {name: checks.number(f"budgets[{name!r}]", budgets[name], low=lowest) for name in names}


def _scaffold(scaffold: Any, names: list[str]) -> frozenset[str]:
    if scaffold is None:
        return frozenset({"memory"} & set(names))
    given = list(scaffold) if isinstance(scaffold, Iterable) else [scaffold]
    if isinstance(scaffold, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"Invalid scaffold value: {scaffold!r}; scaffold must be a list of names")
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"Invalid scaffold value: {unknown}; scaffold must name some of {names}")
    return frozenset(given)


def cooper_for(user: str) -> Any:
    """The package cooper; raises an ImportError that names who needs it."""
    return extra_package("cooper", f"sal_optim.companions.{user} needs", "channels")


def _problem(names: list[str], penalty: float, device: torch.device) -> Any:
    """cooper's problem, with a constraint by channel."""
    cooper = cooper_for("Channels")

    def compute_cmp_state(self: Any, task: Tensor, states: dict[str, tuple[Tensor, bool]]) -> Any:
        constraints = dict(self.named_constraints())
        observed = {
            constraints[name]: cooper.ConstraintState(
                excess.reshape(()).to(constraints[name].multiplier.weight.dtype),
                contributes_to_primal_update=active,
                contributes_to_dual_update=active,
            )
            for name, (excess, active) in states.items()
        }
        return cooper.CMPState(task.reshape(()), observed)

    own = {name: cooper.multipliers.DenseMultiplier(1, device=device) for name in names}
    return augmented(cooper, "INEQUALITY", own, penalty, compute_cmp_state)


def augmented(
    cooper: Any,
    kind: str,
    multipliers: Mapping[str, Any],
    penalty: float,
    compute_cmp_state: Callable[..., Any],
) -> Any:
    """cooper's problem in the augmented Lagrangian, with a constraint for each multiplier."""
    base = cooper.ConstrainedMinimizationProblem
    problem = type("Problem", (base,), {"compute_cmp_state": compute_cmp_state})()
    for name, multiplier in multipliers.items():
        constraint = cooper.Constraint(
            cooper.ConstraintType[kind],
            multiplier=multiplier,
            formulation_type=cooper.formulations.AugmentedLagrangian,
            penalty_coefficient=cooper.penalty_coefficients.DensePenaltyCoefficient(
                torch.tensor(penalty).to(multiplier.weight)
            ),
        )
        setattr(problem, name, constraint)  # registers it
    return problem
