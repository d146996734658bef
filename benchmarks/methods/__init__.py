"""The methods by name. A new method is a file here and one row in ROWS.

A row says which base optimizer (and so which learning rate) a method has, and which options it
takes. Rows of `--protect` are not listed: they are made when their names are asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from benchmarks.data.errors import UserError
from benchmarks.methods import layered, sal
from benchmarks.methods.base import Method
from benchmarks.methods.bayes import Sampled
from benchmarks.methods.controls import Matched, Random, Shuffled, Uniform
from benchmarks.methods.ewc import EWC, OnlineEWC
from benchmarks.methods.kfac import KFAC
from benchmarks.methods.layered import SUFFIX, Layered
from benchmarks.methods.lwf import LwF
from benchmarks.methods.mas import MAS
from benchmarks.methods.ncl import NCL
from benchmarks.methods.packages import base
from benchmarks.methods.projection import GPM, OWM
from benchmarks.methods.published_sal import PublishedSAL
from benchmarks.methods.quadratic import L2
from benchmarks.methods.second_order import SECOND_ORDER, Graphed, GraphedLayered
from benchmarks.methods.si import SI
from benchmarks.methods.simple import Configured, Decay, Joint
from benchmarks.methods.streaming import AR1, StreamingEWC, StreamingSI


@dataclass(frozen=True)
class Row:
    """One method. `options` maps the names it takes to a line about them; `fixed` are set."""

    name: str
    base: str
    summary: str
    kind: type[Method] = Method
    options: Mapping[str, str] | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    tuned_from: str = ""  # the method whose settings it has, if not its own

    @property
    def told(self) -> bool:
        return self.kind.told

    @property
    def is_sal(self) -> bool:
        """Whether sal_optim protects the network that is measured."""
        return issubclass(self.kind, (sal.SAL, Layered))

    @property
    def uses_sal(self) -> bool:
        """Whether sal_optim is needed, and its options are taken."""
        return self.is_sal or issubclass(self.kind, Matched)

    @property
    def tuned_as(self) -> str:
        """The method whose tuned settings it has: an optimizer's own where a layer is around it."""
        return self.base if issubclass(self.kind, Layered) else self.tuned_from or self.name

    def allowed(self) -> tuple[str, ...]:
        """Names of the options; those of sal_optim are read from its signatures."""
        if self.uses_sal:
            own = layered.options() if issubclass(self.kind, Layered) else sal.options(self.base)
            return tuple(name for name in own if name not in self.fixed)
        return tuple(self.options or ())

    def build(self, model: nn.Module, lr: float, options: Mapping[str, Any]) -> Method:
        """The method around `model`, with its optimizer."""
        unknown = set(options) - set(self.allowed())
        if unknown:
            allowed = ", ".join(self.allowed()) or "none"
            raise UserError(
                f"--set: {self.name} has no option {sorted(unknown)}; allowed: {allowed}"
            )
        if issubclass(self.kind, sal.SAL):
            return sal.build(model, self.base, lr, self.kind, **self.fixed, **options)
        make: Callable[..., Method] = self.kind
        optimizer = base(self.base).make(model.parameters(), lr)
        return make(model, optimizer, **self.fixed, **options)


PUBLISHED = {"tau0": "threshold's floor", "alpha": "its slope", "window": "steps it looks back"}
FISHER = {"strength": "λ", "fisher_examples": "examples of a task that its Fisher is taken over"}
EVERY = {"every": "steps between consolidations"}
UTILITY = {
    "beta_utility": "decay of the utility",
    "noise": "SD of the perturbation",
    "weight_decay": "decoupled weight decay",
}
SAMPLED = {"std": "first σ (MESU: the prior's too)", "samples": "of the weights, a step"}

# Kinds of importance beside the default one.
KINDS = ("diagonal", "factored")
# What each control puts in the place of what SAL does.
SUBSTITUTES: dict[str, tuple[type[Method], str]] = {
    "random": (Random, "its values along random directions"),
    "shuffled": (Shuffled, "its values in another order"),
    "uniform": (Uniform, "the mean importance everywhere"),
}


