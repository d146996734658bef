"""Digits by an optimizer that another package's registry makes of its name.

python examples/registries.py --registry timm --opt saladamw
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import Optimizer

from sal_optim.integrations import protection_of, register


def made(registry: str, name: str, model: nn.Module) -> Optimizer:
    """What the package builds, by the call that its own training scripts make."""
    if registry == "timm":
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(model, name, lr=1e-3)
    if registry == "pytorch_optimizer":
        from pytorch_optimizer import create_optimizer

        return create_optimizer(model, name, lr=1e-3)
    from torch_optimizer import get

    return get(name)(model.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    registries = ("timm", "pytorch_optimizer", "torch_optimizer")
    parser.add_argument("--registry", choices=registries, default="timm")
    parser.add_argument("--opt", default="saladamw")
    arguments = parser.parse_args()
    register()  # or run a script unchanged by `python -m sal_optim.run`
    torch.manual_seed(0)
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = made(arguments.registry, arguments.opt, model)
    for task in range(2):
        order = torch.randperm(64)
        for _ in range(200):
            batch = torch.randint(0, len(images), (64,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch][:, order]), labels[batch])
            loss.backward()
            optimizer.step()
        figures = protection_of(optimizer).diagnostics()
        print(
            f"task {task}: loss {loss.item():.3f}, consolidations {figures['consolidations']:.0f}"
        )


if __name__ == "__main__":
    main()
