"""Digits by an Accelerate loop: prepare, log, save_state, load_state.

python examples/accelerate_digits.py --epochs 4 --out out
python examples/accelerate_digits.py --epochs 4 --out out --resume out/epoch-2
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sal_optim import SALAdamW
from sal_optim.integrations import logged, required_protection


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", help="a folder that save_state wrote, named epoch-N")
    arguments = parser.parse_args()
    set_seed(0)
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    loader = DataLoader(TensorDataset(inputs, torch.tensor(data.target)), 64, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = SALAdamW(model.parameters(), lr=1e-2, protection=10.0, consolidate_every=50)

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=arguments.out)
    accelerator.init_trackers("log")
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # The wrapper around the optimizer passes on no attributes of its own.
    protection = required_protection(optimizer)
    begun = 0
    if arguments.resume:
        accelerator.load_state(arguments.resume)
        begun = int(Path(arguments.resume).name.removeprefix("epoch-"))
    for epoch in range(begun, arguments.epochs):
        for batch, labels in loader:
            loss = nn.functional.cross_entropy(model(batch), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.log({"loss": loss.item(), **logged(protection)}, step=epoch + 1)
        accelerator.save_state(f"{arguments.out}/epoch-{epoch + 1}")
    print({"loss": loss.item(), **logged(protection)})
    accelerator.end_training()


if __name__ == "__main__":
    main()
