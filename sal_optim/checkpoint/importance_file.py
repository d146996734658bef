"""A file of importance and anchors alone, which one training run passes on to the next.

It is a safetensors file: each tensor under the name of its parameter and of the state, such as
``0.weight.anchor``; numbers and the version of the format are in the metadata. It holds no moments,
no weights and nothing that is pending.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sal_optim.checkpoint.validation import check_statistics, fitted_threshold
from sal_optim.detection.change_detector import new_detector
from sal_optim.importance import State
from sal_optim.protection import anchor
from sal_optim.protection.block import (
    NUMBERS,
    Group,
    dtype_of,
    kind_of_param,
    new_anchor,
    shapes,
)
from sal_optim.protection.controller import ProtectionController
from sal_optim.sharding.dtensor import is_distributed
from sal_optim.utils import checks

FORMAT, VERSION = "sal_optim.importance", 1
# What of the change detector holds for the next run; statistics begin anew.
_COUNTS = ("total", "unit", "consolidations", "changes")


class Content(NamedTuple):
    """What a file holds."""

    tensors: dict[str, State]  # by parameter
    weights: dict[str, float]  # the sum of the weights of all consolidations, by parameter
    kinds: dict[str, str]  # of importance, by parameter
    detector: dict[str, float]


def written(controller: ProtectionController, names: dict[Tensor, str], path: str) -> list[str]:
    """Write the importance of an optimizer's parameters; returns the names of those that have any.

    The file is there whole, or as it was before.

    Raises:
        ImportError: safetensors is not installed.
        ValueError: nothing is consolidated yet, parameters are sharded, or ``path`` is no place for
            a file.
    """
    save_file = _safetensors("torch").save_file
    tensors: dict[str, Tensor] = {}
    weights, kinds = {}, {}
    for param, group, state in _with_importance(controller):
        name = names[param]
        if is_distributed(param):
            raise ValueError(
                f"Invalid optimizer value: its parameter {name!r} is sharded; an importance file "
                "is of whole parameters: gather them, or use torch.distributed.checkpoint"
            )
        for key in (*_kept(param, group), "anchor"):
            if key in state:
                kept = state[key].detach()
                kept = anchor.read(state, torch.float32) if kept.dtype == torch.int8 else kept
                tensors[f"{name}.{key}"] = _real(kept).cpu().contiguous()
        weights[name] = float(state["evidence_weight"])
        kinds[name] = _kind(param, group)
    if not weights:
        raise ValueError(
            "Invalid optimizer value: nothing is consolidated, so there is no importance to save; "
            "call consolidate() first, after steps or observe()"
        )
    about = {
        "version": VERSION,
        "weights": weights,
        "importance": kinds,
        "detector": {name: controller.detector[name] for name in _COUNTS},
    }
    with _replaced(path) as temporary:
        save_file(tensors, temporary, metadata={FORMAT: json.dumps(about)})
    return list(weights)


def read(path: str) -> Content:
    """What a file holds, checked as far as it can be without an optimizer.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: it is no such file, or one of a newer version.
    """
    package = _safetensors()
    allowed = "path must be a file that save_importance() wrote"
    if not Path(path).is_file():
        raise FileNotFoundError(f"Invalid path value: {path!r} is no file; {allowed}")
    try:
        with package.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"Invalid path value: {path!r} is of another format; {allowed}")
            about = json.loads(metadata[FORMAT])
            version = checks.whole("version", about["version"], low=1)
            if version > VERSION:
                raise ValueError(
                    f"Invalid path value: {path!r} is of version {version} of the format; this "
                    f"sal_optim reads versions up to {VERSION}, a newer one reads it"
                )
            weights, kinds, detector = (about[n] for n in ("weights", "importance", "detector"))
            weights = {name: checks.number(name, value) for name, value in weights.items()}
            tensors: dict[str, State] = {name: {} for name in weights}
            for key in file.keys():  # noqa: SIM118
                name, _, part = key.rpartition(".")
                tensors[name][part] = file.get_tensor(key)
        kinds = dict(kinds)
    except (package.SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"Invalid path value: {path!r} can't be read ({error}); {allowed}"
        ) from error
    return Content(tensors, weights, kinds, detector)


def put(
    controller: ProtectionController, names: dict[Tensor, str], content: Content, *, strict: bool
) -> list[str]:
    """Give an optimizer the importance of a file; protection is whole from the next step on.

    All is checked before anything changes.

    Args:
        controller: of the optimizer.
        names: of its parameters.
        content: of the file.
        strict: whether everything in the file must fit; what does not is passed over otherwise.

    Returns:
        Names of the parameters that have got importance.

    Raises:
        ValueError: something does not fit; the message names it.
    """
    places = {
        names[param]: (param, group) for group in controller.groups for param in group["params"]
    }
    problems: list[str] = []
    states: list[tuple[Tensor, State]] = []
    for name, tensors in content.tensors.items():
        problem = _misfit(name, places, content)
        if problem is None:
            param, group = places[name]
            states.append((param, _state(name, param, group, tensors, content, controller)))
        else:
            problems.append(problem)
    if problems and (strict or not states):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        advice = "" if not strict else "; strict=False passes over what does not fit"
        raise ValueError(f"importance does not fit: {'; '.join(problems[:3])}{more}{advice}")
    saved = fitted_threshold("the file's detector", content.detector)
    fresh = {**new_detector(), **{name: saved[name] for name in _COUNTS}, "firm": 1.0}
    for param, state in states:
        own: State = controller.optimizer.state.get(param) or controller.early.setdefault(param, {})
        own.update(state)
    controller.forget()
    controller.detector.update(fresh)
    return [names[param] for param, _ in states]


def _misfit(name: str, places: dict[str, tuple[Tensor, Group]], content: Content) -> str | None:
    """Why what a file holds of a parameter can't be used; None if it can."""
    if name not in places:
        return f"this optimizer has no parameter {name!r}"
    param, group = places[name]
    if is_distributed(param):
        return f"{name!r} is sharded, and an importance file is of whole parameters"
    kind = _kind(param, group)
    if content.kinds.get(name) != kind:
        return (
            f"{name!r} was saved with importance={content.kinds.get(name)!r}, and has "
            f"importance={kind!r} here"
        )
    for key, shape in {**_kept(param, group), "anchor": tuple(param.shape)}.items():
        value = content.tensors[name].get(key)
        real = (*shape, 2) if key == "anchor" and param.is_complex() else shape
        if value is None and key != "anchor":
            return f"{name!r} has no {key!r} in the file"
        if value is not None and tuple(value.shape) != tuple(real):
            other = "" if key in ("anchor", "evidence") else f" (rank={group['rank']} here)"
            return f"{name!r} has {key!r} of shape {tuple(value.shape)}, not {tuple(real)}{other}"
    return None


