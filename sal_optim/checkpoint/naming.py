"""Names of an optimizer's parameters, by which state of one optimizer fits another one's groups.

Names are ``param_names`` of the param groups, which torch.optim keeps where an optimizer is made of
``model.named_parameters()``, or those of a model.
"""

from collections import Counter
from itertools import chain, islice
from typing import Any

from torch import Tensor, nn

from sal_optim.checkpoint.frame import StateDict
from sal_optim.protection import buffers
from sal_optim.utils import checks
from sal_optim.utils.naming import unwrapped

Groups = list[dict[str, Any]]

# What is of all groups, and kept in the first.
SHARED = ("threshold", buffers.KEY)
# What is no setting.
MEMBERS = ("params", "param_names")


def names_of(groups: Groups, model: nn.Module | None = None) -> dict[Tensor, str]:
    """Each parameter of the groups with its name.

    Args:
        model: whose names are taken; without one, and for parameters that are not its own, those
            that the groups hold.

    Raises:
        ValueError: there are no names, or ``model`` lacks some of the parameters.
    """
    params = [param for group in groups for param in group["params"]]
    # A parameter may have been added to a group's list by hand.
    counts = [len(group.get("param_names", ())) for group in groups]
    complete = counts == [len(group["params"]) for group in groups]
    names = unwrapped(chain.from_iterable(group.get("param_names", ()) for group in groups))
    if model is None:
        if not complete:
            lacks = f"has {sum(counts)} names of {len(params)} parameters"
            lacks = lacks if sum(counts) else "was made without names"
            raise ValueError(
                f"Invalid model value: None; the optimizer {lacks}, so model must be the module "
                "that holds its parameters (or make it of model.named_parameters())"
            )
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(
                f"Invalid model value: None; the optimizer has several parameters {twice!r}, so "
                "model must be a module that holds them all under names of their own, such as a "
                "torch.nn.ModuleDict of the models"
            )
        return dict(zip(params, names, strict=True))
    checks.model(model, groups)
    named = list(model.named_parameters())
    known = dict(zip((p for _, p in named), unwrapped(n for n, _ in named), strict=True))
    whole = complete and len(set(names)) == len(names)
    held = dict(zip(params, names, strict=True)) if whole else {}
    if all(known.get(param, name) == name for param, name in held.items()):
        known = {**held, **known}  # parameters of another module, such as a loss's own
    missing = [param for param in params if param not in known]
    if missing:
        raise ValueError(
            f"Invalid model value: a {type(model).__name__} without {len(missing)} of the "
            f"optimizer's {len(params)} parameters (the first is of shape "
            f"{tuple(missing[0].shape)}); model must be the module that holds all of them"
        )
    return {param: known[param] for param in params}


def regrouped(groups: Groups, state_dict: StateDict) -> StateDict:
    """A state dict with its parameters in the groups that an optimizer has them in, by name.

    Returned as it is where groups are alike already, or where one of the two has no names. A group
    whose parameters were all in one saved group has that one's settings, but for those in which it
    differs from another group that comes of it; any other has its own.

    Raises:
        ValueError: names are missing on one side.
    """
    saved = state_dict.get("param_groups")
    if not (isinstance(saved, list) and _named(groups) and _named(saved)):
        return state_dict
    own_names, saved_names = _by_group(groups), _by_group(saved)
    alike = own_names == saved_names or all(
        # As they were before one of several models was wrapped.
        len(groups) == len(saved) and unwrapped(one) == unwrapped(other)
        for one, other in zip(own_names, saved_names, strict=False)
    )
    if alike or any(
        len(group["params"]) != len(names) for group, names in zip(saved, saved_names, strict=True)
    ):
        return state_dict
    places = {
        name: (index, key)
        for index, (group, names) in enumerate(zip(saved, saved_names, strict=True))
        for name, key in zip(names, group["params"], strict=True)
    }
    own_set = set(chain.from_iterable(own_names))
    if len(own_set) < sum(map(len, own_names)) or len(places) < sum(map(len, saved_names)):
        return state_dict  # of several models with the same names
    _check_same_names(own_set, set(places))
    found = []
    origins = [{places[name][0] for name in names} for names in own_names]
    for own, names, origin in zip(groups, own_names, origins, strict=True):
        settings = {name: value for name, value in own.items() if name not in (*SHARED, *MEMBERS)}
        if len(origin) == 1:
            beside = [group for group, its in zip(groups, origins, strict=True) if its == origin]
            told = {n: v for n, v in settings.items() if any(g.get(n, v) != v for g in beside)}
            settings = {**saved[next(iter(origin))], **told}
        settings["params"] = [places[name][1] for name in names]
        settings["param_names"] = list(own["param_names"])
        found.append(settings)
    for name in SHARED:
        kept = [group[name] for group in saved if name in group]
        for group in found:
            group.pop(name, None)
        if kept:
            found[0][name] = kept[0]
    return {**state_dict, "param_groups": found}


def _by_group(groups: Groups) -> list[list[str]]:
    """Names of the parameters of each group; what wraps a model is before those of all of them."""
    names = iter(unwrapped(chain.from_iterable(group["param_names"] for group in groups)))
    return [list(islice(names, len(group["param_names"]))) for group in groups]


def _named(groups: list[Any]) -> bool:
    return bool(groups) and all(
        isinstance(group, dict)
        and isinstance(group.get("params"), (list, tuple))
        and isinstance(group.get("param_names"), (list, tuple))
        and all(isinstance(name, str) for name in group["param_names"])
        for group in groups
    )


def _check_same_names(own: set[str], saved: set[str]) -> None:
    for missing, where, has in (
        (sorted(saved - own), "this optimizer", "the state dict"),
        (sorted(own - saved), "the state dict", "this optimizer"),
    ):
        if missing:
            raise ValueError(
                f"loaded state dict has other parameters: {where} has no {missing[0]!r}, which "
                f"{has} has ({len(missing)} such); importance of the parameters that both have can "
                "be passed on by save_importance() and load_importance(strict=False)"
            )
