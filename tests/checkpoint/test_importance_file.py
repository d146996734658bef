"""Two training runs: importance and anchors alone in a file, by name, and nothing half loaded."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sal_optim import (
    SALSGD,
    CommunicationLayer,
    SALAdamW,
    SALLion,
    load_importance,
    save_importance,
)
from sal_optim.monitoring.lookup import required_protection
from tests.testing.digits import task
from tests.testing.drive import flat

pytest.importorskip("safetensors")
BATCH = 64


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(data[0]), data[1])


def train(model: nn.Module, optimizer: Optimizer, data: tuple[Tensor, Tensor], steps: int) -> None:
    for step in range(steps):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(data[0])
        optimizer.zero_grad()
        loss_of(model, (data[0][rows], data[1][rows])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def layered(params: Any, **settings: Any) -> Optimizer:
    optimizer = torch.optim.RMSprop(params, lr=2e-3)
    CommunicationLayer(optimizer, **settings)
    return optimizer


def adamw(params: Any, **settings: Any) -> Optimizer:
    return SALAdamW(params, lr=3e-3, **settings)


def sgd(params: Any, **settings: Any) -> Optimizer:
    return SALSGD(params, lr=0.1, momentum=0.9, **settings)


def lion(params: Any, **settings: Any) -> Optimizer:
    return SALLion(params, lr=3e-3, **settings)


def first_run(path: Path, build: Any = adamw, **settings: Any) -> tuple[nn.Module, Optimizer]:
    model = network()
    optimizer = build(model.named_parameters(), **settings)
    train(model, optimizer, task(1), 160)
    required_protection(optimizer).consolidate()
    save_importance(optimizer, path)
    return model, optimizer


@pytest.mark.parametrize("build", [adamw, sgd, lion, layered])
def test_a_second_run_forgets_less(build: Any, tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a", build)
    old = []
    for loads in (False, True):
        again = copy.deepcopy(model)
        optimizer = build(again.named_parameters())
        if loads:
            found = load_importance(optimizer, tmp_path / "a")
            assert len(found.loaded) == 4
            assert found[1:] == ([], [])
        train(again, optimizer, task(2), 80)
        old.append(float(loss_of(again, task(1)).detach()))
    assert old[1] < 0.6 * old[0]


@pytest.mark.parametrize("importance", ["kronecker", "diagonal", "factored"])
@pytest.mark.parametrize("build", [adamw, layered])
def test_what_is_loaded_protects_as_before(importance: str, build: Any, tmp_path: Path) -> None:
    model, optimizer = first_run(tmp_path / "a", build, importance=importance)
    again = copy.deepcopy(model)
    other = build(again.parameters(), importance=importance)
    load_importance(other, tmp_path / "a", again)
    one, two = required_protection(optimizer), required_protection(other)
    for param, copied in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(two.stability(copied), one.stability(param))
        assert float(two.stability(copied).max()) > 0.5, "in its whole strength"
    kept = ("consolidations", "protected", "neutral", "volatile", "mean_gate", "drift")
    before, after = one.diagnostics(), two.diagnostics()
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    save_importance(other, tmp_path / "b", again)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    train(again, other, task(2), 5)
    resumed = build(again.parameters(), importance=importance)
    resumed.load_state_dict(other.state_dict())


def test_the_file_is_small_and_of_names(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, _ = first_run(tmp_path / "a.safetensors", rank=4)
    scalars = sum(param.numel() for param in model.parameters())
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * 4 * scalars
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        keys = set(file.keys())
    assert {"0.weight.anchor", "0.weight.left_basis", "0.bias.evidence"} <= keys
    assert not any("exp_avg" in key or "pending" in key for key in keys)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_names_go_without_what_wraps_a_model(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a")
    wrapped = nn.DataParallel(copy.deepcopy(model))
    assert len(load_importance(adamw(wrapped.named_parameters()), tmp_path / "a").loaded) == 4
    compiled = torch.compile(copy.deepcopy(model))
    optimizer = adamw(compiled.parameters())
    assert len(load_importance(optimizer, tmp_path / "a", compiled).loaded) == 4


def test_a_new_head_begins_free(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a")
    grown = nn.ModuleDict({"0": copy.deepcopy(model[0]), "head": nn.Linear(32, 7)})  # type: ignore[index]
    optimizer = adamw(grown.named_parameters())
    before = leaves(optimizer)
    with pytest.raises(ValueError, match=r"no parameter '2\.weight'.*strict=False"):
        load_importance(optimizer, tmp_path / "a")
    assert leaves(optimizer) == before
    found = load_importance(optimizer, tmp_path / "a", strict=False)
    assert found.loaded == ["0.weight", "0.bias"]
    assert found.new == ["head.weight", "head.bias"]
    assert found.unused == ["2.weight", "2.bias"]


def test_precision_is_the_second_optimizers(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a", importance="diagonal")
    half = copy.deepcopy(model).bfloat16()
    optimizer = adamw(half.named_parameters(), importance="diagonal", state_dtype="bfloat16")
    load_importance(optimizer, tmp_path / "a")
    train(half, optimizer, tuple(x.bfloat16() if x.is_floating_point() else x for x in task(2)), 5)  # type: ignore[arg-type]
    assert optimizer.state[half[0].weight]["evidence"].dtype == torch.bfloat16  # type: ignore[index, union-attr]


def test_factors_stay_in_float32(tmp_path: Path) -> None:
    """In two bytes their directions are not orthogonal."""
    model, _ = first_run(tmp_path / "a")
    optimizer = adamw(model.named_parameters(), state_dtype="bfloat16")
    load_importance(optimizer, tmp_path / "a")
    weight: Tensor = model[0].weight  # type: ignore[index, assignment]
    state = required_protection(optimizer).controller.state_of(weight)
    assert {state[f"left_{name}"].dtype for name in ("basis", "values", "pending")} == {
        torch.float32
    }
    assert state["anchor"].dtype == torch.bfloat16


def test_into_an_optimizer_that_has_stepped(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a")
    optimizer = adamw(model.named_parameters())
    train(model, optimizer, task(2), 10)
    moments = [optimizer.state[param]["exp_avg"].clone() for param in model.parameters()]
    load_importance(optimizer, tmp_path / "a")
    for param, moment in zip(model.parameters(), moments, strict=True):
        assert torch.equal(optimizer.state[param]["exp_avg"], moment)
    assert required_protection(optimizer).diagnostics()["mean_gate"] < 1.0
    train(model, optimizer, task(2), 10)


def test_without_an_anchor(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a", pull=0.0)
    optimizer = adamw(model.named_parameters())
    load_importance(optimizer, tmp_path / "a")
    weight = model[0].weight  # type: ignore[index]
    anchor = required_protection(optimizer).controller.state_of(weight)["anchor"]  # type: ignore[arg-type]
    assert torch.equal(anchor, weight.detach()), "the present weights"  # type: ignore[operator, arg-type]


@pytest.mark.parametrize(
    ("build", "settings", "told"),
    [
        (adamw, {"importance": "diagonal"}, r"'0\.weight' was saved with.*kronecker.*diagonal"),
        (adamw, {"rank": 2}, r"'left_basis' of shape.*rank=2 here"),
        (layered, {"importance": "factored"}, r"kronecker.*factored"),
    ],
)
def test_what_does_not_fit_is_named(
    build: Any, settings: dict[str, Any], told: str, tmp_path: Path
) -> None:
    first_run(tmp_path / "a")
    model = network(3)
    optimizer = build(model.named_parameters(), **settings)
    required_protection(optimizer).diagnostics()
    before = leaves(optimizer)
    with pytest.raises(ValueError, match=told):
        load_importance(optimizer, tmp_path / "a")
    assert leaves(optimizer) == before


def test_wrong_arguments(tmp_path: Path) -> None:
    model, optimizer = first_run(tmp_path / "a")
    with pytest.raises(ValueError, match=r"model value: None.*named_parameters"):
        save_importance(adamw(model.parameters()), tmp_path / "b")
    with pytest.raises(ValueError, match=r"nothing is consolidated.*consolidate\(\)"):
        save_importance(adamw(model.named_parameters()), tmp_path / "b")
    with pytest.raises(ValueError, match="in a folder that exists"):
        save_importance(optimizer, tmp_path / "no" / "b")
    with pytest.raises(TypeError, match="path must be text"):
        save_importance(optimizer, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="CommunicationLayer"):
        save_importance(torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "b")
    with pytest.raises(ValueError, match="without 2 of the optimizer's 4 parameters"):
        load_importance(optimizer, tmp_path / "a", model[0])  # type: ignore[index]
    with pytest.raises(FileNotFoundError, match="is no file; path must be"):
        load_importance(optimizer, tmp_path / "none")
    for index, content in enumerate((b"", b"x" * 100, (tmp_path / "a").read_bytes()[:-9])):
        file = tmp_path / f"bad{index}"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"can't be read.*save_importance"):
            load_importance(optimizer, file)


def test_other_files_and_newer_ones(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, optimizer = first_run(tmp_path / "a")
    save_file(model.state_dict(), tmp_path / "weights")
    with pytest.raises(ValueError, match="another format"):
        load_importance(optimizer, tmp_path / "weights")
    metadata = {"sal_optim.importance": '{"version": 2}'}
    save_file(model.state_dict(), tmp_path / "newer", metadata=metadata)
    with pytest.raises(ValueError, match=r"version 2 .* up to 1"):
        load_importance(optimizer, tmp_path / "newer")


def test_a_failed_write_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, optimizer = first_run(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        save_importance(optimizer, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_loading_into_no_protection_is_told(tmp_path: Path) -> None:
    model, _ = first_run(tmp_path / "a")
    other = SALAdamW(model.parameters(), protection=0)
    with pytest.warns(UserWarning, match="protection=0 does not protect"):
        assert load_importance(other, tmp_path / "a", model).loaded


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = first_run(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'sal_optim\[transfer\]'"):
        save_importance(optimizer, tmp_path / "b")


# ---------------------------------------------------------------- whole checkpoints, by name


def in_groups(model: nn.Module, cls: Any = SALAdamW, **settings: Any) -> Any:
    """Groups as trainers make them: weights decay, biases do not."""
    named = list(model.named_parameters())
    return cls(
        [
            {"params": [x for x in named if x[0].endswith("weight")], "weight_decay": 0.1},
            {"params": [x for x in named if x[0].endswith("bias")], "weight_decay": 0.0},
        ],
        lr=1e-2,
        **settings,
    )


@pytest.mark.parametrize("grouped", [True, False])
def test_groups_that_differ_are_matched_by_name(grouped: bool) -> None:
    model = network()
    builds = [lambda m: in_groups(m), lambda m: SALAdamW(m.named_parameters(), lr=1e-2)]
    build, other = builds if grouped else builds[::-1]
    optimizer = build(model)
    train(model, optimizer, task(1), 80)
    optimizer.consolidate()
    again = copy.deepcopy(model)
    loaded = other(again)
    decays = [group["weight_decay"] for group in loaded.param_groups]
    loaded.load_state_dict(optimizer.state_dict())
    if grouped:
        assert [group["weight_decay"] for group in loaded.param_groups] == decays
    for param, copied in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(loaded.state[copied]["exp_avg"], optimizer.state[param]["exp_avg"])
        assert torch.equal(loaded.stability(copied), optimizer.stability(param))
    assert loaded.diagnostics() == pytest.approx(optimizer.diagnostics())
    train(again, loaded, task(2), 5)


def test_a_layers_groups_too() -> None:
    model = network()
    optimizer = in_groups(model, torch.optim.AdamW)
    CommunicationLayer(optimizer)
    train(model, optimizer, task(1), 80)
    required_protection(optimizer).consolidate()
    again = copy.deepcopy(model)
    loaded = torch.optim.AdamW(again.named_parameters(), lr=1e-2)
    layer = CommunicationLayer(loaded)
    loaded.load_state_dict(optimizer.state_dict())
    assert layer.diagnostics() == pytest.approx(required_protection(optimizer).diagnostics())


def test_groups_that_differ_without_names_say_what_to_do() -> None:
    model = network()
    saved = in_groups(model).state_dict()
    optimizer = SALAdamW(model.parameters())
    with pytest.raises(
        ValueError, match=r"has 2; this optimizer has 1.*named_parameters.*load_imp"
    ):
        optimizer.load_state_dict(saved)
    named = SALAdamW([("other", param) for param in model.parameters()][:1])
    with pytest.raises(ValueError, match=r"has no '0\.bias'.*strict=False"):
        named.load_state_dict(saved)


def leaves(optimizer: Any) -> Any:
    return copy.deepcopy(
        [(path, x.tolist() if isinstance(x, Tensor) else x) for path, x in flat(state(optimizer))]
    )


def state(optimizer: Any) -> dict[str, Any]:
    found: dict[str, Any] = optimizer.state_dict()
    found["param_groups"] = [
        {k: v for k, v in group.items() if k != "threshold" or any(v.values())}
        for group in found["param_groups"]
    ]
    return found


def test_what_was_observed_before_loading_counts_as_a_long_run(tmp_path: Path) -> None:
    first, second, model = network(), network(), network()
    one = adamw(first.named_parameters())
    train(first, one, task(0), 40)
    one.consolidate()
    save_importance(one, tmp_path / "a.safetensors")
    weights = []
    for net, when in ((second, "before"), (model, "after")):
        optimizer = adamw(net.named_parameters())
        if when == "after":
            load_importance(optimizer, tmp_path / "a.safetensors")
        with optimizer.observe():
            train(net, optimizer, task(0), 8)
        if when == "before":
            load_importance(optimizer, tmp_path / "a.safetensors")
        optimizer.consolidate()
        weights.append(optimizer.state_dict()["state"][0]["evidence_weight"])
    assert weights[0] == weights[1] > 10.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["left_values", "anchor"])
def test_values_that_are_not_finite_are_refused(part: str, value: float, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    model, optimizer = first_run(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = file.metadata()
    tensors[f"0.weight.{part}"].view(-1)[0] = value
    save_file(tensors, tmp_path / "b", metadata=about)
    before = required_protection(optimizer).diagnostics()
    with pytest.raises(ValueError, match=f"'0.weight' has '{part}' with values that are not fin"):
        load_importance(optimizer, tmp_path / "b", model)
    assert required_protection(optimizer).diagnostics() == before