def _state(
    name: str,
    param: Tensor,
    group: Group,
    tensors: State,
    content: Content,
    controller: ProtectionController,
) -> State:
    """The state of one parameter, as a consolidation leaves it."""
    before = controller.state_of(param)
    dtype = dtype_of(param, group)
    found: State = {}
    for key, shape in shapes(param, group).items():
        if "pending" not in key:
            found[key] = tensors[key].to(param.device, dtype, copy=True)
        elif key not in before:
            found[key] = torch.zeros(shape, dtype=dtype, device=param.device)
    if group["pull"] > 0.0:
        found.update(new_anchor(param, group))
        if "anchor" in tensors:
            saved = tensors["anchor"]
            saved = torch.view_as_complex(saved) if param.is_complex() else saved
            anchor.write(found, saved.to(param.device), 0.5, param)
    for number in NUMBERS:
        found[number] = before.get(number, 0.0)
    found["evidence_weight"] = content.weights[name]
    check_statistics(f"the importance of {name!r}", param, group, {**before, **found})
    return found


def _with_importance(controller: ProtectionController) -> Iterator[tuple[Tensor, Group, State]]:
    for group in controller.groups:
        for param in group["params"]:
            state = controller.state_of(param)
            if state.get("evidence_weight", 0.0) > 0.0:
                yield param, group, state


def _kept(param: Tensor, group: Group) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the importance of a parameter, without what is pending."""
    return {name: s for name, s in shapes(param, group).items() if "pending" not in name}


def _kind(param: Tensor, group: Group) -> str:
    """The kind of importance that a parameter has, whatever the setting."""
    return type(kind_of_param(param, group)).__name__.lower()


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value) if value.is_complex() else value


@contextlib.contextmanager
def _replaced(path: str) -> Iterator[str]:
    """A path beside another one, which what was written there then replaces."""
    target = Path(path).absolute()
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(
            f"Invalid path value: {path!r}; path must be that of a file, in a folder that exists"
        )
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield str(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors(part: str = "") -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "an importance file needs the package safetensors: pip install sal_optim[transfer]"
        ) from error
    return safetensors.torch if part else safetensors


def path_text(path: Any) -> str:
    """A path as text; raises TypeError for anything else."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Invalid path value: {path!r}; path must be text or a path")
    return os.fspath(path) if isinstance(os.fspath(path), str) else os.fsdecode(path)
