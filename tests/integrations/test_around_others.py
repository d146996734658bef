"""CommunicationLayer around optimizers of other packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sal_optim import CommunicationLayer
from tests.testing.layered import check_layer, problem

# All 29 of torch-optimizer 0.3 but Lookahead, which is no optimizer of its own; by their defaults
# where these train this problem.
TORCH_OPTIMIZER: dict[str, dict[str, Any]] = {
    "A2GradExp": {},
    "A2GradInc": {},
    "A2GradUni": {},
    "AccSGD": {"lr": 0.1},
    "AdaBelief": {},
    "AdaBound": {},
    "AdaMod": {},
    "Adafactor": {},
    "Adahessian": {},
    "AdamP": {},
    "AggMo": {},
    "Apollo": {},
    "DiffGrad": {},
    "LARS": {},
    "Lamb": {},
    "MADGRAD": {},
    "NovoGrad": {},
    "PID": {},
    "QHAdam": {},
    "QHM": {},
    "RAdam": {},
    "Ranger": {},
    "RangerQH": {},
    "RangerVA": {},
    "SGDP": {},
    "SGDW": {},
    "SWATS": {},
    "Shampoo": {},
    "Yogi": {},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", TORCH_OPTIMIZER)
def test_torch_optimizer(name: str) -> None:
    package = pytest.importorskip("torch_optimizer")
    cls, kwargs = getattr(package, name), TORCH_OPTIMIZER[name]
    check_layer(
        lambda params: cls(params, **kwargs),
        create_graph=name == "Adahessian",
    )


def test_all_of_torch_optimizer_are_here() -> None:
    package = pytest.importorskip("torch_optimizer")
    known = {
        name
        for name in package.__all__
        if isinstance(getattr(package, name), type)
        and issubclass(getattr(package, name), torch.optim.Optimizer)
    }
    assert known == set(TORCH_OPTIMIZER) | {"Lookahead"}


def test_an_optimizer_without_hooks_is_refused() -> None:
    package = pytest.importorskip("torch_optimizer")
    model, _, _ = problem()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer.*Lookahead.*step hooks.*layer around that"):
        CommunicationLayer(package.Lookahead(inner))


def test_lion_of_pytorch_optimizer() -> None:
    package = pytest.importorskip("pytorch_optimizer")
    check_layer(lambda params: package.Lion(params, lr=1e-3))


def test_8_bit_of_torchao() -> None:
    package = pytest.importorskip("torchao.optim")
    check_layer(lambda params: package.AdamW8bit(params, lr=1e-2))


def test_8_bit_of_bitsandbytes() -> None:
    package = pytest.importorskip("bitsandbytes")
    check_layer(lambda params: package.optim.AdamW8bit(params, lr=1e-2, min_8bit_size=1))
