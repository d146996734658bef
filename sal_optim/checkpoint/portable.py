"""Importance of one parameter in a form that any number of processes reads.

Where a matrix is cut over processes, its importance is of blocks. They are kept one after the
other, with the place of each. Who has other blocks makes theirs of them.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sal_optim.importance import IMPORTANCE, Importance, State
from sal_optim.importance.blocked import Blocked
from sal_optim.importance.reblocking import Piece, reblocked
from sal_optim.protection import anchor
from sal_optim.protection.block import Group, kind_of_param, local_state
from sal_optim.sharding.dtensor import plain, real_shape, whole
from sal_optim.sharding.places import Place, place_of, places_here, places_of_all, whole_of


class Portable(NamedTuple):
    """Importance and anchor of one parameter, without what is pending."""

    tensors: State  # of all blocks, with a first dimension that counts them, where there are places
    places: list[Place] | None = None  # of the blocks; None: one block, which is the whole


def base_of(param: Tensor, group: Group) -> Importance:
    """The kind of importance that a parameter has, or that each of its blocks has."""
    kind = kind_of_param(param, group)
    return kind.kind if isinstance(kind, Blocked) else kind


def name_of(param: Tensor, group: Group) -> str:
    """The name of that kind, whatever the setting."""
    return type(base_of(param, group)).__name__.lower()


def kept(kind: Importance, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the importance of one block, without what is pending."""
    return {name: s for name, s in kind.shapes(shape, rank).items() if "pending" not in name}


def gathered(param: Tensor, group: Group, state: State) -> Portable:
    """The importance of a parameter from all its processes, each of which must call it."""
    kind, places, suffix, depth = kind_of_param(param, group), None, "", 0
    if isinstance(kind, Blocked) and kind.layout.lead:
        places, suffix, depth = places_of_all(param), kind.layout.suffix, len(kind.layout.lead)
    tensors: State = {}
    for name in kept(base_of(param, group), real_shape(param), group["rank"]):
        value = whole(state[f"{name}{suffix}"].detach())
        tensors[name] = value.flatten(0, depth - 1) if depth else value
    if "anchor" in state:
        there: Tensor = state["anchor"].detach()
        if there.dtype == torch.int8:
            there = whole_of(anchor.read(local_state(state), torch.float32), param)
        tensors["anchor"] = plain(whole(there))
    return Portable({name: value.cpu().contiguous() for name, value in tensors.items()}, places)


def misfit(param: Tensor, group: Group, found: Portable) -> str | None:
    """Why importance can't be that of a parameter, for a message; None if it can."""
    shape, rank = real_shape(param), group["rank"]
    places = _places(found, shape)
    if not _makes_up(places, shape):
        return "blocks that are not of its shape"
    wanted: dict[str, tuple[int, ...]] = {}
    # Processes without a part have blocks of nothing.
    for place in [p for p in places if p.numel or found.places is None]:
        for name, size in kept(base_of(param, group), place.size, rank).items():
            wanted[name] = tuple(map(max, zip(size, wanted.get(name, size), strict=True)))
    lead = () if found.places is None else (len(places),)
    for name, size in {**wanted, "anchor": shape}.items():
        value = found.tensors.get(name)
        if value is None:
            if name == "anchor":
                continue
            return f"no {name!r} in the file"
        size = size if name == "anchor" else (*lead, *size)
        if tuple(value.shape) != size:
            other = "" if name in ("anchor", "evidence") else f" (rank={rank} here)"
            return f"{name!r} of shape {tuple(value.shape)}, not {size}{other}"
        if not (value.dtype.is_floating_point or name == "anchor"):
            return f"{name!r} of {value.dtype}, which is no dtype of importance"
        if not bool(value.isfinite().all()):
            return f"{name!r} with values that are not finite"
    return None


def _places(found: Portable, shape: tuple[int, ...]) -> list[Place]:
    return found.places if found.places is not None else [Place((0,) * len(shape), shape)]


def _makes_up(places: list[Place], shape: tuple[int, ...]) -> bool:
    """Whether boxes lie in a tensor of a shape, and are together as large."""
    return sum(place.numel for place in places) == math.prod(shape) and all(
        len(place.start) == len(place.size) == len(shape)
        and all(
            0 <= first <= first + size <= length
            for first, size, length in zip(*place, shape, strict=True)
        )
        for place in places
    )


def put(param: Tensor, group: Group, found: Portable, state: State) -> None:
    """Write importance that is no misfit into a parameter's state, which is there as zeros.

    The state is as ``protection.block.prepare`` makes it. No process needs another here.
    """
    kind, base, own = kind_of_param(param, group), base_of(param, group), place_of(param)
    local, values = local_state(state), plain(param.detach())
    if base is IMPORTANCE["diagonal"]:
        local["evidence"].copy_(found.tensors["evidence"][own.slices])
    elif isinstance(kind, Blocked):
        blocks = kind.blocks({n: v for n, v in local.items() if n != "anchor"}, values)
        for (part, _), place in zip(blocks, places_here(param), strict=True):
            _fill(param, group, found, part, place)
    elif own.numel:
        _fill(param, group, found, local, own)
    if "anchor" in local and "anchor" in found.tensors:
        there = found.tensors["anchor"][own.slices].to(values.device)
        anchor.write(local, there, 0.5, param)


def _fill(param: Tensor, group: Group, found: Portable, state: State, place: Place) -> None:
    """The importance of one new block."""
    base, rank = base_of(param, group), group["rank"]
    pieces = []
    for index, old in enumerate(_places(found, real_shape(param))):
        box = place.shared(old)
        if box is None:
            continue
        there = {
            name: _cut(found, name, index, size)
            for name, size in kept(base, old.size, rank).items()
        }
        if old == place:  # the same block, so that nothing is rounded
            for name, value in there.items():
                state[name].copy_(value)
            return
        pieces.append(Piece(there, old.rows_and_columns(box), place.rows_and_columns(box)))
    reblocked(base, pieces, state)


def _cut(found: Portable, name: str, index: int, size: tuple[int, ...]) -> Tensor:
    """One block's tensor; that of a smaller block is the first part of its place."""
    value: Tensor = found.tensors[name]
    return value if found.places is None else value[index][tuple(slice(n) for n in size)]
