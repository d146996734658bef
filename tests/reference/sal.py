"""SAL, element by element, in plain Python: the formulas and nothing else.

No tensor, no in-place tricks, no slices, no lists of lists; it shares no line with ``sal_optim``.
Evidence is kept for every element, and a granularity is only how it is read: factored evidence is
linear in what is summed, so its row and column means can be taken at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

# Of the base optimizers: the exponent q of the activity, and whether an update has size 1.
EXPONENT = {"adam": 0, "sgd": 0, "lion": 2}
UNIT = {"adam": False, "sgd": False, "lion": True}
# The most that a regime's evidence is weighted by where updates have size 1.
LARGEST_WEIGHT = 10.0
# How much older evidence counts as the anchor moves to the present weights.
ANCHOR_MEMORY = 0.1
# Of the threshold.
WARMUP, SETTLE, CONFIRMATIONS, LARGEST_COUNT = 30, 10, 4.5, 3.0
# Evidence is gathered, and weights are pulled, on every fourth step of a regime.
INTERVAL = 4


def sign(value: float) -> float:
    return math.copysign(1.0, value) if value else 0.0


@dataclass
class Parameter:
    """One tensor, flattened, with the settings of its group."""

    shape: tuple[int, ...]
    values: list[float]
    settings: dict[str, Any]
    steps: int = 0
    moments: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.values)
        self.pending, self.evidence = [0.0] * size, [0.0] * size
        self.anchor: list[float] | None = None
        self.weight = 0.0  # of the evidence
        self.met = False  # a gradient

    def read(self, evidence: list[float]) -> list[float]:
        """Omega of each element, as its granularity sees it."""
        size, kind = len(evidence), self.settings["granularity"]
        if not size or kind == "element" or (kind == "factored" and len(self.shape) < 2):
            return evidence
        if kind == "tensor":
            return [sum(evidence) / size] * size
        rows, columns = self.shape[0], size // self.shape[0]
        row = [sum(evidence[r * columns : (r + 1) * columns]) / columns for r in range(rows)]
        column = [sum(evidence[c::columns]) / rows for c in range(columns)]
        mean = sum(row) / rows or 1.0
        return [row[i // columns] * column[i % columns] / mean for i in range(size)]

    def moment(self, name: str) -> list[float]:
        return self.moments.setdefault(name, [0.0] * len(self.values))


class Reference:
    """The whole optimizer. ``base`` is adam (also AdamW), sgd or lion."""

    def __init__(self, base: str, params: list[Parameter]) -> None:
        self.base, self.params = base, params
        self.consolidations, self.pending_steps = 0, 0
        self.unit = 0.0  # the mean norm as the first regime ended
        self.restart()

    # ------------------------------------------------------------------ the threshold

    def restart(self) -> None:
        self.regime, self.mean, self.variance, self.initial = 0, 0.0, 0.0, 0.0
        self.suspicion, self.suspected, self.held = 0.0, 0.0, 0.0

    def listen(self, norm: float) -> tuple[bool, float | None]:
        """Is the step ordinary; and the weight of a change that it confirms."""
        first = self.params[0].settings
        ready = self.regime >= WARMUP
        threshold = math.inf
        if ready:
            threshold = first["tau0"] + first["alpha"] * math.sqrt(self.variance) / self.mean
        surprise = norm / self.mean if self.mean else 1.0
        if not self.suspicion:
            self.held = threshold * self.mean
        surprising = ready and norm > self.held
        if surprising:
            count = min(1.0 + math.log2(norm / self.held), LARGEST_COUNT)
            self.suspicion += count
            self.suspected += count * surprise
            if self.suspicion >= CONFIRMATIONS:
                return False, self.suspected / self.suspicion
        elif self.suspicion:
            left = max(0.0, self.suspicion - 1.0)
            self.suspected *= left / self.suspicion
            self.suspicion = left
        self.record(min(norm, threshold * self.mean) if ready else norm)
        return not surprising, None

    def record(self, norm: float) -> None:
        self.regime += 1
        if self.regime <= 5:
            self.initial = max(self.initial, norm)
        beta = self.params[0].settings["stats_beta"]
        weight = max(1.0 - beta, 1.0 / max(1, self.regime - SETTLE))
        delta = norm - self.mean
        self.mean += weight * delta
        self.variance = (1.0 - weight) * (self.variance + weight * delta * delta)

    def decline(self) -> float:
        return max(1.0, self.initial / self.mean) if self.mean else 1.0

    # ------------------------------------------------------------------ consolidation

    def consolidate(self, weight: float | None = None) -> None:
        if not self.pending_steps:
            return
        weight = self.decline() if weight is None else weight
        if not self.unit:
            self.unit = self.mean
        if UNIT[self.base]:
            weight = min(weight, LARGEST_WEIGHT)
        else:
            weight *= self.mean / self.unit
        for param in self.params:
            retention = param.settings["retention"]
            before = [retention * omega for omega in param.read(param.evidence)]
            param.weight = retention * param.weight + weight * param.met
            for i, gathered in enumerate(param.pending):
                param.evidence[i] *= retention
                param.evidence[i] += weight * gathered / self.pending_steps
                param.pending[i] = 0.0
            after = param.read(param.evidence)
            if param.anchor is not None:
                for i, value in enumerate(param.values):
                    # Factored evidence may fall where another element's rose.
                    gained = max(0.0, after[i] - before[i])
                    if gained:
                        share = gained / (ANCHOR_MEMORY * before[i] + gained)
                        param.anchor[i] += share * (value - param.anchor[i])
            if param.settings["protection"] > 0:
                for name in ("exp_avg", "momentum_buffer"):
                    if name in param.moments:
                        param.moments[name] = [0.0] * len(param.values)
        self.make_room()
        self.pending_steps = 0
        self.restart()
        self.consolidations += 1

    def mean_gate(self, scale: float) -> float:
        gates = [
            1.0 / (1.0 + param.settings["protection"] * scale * omega)
            for param in self.params
            if param.settings["protection"] > 0 and param.weight > 0
            for omega in param.read(param.evidence)
        ]
        return sum(gates) / len(gates) if gates else 1.0

    def make_room(self) -> None:
        least = self.params[0].settings["plasticity"]
        if not least or self.mean_gate(1.0) >= least:
            return
        low, high = -32.0, 0.0
        for _ in range(20):
            middle = (low + high) / 2
            if self.mean_gate(2.0**middle) < least:
                high = middle
            else:
                low = middle
        for param in self.params:
            if param.settings["protection"] > 0:
                param.evidence = [omega * 2.0**low for omega in param.evidence]

    # ------------------------------------------------------------------ the step

    def step(self, grads: list[list[float] | None], *, observing: bool = False) -> None:
        scalars = [g for grad in grads if grad is not None for g in grad]
        norm, size = math.sqrt(sum(g * g for g in scalars)), len(scalars)
        rates = [param.settings["lr"] for param in self.params]
        informative = 0.0 < norm < math.inf and (observing or any(rates))
        ordinary = informative
        if informative and observing:
            self.record(norm)
        if informative and not observing:
            every = self.params[0].settings["consolidate_every"]
            if every is not None and self.regime >= every:
                self.consolidate()
            ordinary, change = self.listen(norm)
            if change is not None:
                for param, grad in zip(self.params, grads, strict=True):
                    if grad is not None:
                        self.take_back(param)
                self.consolidate(change)
                ordinary, _ = self.listen(norm)
        due = informative and (observing or self.regime % INTERVAL == 1)
        gathers = ordinary and due
        self.pending_steps += gathers
        root_mean_square = norm / math.sqrt(size) if informative else math.inf
        for param, grad in zip(self.params, grads, strict=True):
            if grad is None:
                continue
            param.met = True
            if param.anchor is None and param.settings["pull"] > 0:
                param.anchor = list(param.values)
            if gathers:
                for i, g in enumerate(grad):
                    param.pending[i] += (g / root_mean_square) ** 2
            if not observing:
                param.steps += 1
                self.move(param, grad, root_mean_square, size if due else 0)

    def move(self, param: Parameter, grad: list[float], rms: float, pulled: int) -> None:
        """``pulled``: over how many scalars the norm is taken, where the pull is due; else 0."""
        group = param.settings
        lr, decay, protection = group["lr"], group["weight_decay"], group["protection"]
        decoupled = group.get("decoupled", False)
        omega = param.read(param.evidence)
        for i, value in enumerate(param.values):
            g = -grad[i] if group["maximize"] else grad[i]
            update, denominator = self.update(param, i, g if decoupled else g + decay * value)
            activity = max(abs(grad[i]) / rms, 1e-12)
            resistance = 1.0 + protection * omega[i] / activity ** EXPONENT[self.base]
            new = value - lr * (update + (decay * value if decoupled else 0.0)) / resistance
            if pulled and param.anchor is not None and group["pull"] > 0:
                unit = 1.0 if UNIT[self.base] else self.unit / math.sqrt(pulled)
                step = lr * self.gain(group) * INTERVAL
                k = step * protection * group["pull"] * omega[i] * unit / denominator
                new += k / (1.0 + k) * (param.anchor[i] - new)
            param.values[i] = new

    def take_back(self, param: Parameter) -> None:
        """Undo the last update of a parameter, as its moments still tell it."""
        group = param.settings
        known = self.base == "adam" or (
            self.base == "sgd" and group["momentum"] and not group["nesterov"]
        )
        if not known or not group["protection"] or not param.steps:
            return
        omega = param.read(param.evidence)
        for i in range(len(param.values)):
            if self.base == "adam":
                update = self.adam(param, i)[0]
            else:
                update = param.moment("momentum_buffer")[i]
            gate = 1.0 / (1.0 + group["protection"] * omega[i])
            param.values[i] += group["lr"] * update * gate

    def gain(self, group: dict[str, Any]) -> float:
        """Steps that a lasting gradient of 1 is worth, by momentum."""
        momentum = group.get("momentum", 0.0)
        return (1.0 - group["dampening"]) / (1.0 - momentum) if 0.0 < momentum < 1.0 else 1.0

    def update(self, param: Parameter, i: int, g: float) -> tuple[float, float]:
        """The base optimizer's own update of one element, and what it divided the gradient by."""
        group = param.settings
        if self.base == "sgd":
            return self.sgd(param, i, g), 1.0
        beta1, beta2 = group["betas"]
        m = param.moment("exp_avg")
        if self.base == "lion":
            blend = beta1 * m[i] + (1 - beta1) * g
            m[i] = beta2 * m[i] + (1 - beta2) * g
            return sign(blend), 1.0
        v = param.moment("exp_avg_sq")
        m[i] = beta1 * m[i] + (1 - beta1) * g
        v[i] = beta2 * v[i] + (1 - beta2) * g * g
        if group["amsgrad"]:
            largest = param.moment("max_exp_avg_sq")
            largest[i] = max(largest[i], v[i])
            v = largest
        return self.adam(param, i)

    def adam(self, param: Parameter, i: int) -> tuple[float, float]:
        """Adam's update of one element by its moments as they are, and its denominator."""
        group, step = param.settings, param.steps
        beta1, beta2 = group["betas"]
        v = param.moment("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq")
        denominator = math.sqrt(v[i] / (1 - beta2**step)) + group["eps"]
        return param.moment("exp_avg")[i] / (1 - beta1**step) / denominator, denominator

    def sgd(self, param: Parameter, i: int, g: float) -> float:
        group = param.settings
        momentum = group["momentum"]
        if not momentum:
            return g
        buffer = param.moment("momentum_buffer")
        whole = param.steps == 1  # a first gradient enters without dampening
        buffer[i] = g if whole else momentum * buffer[i] + (1 - group["dampening"]) * g
        return g + momentum * buffer[i] if group["nesterov"] else buffer[i]
