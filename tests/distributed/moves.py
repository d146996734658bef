"""Runs that hand importance on to other numbers of processes. On all ranks alike; see jobs.py."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from sal_optim import SALAdamW, SALOptimizer, load_importance, save_importance
from sal_optim.sharding.places import whole_of
from tests.distributed.blocks import block_rows
from tests.distributed.jobs import follow, make, outcome
from tests.distributed.models import Parameters, placed, whole
from tests.testing.digits import task

BATCH = 64
Weights = dict[str, Tensor]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10))


def old_loss(weights: Weights, seed: int = 1) -> float:
    """Of a task, for a network with these weights."""
    inputs, labels = task(seed)
    logits = torch.func.functional_call(network(), weights, (inputs,))
    return float(nn.functional.cross_entropy(logits, labels))


def train(
    way: str,
    seeds: list[int],
    steps: int,
    weights: Weights | None,
    load: str | None,
    save: str | None,
    settings: dict[str, Any],
    folder: str | None = None,
    flat: bool = False,
) -> Weights:
    """One run: tasks one after the other, each declared to end; its weights."""
    model, optimizer = begun(way, weights, load, settings)
    part = slice(None)
    if way == "fsdp":
        part = slice(dist.get_rank(), None, dist.get_world_size())
    for seed in seeds:
        inputs, labels = task(seed)
        for step in range(steps):
            rows = (torch.arange(step * BATCH, (step + 1) * BATCH) % len(inputs))[part]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        optimizer.consolidate()
    if save is not None:
        save_importance(optimizer, save)
    if folder is not None:
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        state = {"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
        dcp.save(state, checkpoint_id=folder, no_dist=way == "single")
    return {name: whole(param) for name, param in model.named_parameters()}


def begun(
    way: str, weights: Weights | None, load: str | None, settings: dict[str, Any]
) -> tuple[nn.Module, SALAdamW]:
    model = network()
    if weights is not None:
        model.load_state_dict(weights)
    model = placed(model, way)
    optimizer = SALAdamW(model.named_parameters(), lr=3e-3, **settings)
    if load is not None:
        load_importance(optimizer, load)
    return model, optimizer


def handed_on(
    way: str, load: str, save: str | None, rows: int, settings: dict[str, Any]
) -> dict[str, Any]:
    """Stability and state that a file gives, over all processes; and the file written once more."""
    with block_rows(rows):
        model, optimizer = begun(way, None, load, settings)
        if save is not None:
            save_importance(optimizer, save)
        params = dict(model.named_parameters())
        return {
            "stability": {n: whole_of(optimizer.stability(p), p) for n, p in params.items()},
            "state": {
                n: {
                    key: whole(value) if isinstance(value, Tensor) else value
                    for key, value in optimizer.controller.state_of(p).items()
                }
                for n, p in params.items()
            },
        }


SETTINGS: dict[str, Any] = {"importance": "kronecker", "rank": 2}


def checkpoint(folder: str, path: str) -> dict[str, Any]:
    """A whole checkpoint, and an importance file beside it."""
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make("SALAdamW", params, **SETTINGS)
    follow(optimizer, params, (0, 100))
    optimizer.consolidate()
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(state, checkpoint_id=folder)
    save_importance(optimizer, path, model)
    return _seen(optimizer, params)


def resumed_with_file(folder: str, path: str) -> dict[str, Any]:
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make("SALAdamW", params, **SETTINGS)
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    planner = DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, checkpoint_id=folder, planner=planner)
    set_model_state_dict(model, state["model"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_optimizer_state_dict(model, optimizer, state["optimizer"])
    told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    load_importance(optimizer, path, model)
    found = _seen(optimizer, params)
    follow(optimizer, params, (100, 140))
    return {**found, "told": told, "end": [whole(param) for param in params]}


def _seen(optimizer: SALOptimizer, params: list[Tensor]) -> dict[str, Any]:
    """Stability without the bound, which is by block and so is not the same on other blocks."""
    weighted = [10.0 * optimizer.controller.importance(param)[0] for param in params]
    return {
        "stability": [
            whole_of(value / (value + 1.0), param)
            for value, param in zip(weighted, params, strict=True)
        ],
        "state": outcome(optimizer, [])["state"],
    }


def failed_write(load: str, save: str) -> str:
    """What each process is told where the disk of the first one is full."""
    _, optimizer = begun("fsdp", None, load, {})
    if dist.get_rank() == 0:
        os.replace = _full  # type: ignore[assignment]
    try:
        save_importance(optimizer, save)
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.replace = _replace
    return "written"


_replace = os.replace


def _full(*_: Any) -> None:
    raise OSError("no space")
