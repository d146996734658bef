"""Importance out of a whole checkpoint of ``torch.distributed.checkpoint``.

That one loads importance of sharded matrices where they are cut into the same blocks, see
``resharding.py``. Here all blocks are read, and whoever has others makes theirs, as of a file. Each
process reads all importance and anchors, on its host, and communicates nothing.
"""

import contextlib
import itertools
import math
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sal_optim.checkpoint.importance_file import COUNTS, Content
from sal_optim.importance import State
from sal_optim.sharding.places import Place
from sal_optim.utils import checks

Shape = tuple[int, ...]
# By what kinds of importance are told, and the tensors that say how many rows and columns a block
# has, in their dimension before the last and in their last.
KINDS = {"left_values": "kronecker", "evidence_row": "factored", "evidence": "diagonal"}
ROWS = {"kronecker": ("left_basis", -2), "factored": ("evidence_row", -2)}
COLUMNS = {"kronecker": ("right_basis", -2), "factored": ("evidence_column", -1)}


def read(path: str, shapes: dict[str, Shape]) -> Content:
    """What the checkpoint in a folder holds of parameters, given by name with their real shapes.

    Raises:
        ValueError: it is no such checkpoint, there is no importance in it, or matrices are cut in a
            way that it does not tell.
    """
    # Only asked for here: most who hand importance on have no checkpoint of this kind.
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (Path(path) / ".metadata").is_file():
        raise ValueError(
            f"Invalid path value: {path!r} is a folder; path must be a file that save_importance() "
            "wrote, or the folder of a checkpoint of torch.distributed.checkpoint"
        )
    reader = FileSystemReader(path)
    with _readable(path):
        there: dict[str, Any] = reader.read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {}
    parts: dict[str, dict[str, tuple[str, Shape]]] = {}
    for key, about in there.items():
        name, part, lead = _of_state(key, shapes)
        if part == "evidence_weight":
            wanted[key] = 0.0
            parts.setdefault(name, {})[part] = (key, ())
        elif part in ("anchor", "anchor_scale") or part.startswith(("evidence", "left_", "right_")):
            if part != "anchor_scale" and "pending" not in part:
                dtype = about.properties.dtype
                wanted[key] = torch.empty(about.size, dtype=dtype, device="cpu")
            parts.setdefault(name, {})[part] = (key, lead)
    counted = {
        found[1]: key
        for key in there
        if (found := re.search(r"\bparam_groups\..*\bthreshold\.(\w+)$", key))
        and found[1] in COUNTS
    }
    wanted.update(dict.fromkeys(counted.values(), 0.0))
    with _readable(path), warnings.catch_warnings():
        # That there are no other processes is what is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(wanted, storage_reader=reader, no_dist=True)
    content = Content({}, {}, {}, {}, {name: wanted[key] for name, key in counted.items()})
    for name, own in parts.items():
        if wanted.get(own.get("evidence_weight", ("",))[0], 0.0):
            _add(content, name, shapes[name], own, wanted)
    if not content.tensors:
        raise ValueError(
            f"Invalid path value: {path!r} has no importance of this model's parameters"
        )
    return content


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Within, what torch can't read is a ValueError; its own is no Exception."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (CheckpointException, OSError, EOFError, pickle.UnpicklingError) as error:
        told = str(error).strip().rpartition("\n")[2]  # after a traceback
        raise ValueError(
            f"Invalid path value: {path!r} can't be read ({told:.200}); path must be the "
            "folder of a whole checkpoint of torch.distributed.checkpoint"
        ) from error


def _of_state(key: str, shapes: dict[str, Shape]) -> tuple[str, str, Shape]:
    """Of which parameter and part of its state a key is, and how many blocks; ``""`` of none."""
    # A parameter's own name, or what the checkpoint puts before it, may have "state." in it.
    at = r"(?<![^.])state\.(?=(.+)\.(\w+?)(?:_of_(\d+(?:x\d+)*))?$)"
    for name, part, lead in re.findall(at, key):
        if name in shapes:
            return name, part, tuple(map(int, lead.split("x"))) if lead else ()
    return "", "", ()


def _add(
    content: Content,
    name: str,
    shape: Shape,
    own: dict[str, tuple[str, Shape]],
    values: dict[str, Any],
) -> None:
    kind = next(kind for part, kind in KINDS.items() if part in own)
    tensors: State = {}
    lead: Shape = ()
    for part, (key, cut) in own.items():
        value = values.get(key)
        if isinstance(value, Tensor):
            lead = cut or lead
            tensors[part] = value.flatten(0, len(cut) - 1) if cut else value
    places = _places(shape, lead, kind, tensors) if lead else None
    if "anchor_scale" in own or (lead and places is None):
        raise ValueError(
            f"Invalid path value: how {name!r} is cut can't be read from the checkpoint; use a "
            "file of save_importance()"
        )
    content.tensors[name], content.kinds[name] = tensors, kind
    content.weights[name] = checks.number(name, values[own["evidence_weight"][0]])
    if places is not None:
        content.places[name] = places


def _places(shape: Shape, lead: Shape, kind: str, tensors: State) -> list[Place] | None:
    """Where blocks lie that rows, columns or both are cut into; None if that is not clear."""
    if len(lead) > 2:
        return None
    (rows, at), (columns, to) = ROWS[kind], COLUMNS[kind]
    block = tensors[rows].shape[at], tensors[columns].shape[to]
    size = shape[0], math.prod(shape[1:])
    cuts = {(lead[0], 1), (1, lead[0])} if len(lead) == 1 else {lead, lead[::-1]}
    fitting = [
        cut
        for cut in cuts
        if tuple(-(-n // count) for n, count in zip(size, cut, strict=True)) == block
        or (cut == (lead[0], 1) and block[1] == size[1] and -(-size[0] // block[0]) == lead[0])
    ]
    if len(fitting) != 1 or (fitting[0][1] > 1 and len(shape) > 2):
        return None
    by_row, by_column = fitting[0]
    cells = list(itertools.product(range(by_row), range(by_column)))
    if len(lead) == 2 and fitting[0] != lead:
        # The first dimension of the mesh cuts columns: blocks are in its order.
        cells.sort(key=lambda cell: cell[::-1])
    found = []
    for row, column in cells:
        top, left = min(row * block[0], size[0]), min(column * block[1], size[1])
        here = min(block[0], size[0] - top), min(block[1], size[1] - left)
        found.append(Place((top, left), here))
    if len(shape) == 2:
        return found
    rest = (0,) * (len(shape) - 1), shape[1:]
    return [Place((p.start[0], *rest[0]), (p.size[0], *rest[1])) for p in found]
