"""CommunicationLayer around optimizers of other packages."""

from __future__ import annotations

import copy
import io
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_quantized_state_of_torchao(name: str) -> None:
    """Tensors of 4,096 elements and more have it; smaller ones have torch's own."""
    package = pytest.importorskip("torchao.optim")
    check_quantized(lambda params: getattr(package, name)(params, lr=1e-3), "exp_avg")


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "AdamW"])
def test_quantized_state_of_bitsandbytes(name: str) -> None:
    package = pytest.importorskip("bitsandbytes")
    check_quantized(lambda params: getattr(package.optim, name)(params, lr=1e-3), "state1")


def check_quantized(make: Any, moment: str) -> None:
    """A consolidation leaves such state alone, damps what comes, and is resumed exactly."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 64))
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))

    def train(model: Any, optimizer: Any, steps: int, shift: float = 0.0) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x + shift).square().mean().backward()
            optimizer.step()

    optimizer = make(model.parameters())
    layer = CommunicationLayer(optimizer)
    train(model, optimizer, 8)
    layer.consolidate()
    state = optimizer.state[model[0].weight]
    assert state[moment].numel() == 64 * 128
    assert float(layer.stability(model[0].weight).max()) > 0.0
    train(model, optimizer, 8, 1.0)
    twin = copy.deepcopy(model)
    other = make(twin.parameters())
    resumed = CommunicationLayer(other)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=False))
    assert resumed.diagnostics()["consolidations"] == 1
    for one, its in ((model, optimizer), (twin, other)):
        train(one, its, 4, 1.0)
    assert torch.equal(model[0].weight, twin[0].weight)
    layer.restore(1.0)
    assert bool(model[0].weight.isfinite().all())


def test_8_bit_of_bitsandbytes() -> None:
    package = pytest.importorskip("bitsandbytes")
    check_layer(lambda params: package.optim.AdamW8bit(params, lr=1e-2, min_8bit_size=1))