def _of_kind(base: str, kind: str) -> Row:
    """A row of the family with another kind of importance."""
    summary = f"sal-{base} with {kind} importance"
    return Row(f"sal-{base}-{kind}", base, summary, sal.SAL, fixed={"importance": kind})


def _told(base: str) -> Row:
    """A row of the family that is told where a task ends."""
    summary = f"sal-{base}, consolidate() at each boundary"
    return Row(f"sal-{base}-told", base, summary, sal.Declared, tuned_from=f"sal-{base}")


def _hearing(base: str) -> Row:
    """A row of the family that hears the loss of each step."""
    summary = f"sal-{base}, tell(loss=...) in each step"
    return Row(f"sal-{base}-loss", base, summary, sal.Hearing, tuned_from=f"sal-{base}")


def _controls(base: str) -> tuple[Row, ...]:
    """The controls on one base optimizer, at the settings of what they are controls of."""
    sal_name = f"sal-{base}"
    substituted = (
        Row(f"{sal_name}-{name}", base, f"control: {sal_name}, {text}", kind, tuned_from=sal_name)
        for name, (kind, text) in SUBSTITUTES.items()
    )
    text = f"control: {base}, every update as long as that of {sal_name}"
    matched = Row(
        f"{sal_name}-matched", base, text, Matched, fixed={"base": base}, tuned_from=sal_name
    )
    return (*substituted, matched)


# What `make bench` runs: the family against tuned optimizers and penalties that know the tasks.
QUICK = (
    Row("adam", "adam", "torch.optim.Adam"),
    Row("sgd", "sgd", "torch.optim.SGD, momentum 0.9"),
    Row("ewc", "adam", "elastic weight consolidation on Adam, exact Fisher", EWC, FISHER),
    Row("si", "adam", "synaptic intelligence on Adam", SI, {"strength": "c", "xi": "damping ξ"}),
    Row("kfac-ewc", "adam", "EWC with a Kronecker-factored Fisher", KFAC, FISHER),
    Row("published-sal-adam", "adam", "the published SAL rule on Adam", PublishedSAL, PUBLISHED),
    Row("sal-adam", "adam", "sal_optim.SALAdam", sal.SAL),
    Row("sal-sgd", "sgd", "sal_optim.SALSGD", sal.SAL),
    Row("sal-lion", "lion", "sal_optim.SALLion", sal.SAL),
)
TOLD = (
    Row("joint", "adam", "upper bound: Adam on batches of all tasks so far", Joint),
    Row("lr-decay", "adam", "lr falls at each boundary", Decay, {"factor": "of each fall"}),
    Row("l2", "adam", "held to the weights at the last boundary", L2, {"strength": "λ"}),
    Row(
        "online-ewc",
        "adam",
        "EWC with one decaying Fisher and one anchor",
        OnlineEWC,
        {**FISHER, "decay": "γ"},
    ),
    Row("mas", "adam", "memory aware synapses", MAS, {"strength": "λ", "examples": "per task"}),
    Row("owm", "sgd", "orthogonal weights modification", OWM,
        {"damping": "inputs below it count as unused", "examples": "per task"}),
    Row("gpm", "plain-sgd", "gradient projection memory", GPM,
        {"first_threshold": "share held at the first layer", "threshold": "at later layers",
         "examples": "per task"}),
    Row("ncl", "sgd", "natural continual learning", NCL,
        {"prior": "p, precision of the prior", "fisher_examples": FISHER["fisher_examples"]}),
    Row("lwf", "adam", "learning without forgetting", LwF,
        {"strength": "λ", "temperature": "T"}),
)  # fmt: skip
UNTOLD = (
    Row("published-sal-sgd", "sgd", "the published SAL rule on SGD", PublishedSAL, PUBLISHED),
    Row(
        "streaming-ewc",
        "adam",
        "online EWC every N steps",
        StreamingEWC,
        {**FISHER, "decay": "γ", **EVERY},
    ),
    Row(
        "streaming-si",
        "adam",
        "SI every N steps",
        StreamingSI,
        {"strength": "c", "xi": "damping ξ", **EVERY},
    ),
    Row(
        "ar1",
        "adam",
        "steps scaled by 1 - F/F_max, F of SI, every N steps",
        AR1,
        {"max_importance": "F_max", "xi": "damping ξ", **EVERY},
    ),
    Row("upgd", "upgd", "utility-based perturbed gradient descent", Configured, UTILITY),
    Row("adaupgd", "adaupgd", "UPGD along Adam's direction", Configured, UTILITY),
    Row("bgd", "bgd", "Bayesian gradient descent", Sampled, SAMPLED),
    Row(
        "mesu",
        "mesu",
        "metaplasticity from synaptic uncertainty",
        Sampled,
        {**SAMPLED, "window": "N, in updates"},
    ),
)
FAMILY = (
    Row("sal-adamw", "adamw", "sal_optim.SALAdamW", sal.SAL),
    Row("sal-muon", "muon", "sal_optim.SALMuon", sal.SAL),
    *(_of_kind(base, kind) for base in ("adam", "sgd", "lion") for kind in KINDS),
    *(_told(base) for base in ("adam", "sgd", "lion")),
    *(_hearing(base) for base in ("adam", "sgd", "lion")),
)
PLAIN = tuple(
    Row(name, name, summary)
    for name, summary in {
        "lion": "Lion",
        "adamw": "torch.optim.AdamW, weight decay 0.01",
        "plain-sgd": "torch.optim.SGD without momentum",
        "nadam": "torch.optim.NAdam",
        "radam": "torch.optim.RAdam",
        "adamax": "torch.optim.Adamax",
        "rmsprop": "torch.optim.RMSprop",
        "adagrad": "torch.optim.Adagrad",
        "adadelta": "torch.optim.Adadelta",
        "adafactor": "torch.optim.Adafactor",
        "asgd": "torch.optim.ASGD",
        "muon": "torch.optim.Muon for matrices, Adam for the rest",
    }.items()
)
CONTROLS = (*_controls("adam"), *_controls("sgd"))
GROUPS: dict[str, tuple[Row, ...]] = {
    "quick": QUICK,
    "told": TOLD,
    "untold": UNTOLD,
    "family": FAMILY,
    "plain": PLAIN,
    "controls": CONTROLS,
}
ROWS = tuple(row for rows in GROUPS.values() for row in rows)


