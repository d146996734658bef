"""SALMuon: which parameters Muon takes, which AdamW takes, and that both are torch's.

What it has in common with the family is tested by its row in ``testing/rows.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALAdamW, SALMuon
from sal_optim import muon as module
from tests.testing.drive import (
    assert_equal,
    assert_same_state,
    clone_params,
    consolidations,
    drive,
    make_params,
    profile,
    reload,
    snapshot,
    step_with,
    stream,
)

pytestmark = pytest.mark.skipif(not module.HAS_MUON, reason="torch.optim.Muon is of torch 2.9")


def network() -> nn.Sequential:
    """An embedding, a convolution, a norm, a hidden matrix and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(9, 6),
        nn.Conv1d(4, 4, 3, padding=1),
        nn.LayerNorm(6),
        nn.Flatten(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def split(model: nn.Sequential) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Hidden matrices; embedding and head; all others."""
    outer = [model[0].weight, model[6].weight]
    hidden = [p for p in model.parameters() if p.dim() == 2 and all(p is not q for q in outer)]
    return hidden, outer, [p for p in model.parameters() if p.dim() != 2]


def train(model: nn.Module, optimizers: list[Any], schedulers: list[Any], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randint(0, 9, (8, 4), generator=generator)
        loss = nn.functional.cross_entropy(model(x), x.sum(1) % 3)
        model.zero_grad()
        loss.backward()
        for acting in (*optimizers, *schedulers):
            acting.step()


def test_a_whole_model_is_torchs_muon_and_adamw() -> None:
    """With groups, as Muon's users write them, and a schedule of both rates."""
    ours, theirs = network(), network()
    hidden, outer, rest = split(ours)
    adamw = {"use_muon": False, "lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-10}
    groups = [{"params": hidden, "weight_decay": 0.01}, {"params": outer, **adamw}]
    one = SALMuon([*groups, {"params": rest, "adamw_lr_ratio": 0.1}], lr=0.02, protection=0)
    hidden, outer, rest = split(theirs)
    others = [
        torch.optim.Muon(hidden, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=0.02 * 0.1, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.1),
    ]
    halved = torch.optim.lr_scheduler.StepLR
    train(ours, [one], [halved(one, 25, 0.5)], 80)
    train(theirs, others, [halved(other, 25, 0.5) for other in others], 80)
    assert_equal(list(ours.parameters()), list(theirs.parameters()))
    assert not torch.equal(ours[4].weight, network()[4].weight)
    kept = [{*one.state[p]} for group in one.param_groups for p in group["params"]]
    assert kept[0] == {"momentum_buffer"}
    assert all(names == {"step", "exp_avg", "exp_avg_sq"} for names in kept[1:])


def test_protection_acts_on_both_and_resumes_exactly() -> None:
    params = make_params([(6, 5), (5,), (3, 2, 4)])
    twin = clone_params(params)
    grads = stream(params, profile(100))
    optimizer, base = SALMuon(params, lr=0.01), SALMuon(twin, lr=0.01, protection=0)
    drive(optimizer, params, grads)
    drive(base, twin, grads)
    assert consolidations(optimizer) > 0
    assert not any(torch.equal(p, q) for p, q in zip(params, twin, strict=True))
    new = clone_params(params)
    resumed = SALMuon(new, lr=0.5)
    resumed.load_state_dict(reload(optimizer.state_dict()))
    for now in stream(params, profile(40), seed=3):
        step_with(optimizer, params, now)
        step_with(resumed, new, now)
    assert_equal(params, new)
    assert_same_state(snapshot(optimizer), snapshot(resumed))


def test_a_checkpoint_of_adamw_goes_on_where_adamw_does() -> None:
    """Matrices begin anew: what AdamW kept of them says nothing to Muon."""
    params = make_params([(6, 5), (5,)])
    adamw = SALAdamW(params)
    drive(adamw, params, stream(params, profile(5)))
    optimizer = SALMuon(clone_params(params))
    optimizer.load_state_dict(adamw.state_dict())
    matrix, vector = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    assert not {"exp_avg", "exp_avg_sq", "step"} & set(matrix)
    assert vector["step"] == 5
    assert torch.equal(vector["exp_avg"], adamw.state[params[1]]["exp_avg"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_muon", "yes"),
        ("adamw_lr_ratio", -1.0),
        ("ns_steps", -1),
        ("ns_steps", 1.5),
        ("ns_steps", 100),
        ("ns_coefficients", (1.0, 2.0)),
        ("ns_coefficients", "abc"),
        ("ns_coefficients", (1.0, 2.0, float("nan"))),
        ("adjust_lr_fn", "none"),
    ],
)
def test_its_own_arguments_are_checked(name: str, value: Any) -> None:
    for groups in (make_params(), [{"params": make_params(), name: value}]):
        given = {} if isinstance(groups[0], dict) else {name: value}
        with pytest.raises(ValueError, match=f"Invalid {name} value"):
            SALMuon(groups, **given)


def test_a_torch_without_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_MUON", False)
    with pytest.raises(RuntimeError, match=r"no torch\.optim\.Muon.*2\.9"):
        SALMuon(make_params())
