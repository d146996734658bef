"""SAL in its plainest form: the formulas and nothing else; it shares no line with ``sal_optim``.

All is float64. Nothing is stored that the formulas do not name: factored importance is linear in
what is summed, so its row and column means are taken as it is read; the importance of a matrix by
direction is a dense matrix over all of its elements. Only the constants are the library's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sal_optim.detection import change_detector as detection
from sal_optim.detection import descent, novelty, pooled
from sal_optim.protection import clock, consolidation, controller, gradients

_TINY = torch.finfo(torch.float64).tiny


class Parameter:
    """One tensor with the settings of its group."""

    def __init__(self, values: Tensor, settings: dict[str, Any]) -> None:
        self.values, self.settings = values.detach().clone().double(), settings
        self.moments: dict[str, Tensor] = {}
        self.steps = 0
        self.anchor: Tensor | None = None
        self.gathered, self.weight = 0.0, 0.0
        self.norm_mean, self.norm_variance = 0.0, 0.0
        self.length, self.length_mean = 0.0, 0.0
        rows = self.values.shape[0] if self.values.dim() else 1
        self.shape = (rows, self.values.numel() // max(1, rows))
        kind = settings["importance"] if self.values.dim() > 1 else "diagonal"
        self.kronecker, self.factored = kind == "kronecker", kind == "factored"
        # Sums of squares: of rows by rows and columns by columns, or of each element.
        sizes = [(n, n) for n in self.shape] if self.kronecker else [tuple(self.values.shape)]
        self.pending = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        self.evidence = [torch.zeros(size, dtype=torch.float64) for size in sizes]

    # ------------------------------------------------------------------ importance

    def gather(self, grad: Tensor) -> None:
        if self.kronecker:
            matrix = grad.reshape(self.shape)
            self.pending[0] += matrix @ matrix.T
            self.pending[1] += matrix.T @ matrix
        else:
            self.pending[0] += grad * grad
        self.gathered += 1.0
        if self.gathered >= controller.PENDING_HORIZON:
            self.gathered /= 2.0
            for pending in self.pending:
                pending /= 2.0

    def elements(self, evidence: list[Tensor]) -> Tensor:
        """Omega of each element; by direction, the diagonal of :meth:`dense`."""
        if self.kronecker:
            left, right = (side.diagonal() for side in evidence)
            return (torch.outer(left, right) / (left.sum() + _TINY)).view(self.values.shape)
        if not self.factored or not self.values.numel():
            return evidence[0]
        matrix = evidence[0].reshape(self.shape)
        row, column = matrix.mean(1), matrix.mean(0)
        return (torch.outer(row, column) / (column.mean() + _TINY)).view(self.values.shape)

    def dense(self) -> Tensor:
        """Omega as a matrix over all pairs of elements."""
        if self.kronecker:
            left, right = self.evidence
            return torch.kron(left, right) / (left.trace() + _TINY)
        return self.elements(self.evidence).flatten().diag()

    def protected(self, grad: Tensor, damping: float, stiffness: float) -> Tensor:
        """``(g + stiffness * Omega (w - w*)) / (1 + damping * Omega)``."""
        omega = self.dense()
        force = grad.flatten()
        if stiffness and self.anchor is not None:
            force = force + stiffness * (omega @ (self.values - self.anchor).flatten())
        if self.kronecker:
            divisor = torch.eye(len(omega), dtype=torch.float64) + damping * omega
            return torch.linalg.solve(divisor, force).view(grad.shape)
        return (force / (1.0 + damping * omega.diagonal())).view(grad.shape)

    # ------------------------------------------------------------------ consolidation

    def consolidate(self, usual: float, observed: bool, memory: float, own: float) -> float | None:
        """What the pending sums count for; None if there are none."""
        if self.gathered == 0.0:
            self.draw_on(memory, own)
            return None
        if self.anchor is None and self.settings["pull"] > 0:
            self.anchor = self.values.clone()
        part = min(1.0, self.gathered / usual) if usual > 0 else 1.0
        if observed:
            retention = self.settings["retention"]
            part = 100.0 if retention > 0.99 else 1.0 / (1.0 - retention)
        kept = self.weight * self.settings["retention"] ** part
        before = [kept / (kept + part) * old for old in self.evidence]
        after = [
            old + part / (kept + part) * new / self.gathered
            for old, new in zip(before, self.pending, strict=True)
        ]
        if self.anchor is not None and self.values.numel():
            self.anchor = self.anchor + self.moved(before, after, memory)
            self.draw_on(memory, own)
        self.evidence = after
        self.pending = [torch.zeros_like(new) for new in after]
        self.gathered, self.weight = 0.0, kept + part
        return part / (kept + part)

    def draw_on(self, memory: float, own: float) -> None:
        """The anchor of data that surely ends here, of which a share of importance is."""
        if self.anchor is not None and own > 0.0:
            self.anchor = self.anchor + (self.values - self.anchor) * own / (
                own + memory * (1.0 - own)
            )

    def moved(self, before: list[Tensor], after: list[Tensor], memory: float) -> Tensor:
        """How far the anchor goes toward the weights."""
        assert self.anchor is not None
        way = self.values - self.anchor
        if not self.kronecker:
            held = self.elements(before)
            gain = (self.elements(after) - held).clamp(min=0.0)
            return way * gain / (memory * held + gain + _TINY)
        q, r = (torch.linalg.eigh(side)[1] for side in after)
        held, known = (
            torch.outer((q.T @ left @ q).diagonal(), (r.T @ right @ r).diagonal())
            / (left.trace() + _TINY)
            for left, right in (before, after)
        )
        # Along directions that no gradient had, there is nothing but rounding.
        gain = (known - held).clamp(min=0.0).where(known > 1e-12 * known.max(), 0.0)
        share = gain / (memory * held + gain + _TINY)
        return (q @ (share * (q.T @ way.reshape(self.shape) @ r)) @ r.T).view(way.shape)

    # ------------------------------------------------------------------ statistics

    def track_norm(self, norm: float, beta: float) -> None:
        if self.norm_mean == 0.0:
            self.norm_mean = norm
            return
        delta = norm - self.norm_mean
        self.norm_mean = beta * self.norm_mean + (1 - beta) * norm
        self.norm_variance = beta * (self.norm_variance + (1 - beta) * delta**2)

    def track_length(self, length: float, beta: float) -> None:
        mean = self.length_mean
        self.length = length
        self.length_mean = beta * mean + (1 - beta) * length if mean else length

    # ------------------------------------------------------------------ the base optimizers

    def moment(self, name: str) -> Tensor:
        return self.moments.setdefault(name, torch.zeros_like(self.values))

    def advance(self, base: str, g: Tensor) -> None:
        """One update by a gradient to descend along."""
        self.steps += 1
        group = self.settings
        lr, decay = group["lr"], group["weight_decay"]
        if base in ("adamw", "lion"):
            self.values = self.values * (1 - lr * decay)
        else:
            g = g + decay * self.values
        update = {"adam": self.adam, "adamw": self.adam, "sgd": self.sgd, "lion": self.lion}[base]
        self.values = self.values - lr * update(g)

    def adam(self, g: Tensor) -> Tensor:
        (beta1, beta2), step = self.settings["betas"], self.steps
        m = self.moments["exp_avg"] = beta1 * self.moment("exp_avg") + (1 - beta1) * g
        v = self.moments["exp_avg_sq"] = beta2 * self.moment("exp_avg_sq") + (1 - beta2) * g * g
        if self.settings["amsgrad"]:
            v = torch.maximum(self.moment("max_exp_avg_sq"), v)
            self.moments["max_exp_avg_sq"] = v
        root = (v / (1 - beta2**step)).sqrt()
        return m / (1 - beta1**step) / (root + self.settings["eps"])

    def sgd(self, g: Tensor) -> Tensor:
        momentum, dampening = self.settings["momentum"], self.settings["dampening"]
        if not momentum:
            return g
        # A first gradient enters without dampening.
        buffer = g if self.steps == 1 else momentum * self.moments["momentum_buffer"] + (
            1 - dampening
        ) * g  # fmt: skip
        self.moments["momentum_buffer"] = buffer
        return g + momentum * buffer if self.settings["nesterov"] else buffer

    def lion(self, g: Tensor) -> Tensor:
        beta1, beta2 = self.settings["betas"]
        m = self.moment("exp_avg")
        self.moments["exp_avg"] = beta2 * m + (1 - beta2) * g
        return (beta1 * m + (1 - beta1) * g).sign()


class Signal:
    """Running statistics of one number, and the threshold on it."""

    def __init__(
        self, tau0: float, alpha: float, beta: float, settle: float, warmup: float
    ) -> None:
        self.tau0, self.alpha, self.beta = tau0, alpha, beta
        self.settle, self.warmup = settle, warmup
        self.begin_segment()

    def begin_segment(self) -> None:
        self.steps, self.mean, self.variance = 0, 0.0, 0.0
        self.suspicion, self.held = 0.0, 0.0

    def limit(self) -> float:
        """What a number must exceed to be surprising: while there is suspicion, what aroused it."""
        now = self.tau0 * self.mean + self.alpha * math.sqrt(self.variance)
        return self.held if self.suspicion else now

    def judge(self, value: float) -> tuple[bool, bool]:
        """Is the number surprising, and does it confirm a change?"""
        ready = self.steps >= self.warmup
        limit = self.tau0 * self.mean + self.alpha * math.sqrt(self.variance)
        self.held = self.limit()
        surprising = ready and value > self.held
        if surprising:
            self.suspicion += min(1.0 + math.log2(value / self.held), detection.LARGEST_COUNT)
        else:
            self.suspicion = max(0.0, self.suspicion - 1.0)
        if self.suspicion >= detection.CONFIRMATIONS:
            return True, True
        self.record(min(value, limit) if ready else value)
        return surprising, False

    def record(self, value: float) -> None:
        self.steps += 1
        weight = max(1 - self.beta, 1 / max(1, self.steps - self.settle))
        delta = value - self.mean
        self.mean += weight * delta
        self.variance = (1 - weight) * (self.variance + weight * delta**2)


def turn(step: int, every: int) -> bool:
    """Is it one of the steps on which something rare is done?"""
    late = sum(n % 61 == 32 for n in range(step + 1))
    return (step - late) % every == 0


class Reference:
    """The whole optimizer. ``base`` is adam, adamw, sgd or lion."""

    def __init__(self, base: str, params: list[Parameter]) -> None:
        self.base, self.params = base, params
        self.first = params[0].settings
        self.consolidations, self.changes = 0, 0
        self.total, self.since, self.heard = 0, 0, 0
        self.unit, self.last, self.leap = 0.0, 0.0, 0.0
        self.begun = 0.0
        self.firm = self.observed = False
        self.own = 0.0
        first = self.first
        self.norms = Signal(first["tau0"], first["alpha"], first["stats_beta"], 10, 30)
        self.pooled = Signal(first["tau0"], first["alpha"], first["stats_beta"], 0, 30)
        self.pool: list[float] = []
        self.novelty = Signal(*novelty.SETTINGS.values(), 0, 8)
        self.slope = Signal(0.0, 0.0, descent.RECENT, 0, 8)
        self.cosines: list[float] = []

    # ------------------------------------------------------------------ the change detector

    def hear(self, norm: float) -> bool:
        """Is the step ordinary? Consolidates at a change."""
        self.total += 1
        self.since += 1
        most = self.norms.limit() if self.norms.steps >= 30 else math.inf
        surprising, change = self.norms.judge(norm)
        if change:
            held = self.norms.held
            self.change()
            self.leap = held
            surprising, _ = self.norms.judge(norm)
        else:
            self.pool.append(min(norm, most))
            if len(self.pool) == pooled.POOL:
                mean, self.pool = sum(self.pool) / pooled.POOL, []
                if self.pooled.judge(mean)[1]:
                    self.change()
        if self.norms.steps > 1:
            self.unit = self.unit if norm > self.leap else 0.0
            self.leap = 0.0
        if self.consolidations:
            self.unit = max(self.unit, min(norm, self.last))
        self.last = norm
        self.cosines = [] if surprising else self.cosines
        return not (surprising or self.pooled.suspicion > 0)

    def joined(self, watched: list[tuple[Parameter, Tensor]], size: int) -> bool:
        """Do others join all that had a gradient before, whose gradients are as they were?"""
        known = [g for param, g in watched if param.norm_mean > 0]
        norm = math.sqrt(sum(float((g * g).sum()) for g in known))
        most = self.norms.limit() if self.norms.steps >= 30 else math.inf
        return 0 < self.heard == sum(g.numel() for g in known) < size and norm <= most

    def change(self) -> None:
        """The norm says that the data is other data."""
        self.firm = self.firm or self.novelty.steps < 8
        self.changes += self.merge(ended=True)
        self.begin_segment()

    def begin_segment(self) -> None:
        self.norms.begin_segment()
        self.pooled.begin_segment()
        self.pool = []
        self.own = 0.0

    # ------------------------------------------------------------------ consolidation

    def consolidate(self) -> None:
        self.merge(ended=True, own=self.own)
        self.firm = self.firm or self.consolidations > 0
        self.begin_segment()

    def strength(self) -> float:
        """The share of the protection that is in force."""
        signals = self.norms, self.pooled, self.novelty
        suspicious = any(signal.suspicion > 0 for signal in signals)
        if self.consolidations and (self.firm or suspicious):
            return 1.0
        return min(1.0, ((self.consolidations - self.begun) / clock.RAMP) ** 2)

    def damping(self, param: Parameter) -> float:
        """The protection in force: one below 10 rises as 10 does, up to where it is whole."""
        whole = float(param.settings["protection"])
        return min(whole, max(whole, 10.0) * self.strength())

    def interval(self) -> float:
        """Steps of a window of the clock; 0 without one."""
        every = self.first["consolidate_every"]
        if every == "auto":
            return max(clock.LEAST, clock.SHARE * self.total)
        return 0.0 if every is None else every

    def merge(self, *, ended: bool = False, own: float = 0.0) -> bool:
        usual = self.interval()
        usual = (min(usual, clock.LEAST) if ended else usual) / clock.INTERVAL
        memory = consolidation.ANCHOR_MEMORY / max(1.0, self.norms.steps / consolidation.REST) ** 2
        if ended:
            window = self.interval() or max(clock.LEAST, clock.SHARE * self.total)
            memory /= max(1.0, consolidation.WINDOWS * window / max(1, self.norms.steps))
        known = sum(param.weight > 0 for param in self.params)
        done = [
            param.consolidate(usual, self.observed, memory, own)
            for param in self.params
            if param.settings["protection"] > 0
        ]
        if sum(param.weight > 0 for param in self.params) > known:
            self.novelty.begin_segment()
        self.since = 0
        counted = [share for share in done if share is not None]
        if counted:
            self.own += (1.0 - self.own) * min(counted)
            self.observed = False
            kept = self.unit * clock.UNIT_RETENTION if self.consolidations else 0.0
            self.unit = max(kept, self.norms.mean)
            self.consolidations += 1
            if ended:
                self.slope.begin_segment()
                self.cosines = []
            else:
                falls = self.descent()
                waits = 1.0 if falls is None else max(0.0, falls / clock.LEARNING)
                most = self.consolidations - (0 if waits > 1 else 1)
                self.begun = min(max(self.begun + waits, self.consolidations - clock.RAMP, 0), most)
        return bool(counted)

    def descent(self) -> float | None:
        """How surely the loss falls along the way from the anchor: a signal-to-noise ratio."""
        if self.slope.steps < 8:
            return None
        return -self.slope.mean / max(math.sqrt(self.slope.variance), 0.05)

    def look_back(self, watched: list[tuple[Parameter, Tensor]], norm: float) -> None:
        """The cosine between the gradient and the way from the anchor."""
        known = [(param, g) for param, g in watched if param.weight > 0]
        ways = [
            (param.values - param.anchor, -g if param.settings["maximize"] else g)
            for param, g in known
            if param.anchor is not None
        ]
        length = math.sqrt(sum(float((way * way).sum()) for way, _ in ways))
        if length or (known and not ways):
            slope = sum(float((way * g).sum()) for way, g in ways)
            self.cosines.append(slope / length / norm if length else 0.0)
            self.slope.record(self.cosines[-1])

    # ------------------------------------------------------------------ the step

    def step(self, grads: list[Tensor | None], *, observing: bool = False) -> None:
        pairs = [(p, g.double()) for p, g in zip(self.params, grads, strict=True) if g is not None]
        watched = [(p, g) for p, g in pairs if p.settings["protection"] > 0]
        size = sum(g.numel() for _, g in watched)
        norm = math.sqrt(sum(float((g * g).sum()) for _, g in watched))
        rate = max(param.settings["lr"] for param in self.params)
        moves = rate > 0.0
        told = 0.0 < norm < math.inf and (observing or moves)
        ordinary = told
        if watched and not observing and self.joined(watched, size):
            self.begin_segment()
            self.novelty.begin_segment()
        self.heard = size if told else self.heard
        if told and observing:
            self.observed = True
            self.norms.record(norm)
        elif told:
            ordinary = self.hear(norm)
        penalizes = gathers = measures = False
        if told and not observing:
            # Each fourth step, and a step later than that once in 61.
            penalizes, gathers = (turn(self.total - late, 4) for late in (0, 1))
            measures = turn(self.total - 2, 16)
        listens = gathers and not self.firm and self.consolidations >= 2
        unit = self.unit / math.sqrt(max(1, size))
        if told:
            for param, g in watched:
                param.track_norm(float((g * g).sum().sqrt()), self.first["stats_beta"])
        every = self.first["consolidate_every"]
        if watched and every is not None and not observing and self.since >= self.interval():
            self.merge()
        if ordinary and gathers and not self.firm and every is not None:
            self.look_back(watched, norm)
        if ordinary and (observing or gathers):
            for param, g in watched:
                param.gather(g * math.sqrt(size) / norm)
        if listens:
            self.listen([(p, g) for p, g in watched if p.weight > 0])
        if not observing:
            self.move(pairs, unit if penalizes else 0.0, measures=measures)

    def listen(self, pairs: list[tuple[Parameter, Tensor]]) -> None:
        """How much of the gradient is where earlier data said nothing?"""
        free = sum(float((p.protected(g, 1.0, 0.0) ** 2).sum()) for p, g in pairs)
        whole = sum(float((g * g).sum()) for _, g in pairs)
        if free > 0 and whole > 0 and self.novelty.judge(free / whole)[1]:
            self.novelty.begin_segment()
            steep = [cosine < -0.1 for cosine in self.cosines[-3:]]
            self.firm = self.firm or not (len(steep) == 3 and all(steep))

    def move(self, pairs: list[tuple[Parameter, Tensor]], unit: float, *, measures: bool) -> None:
        """One step of the base, by protected gradients."""
        updates = [-g if param.settings["maximize"] else g for param, g in pairs]
        held = [i for i, (p, _) in enumerate(pairs) if p.settings["protection"] * p.weight > 0]
        before = math.sqrt(sum(float((updates[i] ** 2).sum()) for i in held))
        for i in held:
            param = pairs[i][0]
            damping = self.damping(param)
            lr = param.settings["lr"]
            stiffness = clock.INTERVAL * damping * param.settings["pull"] * unit
            if self.base == "sgd" and lr:
                stiffness = min(stiffness, damping * (1 - param.settings["momentum"]) / lr)
            updates[i] = param.protected(updates[i], damping, stiffness)
        if self.base == "sgd" and held:
            # The step of gradient descent is as long as its gradient.
            after = math.sqrt(sum(float((updates[i] ** 2).sum()) for i in held))
            usual = math.sqrt(sum(pairs[i][0].norm_mean ** 2 for i in held))
            spread = math.sqrt(sum(pairs[i][0].norm_variance for i in held))
            wanted = min(before, usual + gradients.DEVIATIONS * spread) / (after + _TINY)
            factor = min(max(1.0, wanted), gradients.LARGEST_GAIN)
            for i in held:
                updates[i] = updates[i] * factor
        for (param, _), update in zip(pairs, updates, strict=True):
            start = param.values
            param.advance(self.base, update)
            if measures and param.settings["protection"] > 0:
                length = float((param.values - start).norm())
                param.track_length(length, self.first["stats_beta"])
