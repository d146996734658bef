"""A file of importance and anchors alone, which one training run passes on to the next.

It is a safetensors file: each tensor under the name of its parameter and of the state, such as
``0.weight.anchor``; numbers and the version of the format are in the metadata. It holds no moments,
no weights and nothing that is pending. Importance of a sharded matrix is in it block by block, with
the places of the blocks in the metadata.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sal_optim.checkpoint.portable import Portable, gathered, misfit, name_of
from sal_optim.checkpoint.portable import put as put_into
from sal_optim.checkpoint.validation import check_statistics, fitted_threshold
from sal_optim.detection.change_detector import new_detector
from sal_optim.importance import State, code_of
from sal_optim.protection.block import NUMBERS, Group, kind_of_param, prepare
from sal_optim.protection.controller import ProtectionController
from sal_optim.sharding.places import Place, one_writes
from sal_optim.utils import checks
from sal_optim.utils.autocasting import exact
from sal_optim.utils.lazy_import import extra_package

FORMAT, VERSION = "sal_optim.importance", 1
# What of the change detector holds for the next run; statistics begin anew.
COUNTS = ("total", "unit", "consolidations", "changes")


class Content(NamedTuple):
    """What a file holds."""

    tensors: dict[str, State]  # by parameter
    weights: dict[str, float]  # the sum of the weights of all consolidations, by parameter
    kinds: dict[str, str]  # of importance, by parameter
    places: dict[str, list[Place]]  # of blocks, by parameter, where there are several
    detector: dict[str, float]

    def of(self, name: str) -> Portable:
        """What it holds of one parameter."""
        return Portable(self.tensors[name], self.places.get(name))


def write(controller: ProtectionController, names: dict[Tensor, str], path: str) -> None:
    """Write the importance of an optimizer's parameters; raises as ``save_importance`` does.

    The file is there whole, or as it was before. Where parameters are sharded, every process must
    call this, and the first of them writes.
    """
    safetensors()
    from safetensors.torch import save_file

    found = list(controller.held())
    if not found:
        raise ValueError(
            "Invalid optimizer value: nothing is consolidated, so there is no importance to save; "
            "call consolidate() first, after steps or observe()"
        )
    tensors: dict[str, Tensor] = {}
    weights, kinds, places = {}, {}, {}
    with one_writes(param for param, _, _ in found) as writes:
        if writes:
            check_place(path)
        for param, group, state in found:
            name, portable = names[param], gathered(param, group, state)
            if writes:
                tensors.update({f"{name}.{key}": value for key, value in portable.tensors.items()})
            if portable.places is not None:
                places[name] = [[*place.start, *place.size] for place in portable.places]
            weights[name], kinds[name] = float(state["evidence_weight"]), name_of(param, group)
        about = {
            "version": VERSION,
            "weights": weights,
            "importance": kinds,
            "detector": {name: controller.detector[name] for name in COUNTS},
            **({"blocks": places} if places else {}),
        }
        if writes:
            with _replaced(path) as temporary:
                save_file(tensors, temporary, metadata={FORMAT: json.dumps(about)})


def read(path: str) -> Content:
    """What a file holds, checked as far as it can be without an optimizer.

    Raises as ``load_importance`` does.
    """
    package = safetensors()
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
            places = {name: _places(found) for name, found in about.get("blocks", {}).items()}
            tensors: dict[str, State] = {name: {} for name in weights}
            for key in file.keys():  # noqa: SIM118
                name, _, part = key.rpartition(".")
                tensors[name][part] = file.get_tensor(key)
        kinds = dict(kinds)
    except (
        package.SafetensorError, json.JSONDecodeError, KeyError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise ValueError(
            f"Invalid path value: {path!r} can't be read ({error}); {allowed}"
        ) from error
    return Content(tensors, weights, kinds, places, detector)


def _places(found: list[list[int]]) -> list[Place]:
    """Boxes as the file has them: where each begins in every dimension, and its sizes."""
    rows = [[checks.whole("blocks", number, low=0) for number in row] for row in found]
    return [Place(tuple(row[: len(row) // 2]), tuple(row[len(row) // 2 :])) for row in rows]


@exact
def put(
    controller: ProtectionController, names: dict[Tensor, str], content: Content, *, strict: bool
) -> list[str]:
    """Give an optimizer the importance of a file; protection is whole from the next step on.

    All is checked before anything changes. Returns the names of the parameters that have got
    importance; what does not fit is passed over, or with ``strict`` a ValueError that names it.
    """
    places = {
        names[param]: (param, group) for group in controller.groups for param in group["params"]
    }
    problems: list[str] = []
    states: list[tuple[Tensor, State]] = []
    for name in content.tensors:
        problem = _misfit(name, places, content)
        if problem is None:
            param, group = places[name]
            states.append((param, _state(name, param, group, content, controller)))
        else:
            problems.append(problem)
    if problems and (strict or not states):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        advice = "" if not strict else "; strict=False passes over what does not fit"
        raise ValueError(f"importance does not fit: {'; '.join(problems[:3])}{more}{advice}")
    saved = fitted_threshold("the file's detector", content.detector)
    fresh = {**new_detector(), **{name: saved[name] for name in COUNTS}, "firm": 1.0}
    fresh["observed"] = controller.detector["observed"]  # what is pending stays
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
    kind = name_of(param, group)
    if content.kinds.get(name) != kind:
        return (
            f"{name!r} was saved with importance={content.kinds.get(name)!r}, and has "
            f"importance={kind!r} here"
        )
    problem = misfit(param, group, content.of(name))
    return None if problem is None else f"{name!r} has {problem}"


def _state(
    name: str, param: Tensor, group: Group, content: Content, controller: ProtectionController
) -> State:
    """The state of one parameter, as a consolidation leaves it."""
    before, kind = controller.state_of(param), kind_of_param(param, group)
    found: State = {}
    prepare(param, found, group, kind)
    put_into(param, group, content.of(name), found)
    for number in NUMBERS:
        found[number] = before.get(number, 0.0)
    found["evidence_weight"], found["layout"] = content.weights[name], code_of(kind)
    for key, value in before.items():
        if "pending" in key and isinstance(value, Tensor):
            found.pop(key, None)  # what was gathered before stays
    check_statistics(f"the importance of {name!r}", param, group, {**before, **found})
    return found


def check_place(path: str) -> None:
    """Refuse a path at which no file can be written; raises ValueError."""
    target = Path(path).absolute()
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(
            f"Invalid path value: {path!r}; path must be that of a file, in a folder that exists"
        )


@contextlib.contextmanager
def _replaced(path: str) -> Iterator[str]:
    """A path beside another one, which what was written there then replaces."""
    target = Path(path).absolute()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield str(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def safetensors() -> Any:
    """The package, or an ImportError that says how to install it."""
    return extra_package("safetensors", "an importance file needs", "transfer")


def path_text(path: Any) -> str:
    """A path as text, with the home of ``~``; raises TypeError for anything else."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"Invalid path value: {path!r}; path must be text or a path")
    return os.path.expanduser(os.fsdecode(path))
