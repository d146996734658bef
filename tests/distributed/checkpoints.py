"""What the processes save and load, and what is refused. Runs on all ranks alike; see jobs.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, Partial, Shard

from sal_optim import SALOptimizer
from tests.distributed.jobs import STEPS, follow, make, outcome
from tests.distributed.models import Parameters, mesh_of, placed

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save(
    way: str, name: str, kwargs: dict[str, Any], folder: str, at: int, flat: bool = False
) -> dict[str, Any]:
    """A run that saves halfway; its end."""
    model = placed(Parameters(), way)
    params = list(model.parameters())
    optimizer = make(name, params, **kwargs)
    found = follow(optimizer, params, (0, at))
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT if flat else None),
    }
    dcp.save(state, checkpoint_id=folder)
    halfway = outcome(optimizer, found)
    found += follow(optimizer, params, (at, STEPS))
    return {"halfway": halfway, "end": outcome(optimizer, found)}


def resume(
    way: str,
    name: str,
    kwargs: dict[str, Any],
    folder: str,
    at: int,
    flat: bool = False,
    partial: bool = False,
) -> dict[str, Any]:
    """The rest of that run, from its files, and warnings of the load.

    ``partial``: what the files lack is left as it is.
    """
    model = placed(Parameters(), way)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    params = list(model.parameters())
    optimizer = make(name, params, **kwargs)
    options = FLAT if flat else None
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }
    planner = DefaultLoadPlanner(allow_partial_load=partial)
    dcp.load(state, checkpoint_id=folder, no_dist=way == "single", planner=planner)
    set_model_state_dict(model, state["model"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
    told = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    halfway = outcome(optimizer, [])
    found = follow(optimizer, params, (at, STEPS))
    return {"halfway": halfway, "end": outcome(optimizer, found), "told": told}


def refused(*run: Any) -> str:
    """What torch says of files that it does not load."""
    try:
        resume(*run)
    except CheckpointException as error:
        return str(error)
    return "loaded"


def full_state(name: str) -> dict[str, Any]:
    """Through one whole state dict, as for a file of one process."""
    model = placed(Parameters(), "fsdp")
    params = list(model.parameters())
    optimizer = make(name, params)
    follow(optimizer, params, (0, 80))
    state = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    fresh = make(name, params)
    fresh.zero_grad()  # torch makes the state to load into only where there is no gradient
    # Rank 0 alone has the whole.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, fresh, state, options=options)
    return {"before": outcome(optimizer, []), "after": outcome(fresh, [])}


def refusals() -> dict[str, str]:
    """The errors for what is not supported, by case."""
    mesh = mesh_of()
    sharded = placed(Parameters(), "fsdp")
    partial = nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    cases = {
        "partial": lambda: _stepped([partial]),
        "plain state": lambda: _load_plain(sharded, "diagonal"),
        "factors of a plain state": lambda: _load_plain(sharded, "kronecker"),
        "sharded state": lambda: _load_sharded(sharded, "diagonal"),
        "sharded gradient": _step_by_sharded,
    }
    errors = {}
    for name, case in cases.items():
        try:
            case()
            errors[name] = "none"
        except (KeyError, ValueError) as error:
            errors[name] = str(error)
    return errors


def _stepped(params: Iterable[Tensor], **kwargs: Any) -> SALOptimizer:
    params = list(params)
    optimizer = make("SALAdam", params, **kwargs)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


def _step_by_sharded() -> None:
    """A whole parameter, a gradient in parts."""
    param = nn.Parameter(torch.ones(4))
    optimizer = make("SALAdam", [param])
    param.grad = DTensor.from_local(torch.ones(2), mesh_of(), [Shard(0)])
    optimizer.step()


def _load_plain(sharded: nn.Module, kind: str) -> None:
    state = _stepped(Parameters().parameters(), importance=kind).state_dict()
    make("SALAdam", sharded.parameters(), importance=kind).load_state_dict(state)


def _load_sharded(sharded: nn.Module, kind: str) -> None:
    state = _stepped(sharded.parameters(), importance=kind).state_dict()
    make("SALAdam", Parameters().parameters(), importance=kind).load_state_dict(state)
