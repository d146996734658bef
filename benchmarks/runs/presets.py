"""Published settings by one name each: `--preset NAME` fills in what the command line leaves open.

A preset gives settings, not results: data of another size (10,000 digits for 60,000) give other
figures. docs/baselines.md has the published ones beside what these gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Options = Mapping[str, Mapping[str, Mapping[str, Any]]]  # stream -> method -> options, lr too


@dataclass(frozen=True)
class Preset:
    """`arguments` are command-line options; `epochs` a task's length where steps do not say it."""

    summary: str
    arguments: Mapping[str, Any]
    by_method: Options = field(default_factory=dict)
    epochs: float | None = None

    def options(self, stream: str, method: str) -> dict[str, Any]:
        """What the setting says of one method on one stream."""
        return dict(self.by_method.get(stream, {}).get(method, {}))


# GMvandeVen/continual-learning: ReLU, batch 128, Adam. λ of online EWC as of EWC.
VANDEVEN_METHODS = ["adam", "joint", "ewc", "online-ewc", "kfac-ewc", "si", "lwf", "sal-adam"]
# UPGD's own grid of learning rates is 1e-2 to 1e-5; Adam's 1e-3 does not fit single examples.
STREAMING: Mapping[str, Any] = {
    "data": "mnist",
    "stream": ["long"],
    "steps": 5000,
    "batch": 1,
    "hidden": "300-150",
    "seeds": 10,
    "methods": [
        "plain-sgd",
        "adam",
        "upgd",
        "adaupgd",
        "streaming-ewc",
        "streaming-si",
        "sal-sgd",
        "sal-adam",
    ],
}
STREAMING_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain-sgd": {"lr": 0.01},
    "sal-sgd": {"lr": 0.01, "momentum": 0.0},
    "upgd": {"lr": 0.01, "noise": 0.1, "beta_utility": 0.9999, "weight_decay": 0.001},
    "adaupgd": {"lr": 1e-4},
    "adam": {"lr": 1e-4},
    "sal-adam": {"lr": 1e-4},
    "streaming-ewc": {"lr": 1e-4, "every": 5000},
    "streaming-si": {"lr": 1e-4, "every": 5000},
}
PRESETS = {
    "vandeven-permuted": Preset(
        "van de Ven's permuted MNIST: 10 tasks x 5000 steps of 128, 1000-1000, lr 1e-4, 5 seeds",
        {
            "data": "mnist",
            "stream": ["permuted"],
            "tasks": 10,
            "steps": 5000,
            "batch": 128,
            "hidden": "1000-1000",
            "lr": 1e-4,
            "seeds": 5,
            "methods": VANDEVEN_METHODS,
        },
        {
            "permuted": {
                "ewc": {"strength": 100.0},
                "online-ewc": {"strength": 100.0},
                "si": {"strength": 10.0},
            }
        },
    ),
    "vandeven-split": Preset(
        "van de Ven's split MNIST: 5 x 2 classes x 2000 steps of 128, 400-400, lr 1e-3, 20 seeds",
        {
            "data": "mnist",
            "stream": ["split-task", "split-domain", "split-class"],
            "tasks": 5,
            "steps": 2000,
            "batch": 128,
            "hidden": "400-400",
            "lr": 1e-3,
            "seeds": 20,
            "order": "natural",
            "methods": VANDEVEN_METHODS,
        },
        {
            stream: {
                "ewc": {"strength": ewc},
                "online-ewc": {"strength": ewc},
                "si": {"strength": si},
            }
            for stream, ewc, si in (
                ("split-task", 1e5, 10.0),
                ("split-domain", 1e10, 5e4),
                ("split-class", 1e9, 5e3),
            )
        },
    ),
    "gpm-permuted": Preset(
        "GPM's permuted MNIST (Saha et al. 2021): 10 tasks x 5 epochs of 10, 100-100, SGD lr 0.01",
        {
            "data": "mnist",
            "stream": ["permuted"],
            "tasks": 10,
            "batch": 10,
            "hidden": "100-100",
            "seeds": 10,
            "methods": ["plain-sgd", "adam", "joint", "ewc", "kfac-ewc", "si", "owm", "gpm", "ncl",
                        "sal-sgd", "sal-adam"],
        },
        {
            "permuted": {
                "plain-sgd": {"lr": 0.01},
                "gpm": {"lr": 0.01, "first_threshold": 0.95, "threshold": 0.99, "examples": 300},
                "sal-sgd": {"lr": 0.01, "momentum": 0.0},
            }
        },
        epochs=5,
    ),
    # What the abstract does not say (widths, batch, length) is chosen here.
    "ritter-permuted": Preset(
        "permuted MNIST of 50 tasks (Ritter et al. 2018): over 90% by Kronecker factors; 100-100",
        {
            "data": "mnist",
            "stream": ["long"],
            "tasks": 50,
            "batch": 128,
            "hidden": "100-100",
            "seeds": 5,
            "methods": ["adam", "joint", "ewc", "online-ewc", "kfac-ewc", "si", "owm", "gpm",
                        "ncl", "sal-adam"],
        },
        epochs=10,
    ),
    "mesu-permuted": Preset(
        "permuted MNIST as MESU and BGD are compared on: 10 tasks, 200-200, task-free",
        {
            "data": "mnist",
            "stream": ["permuted"],
            "tasks": 10,
            "batch": 128,
            "hidden": "200-200",
            "seeds": 10,
            "methods": ["adam", "bgd", "mesu", "streaming-ewc", "streaming-si", "sal-adam"],
        },
        epochs=20,
    ),
    "upgd-streaming": Preset(
        "UPGD's streaming: one example a step, a million steps, a new permutation every 5000",
        {**STREAMING, "tasks": 200},
        {"long": STREAMING_OPTIONS},
    ),
    "upgd-streaming-short": Preset(
        "UPGD's streaming, a tenth of it: 20 permutations of 5000 examples, all else as there",
        {**STREAMING, "tasks": 20},
        {"long": STREAMING_OPTIONS},
    ),
}  # fmt: skip
