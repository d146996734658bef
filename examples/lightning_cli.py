"""Digits by an unmodified LightningCLI script.

python examples/lightning_cli.py fit --optimizer=sal_optim.SALAdamW --optimizer.lr=1e-3 \
    --optimizer.protection=10.0
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), targets)
        self.log("loss", loss)
        return loss


class Digits(LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        data = load_digits()
        inputs = torch.tensor(data.data / 16, dtype=torch.float32)
        return DataLoader(TensorDataset(inputs, torch.tensor(data.target)), batch_size=64)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits)