# Names until 0.1, which go on working for one minor release.
RENAMED = {
    **{f"sal-{base}-kronecker": f"sal-{base}" for base in ("adam", "sgd", "lion")},
    **{f"sal-{base}-tensor": f"sal-{base}-diagonal" for base in ("adam", "sgd", "lion")},
    **{f"control-{name}": f"sal-adam-{name}" for name in ("uniform", "matched", "shuffled")},
}


def renamed(name: str) -> str:
    """The present name of a method; an old one is said to be old."""
    if name not in RENAMED:
        return name
    warnings.warn(
        f"the method {name} is now {RENAMED[name]}; the old name goes on working until the next "
        "minor release",
        FutureWarning,
        stacklevel=2,
    )
    return RENAMED[name]


class Methods(dict[str, Row]):
    """The rows by name. An optimizer of a package, and any in a layer, gets its row when asked."""

    def __missing__(self, name: str) -> Row:
        if name in RENAMED:
            return self[RENAMED[name]]
        own = name.removesuffix(SUFFIX)
        is_plain = own in self and self[own].kind is Method
        if not is_plain and "." not in own:
            raise KeyError(name)
        if own == name:
            kind = Graphed if own in SECOND_ORDER else Method
            return Row(name, name, f"{name}, at its own defaults", kind)
        summary = f"{own} with a CommunicationLayer around it"
        around = GraphedLayered if own in SECOND_ORDER else Layered
        return Row(name, own, summary, around)


METHODS = Methods({row.name: row for row in ROWS})


def row_of(label: str) -> Row:
    """The row of a variant's label, which begins with the method's name."""
    return METHODS[label.partition(" ")[0]]


__all__ = ["GROUPS", "METHODS", "ROWS", "SUFFIX", "Method", "Row", "renamed", "row_of"]
