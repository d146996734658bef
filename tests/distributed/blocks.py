"""Runs with importance by block, on processes and in one process that is given the same blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

from sal_optim.protection import anchor
from sal_optim.protection import gradients as protected
from sal_optim.protection.gradients import usual_norm
from sal_optim.protection.statistics import track
from sal_optim.sharding import stacked
from tests.distributed import checkpoints
from tests.distributed.jobs import STEPS, follow, gradients, make, outcome, train
from tests.distributed.models import Net, Parameters, mesh_of, placed
from tests.testing.drive import consolidations


@contextlib.contextmanager
def block_rows(count: int) -> Iterator[None]:
    """Within, blocks have so many rows where parts are whole multiples of them."""
    usual = stacked.BLOCK_ROWS
    stacked.BLOCK_ROWS = count
    stacked.layout_for.cache_clear()
    try:
        yield
    finally:
        stacked.BLOCK_ROWS = usual
        stacked.layout_for.cache_clear()


def drawn(way: str, name: str, kwargs: dict[str, Any], rows: int = 256) -> dict[str, Any]:
    """A run of three tasks; see jobs.drawn."""
    with block_rows(rows):
        model = placed(Parameters(), way)
        params = list(model.parameters())
        optimizer = make(name, params, **kwargs)
        return outcome(optimizer, follow(optimizer, params, (0, STEPS)))


def cut(tensor: Tensor, way: str, world: int, rows: int = 256) -> list[Tensor]:
    """The blocks of a tensor of :class:`Parameters`, as :func:`placed` places it."""
    if way == "columns":
        return list(tensor.chunk(world, tensor.dim() - 1))
    parts = tensor.chunk(world)
    whole = -(-len(tensor) // world) % rows == 0
    return [block for part in parts for block in (part.split(rows) if whole else [part])]


@contextlib.contextmanager
def parts_of(wholes: Iterable[tuple[Tensor, list[Tensor]]]) -> Iterator[None]:
    """Within, anchors of parts are rounded as at their places in the wholes.

    Args:
        wholes: the numbers of the elements of each whole, and its parts as parameters, each with
            its elements' numbers as ``elements``.
    """
    known: dict[Tensor, tuple[Tensor, Tensor]] = {}
    for whole, parts in wholes:
        columns = max(1, whole[:1].numel())
        for part in parts:
            numbers = part.elements  # type: ignore[attr-defined]
            if numbers.numel() and numbers.dim() > 1:
                numbers = numbers.flatten(1)
                known[part] = numbers[:, 0] // columns, numbers[0] % columns
    usual = anchor.where_of
    anchor.where_of = lambda param, _: known[param]
    try:
        yield
    finally:
        anchor.where_of = usual


def numbered(tensor: Tensor) -> Tensor:
    return torch.arange(tensor.numel()).view(tensor.shape)


def alone(
    way: str, world: int, name: str, kwargs: dict[str, Any], rows: int = 256
) -> dict[str, Any]:
    """The run in one process, where each block is a parameter of its own."""
    whole = list(Parameters().parts)
    parts = [[nn.Parameter(b.clone()) for b in cut(p.detach(), way, world, rows)] for p in whole]
    for p, blocks in zip(whole, parts, strict=True):
        for block, numbers in zip(blocks, cut(numbered(p), way, world, rows), strict=True):
            block.elements = numbers  # type: ignore[attr-defined]
    optimizer = make(name, [block for blocks in parts for block in blocks], **kwargs)
    found = []
    # The usual norm is that of whole parameters.
    states: list[dict[str, Any]] = [{"grad_norm_mean": 0.0, "grad_norm_var": 0.0} for _ in whole]
    wholes: list[Any] = [SimpleNamespace(state=state) for state in states]
    with (
        parts_of((numbered(p), blocks) for p, blocks in zip(whole, parts, strict=True)),
        mock.patch.object(protected, "usual_norm", side_effect=lambda _: usual_norm(wholes)),
    ):
        for step in range(STEPS):
            count = consolidations(optimizer)
            norms = [float(grad.norm()) for grad in gradients()[step]]
            track(states, norms, optimizer.param_groups[0]["stats_beta"])
            for blocks, grad in zip(parts, gradients()[step], strict=True):
                for block, part in zip(blocks, cut(grad, way, world, rows), strict=True):
                    block.grad = part.clone()
            optimizer.step()
            found += [step] if consolidations(optimizer) > count else []
    joined = [
        torch.cat([block.detach() for block in blocks], p.dim() - 1 if way == "columns" else 0)
        for p, blocks in zip(whole, parts, strict=True)
    ]
    threshold = dict(optimizer.param_groups[0]["threshold"])
    return {"found": found, "threshold": threshold, "params": joined}


# Of each parameter of Net: the dimensions along which it is cut, and into how many parts.
Cuts = dict[str, list[tuple[int, int]]]


def cuts_of(way: str, world: int) -> Cuts:
    """As ``models.placed`` places :class:`Net`."""
    rows = {"fsdp": world, "hybrid": world // 2, "fsdp-and-tensor-parallel": world // 2}
    parts = 2 if way.startswith("fsdp-and") else world
    found: Cuts = {name: [] for name in ("0.weight", "0.bias", "2.weight", "2.bias")}
    if "tensor-parallel" in way:
        for name, dim in (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)):
            found[name].append((dim, parts))
    if way in rows:
        for name in found:
            found[name].append((0, rows[way]))
    return found


def apart(tensor: Tensor, cuts: list[tuple[int, int]]) -> Any:
    """A tensor cut along one dimension after the other, as nested lists."""
    if not cuts:
        own = tensor.detach().clone()
        return nn.Parameter(own) if own.is_floating_point() else own
    (dim, count), *rest = cuts
    return [apart(part, rest) for part in tensor.chunk(count, dim)]


def together(parts: Any, cuts: list[tuple[int, int]]) -> Tensor:
    if not cuts:
        found: Tensor = parts
        return found
    return torch.cat([together(part, cuts[1:]) for part in parts], cuts[0][0])


def leaves(parts: Any) -> list[Tensor]:
    return [leaf for part in parts for leaf in leaves(part)] if isinstance(parts, list) else [parts]


def trained_alone(way: str, world: int, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The run of ``jobs.trained`` in one process, where each block is a parameter of its own."""
    model, cuts = Net(), cuts_of(way, world)
    parts = {key: apart(param, cuts[key]) for key, param in model.named_parameters()}
    optimizer = make(name, leaves(list(parts.values())), **kwargs)
    numbers = {key: numbered(param) for key, param in model.named_parameters()}
    for key, number in numbers.items():
        for part, own in zip(leaves(parts[key]), leaves(apart(number, cuts[key])), strict=True):
            part.elements = own  # type: ignore[attr-defined]

    def forward(inputs: Tensor) -> Tensor:
        weights = {key: together(part, cuts[key]) for key, part in parts.items()}
        found: Tensor = torch.func.functional_call(model, weights, (inputs,))
        return found

    with parts_of((numbers[key], leaves(parts[key])) for key in parts):
        found = train(optimizer, forward, slice(None))
    params = [together(part, cuts[key]).detach() for key, part in parts.items()]
    return {"found": found, "threshold": optimizer.param_groups[0]["threshold"], "params": params}


def offloaded(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Parameters, gradients and all state on the host, whatever the mesh."""
    model = Net()
    fully_shard(model, mesh=mesh_of(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    optimizer = make("SALAdamW", model.parameters(), **kwargs)
    part = slice(dist.get_rank(), None, dist.get_world_size())
    found = train(optimizer, model, part)
    return outcome(optimizer, found)


def saved(rows: int, *run: Any) -> dict[str, Any]:
    """``checkpoints.save`` with blocks of so many rows."""
    with block_rows(rows):
        return checkpoints.save(*run)


def resumed(rows: int, *run: Any) -> dict[str, Any]:
    with block_rows(rows):
        return checkpoints.resume(*run)
