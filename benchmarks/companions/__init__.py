"""Experiments with the companions, each of which could prove its idea wrong.

An experiment is a module with `PREDICTION`, said before it ran, and `run(options)`; its name and
what `--help` says of it are here. The modules themselves are in sal_optim.
"""

from __future__ import annotations

# name -> (module, seeds by default, summary)
EXPERIMENTS = {
    "residual": (
        "benchmarks.companions.residual",
        10,
        "error feedback of what the gate held back, against a weaker gate",
    ),
    "self-model": (
        "benchmarks.companions.self_model",
        10,
        "a network that predicts itself, against four controls",
    ),
    "self-model-forgetting": (
        "benchmarks.companions.self_forgetting",
        10,
        "does it forget less, alone and with SAL?",
    ),
    "collapse": (
        "benchmarks.companions.collapse",
        20,
        "how early spectra warn of a collapse, and what helps then",
    ),
    "channels": (
        "benchmarks.companions.channels",
        10,
        "losses with budgets, against the best of 30 fixed weights",
    ),
    "shift": (
        "benchmarks.companions.shift",
        10,
        "noise is not flagged, a new class is; drift at equal learned accuracy",
    ),
    "horizon": (
        "benchmarks.companions.horizon",
        10,
        "does ln target / ln p tell how long a generated sequence survives?",
    ),
    "curriculum": (
        "benchmarks.companions.curriculum",
        10,
        "data admitted in stages by a monitored score, against a random order",
    ),
    "cells": (
        "benchmarks.companions.cells",
        10,
        "prototypes under a budget, against a reservoir of the same bytes and class means",
    ),
    "cascade": (
        "benchmarks.companions.cascade",
        10,
        "branches that live on, merge or die, against the same compute in one run",
    ),
    "routes": (
        "benchmarks.companions.routes",
        10,
        "does each typed route of a mixture of experts carry its channel?",
    ),
    "correction": (
        "benchmarks.companions.correction",
        15,
        "at an alarm: a lower rate, safer data, or both, against the same at random times",
    ),
    "edges": (
        "benchmarks.companions.edges",
        10,
        "blocks trained side by side under constraints, against backpropagation",
    ),
    "basins": (
        "benchmarks.companions.basins",
        10,
        "fluent, looping or collapsed generations, and whether the prompt tells which",
    ),
}
