"""Digits by skorch's NeuralNetClassifier, with diagnostics in its history and a checkpoint.

python examples/skorch_digits.py --epochs 4 --out out
python examples/skorch_digits.py --epochs 2 --out out --resume
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint
from torch import nn

from sal_optim import SALAdamW
from sal_optim.integrations import logged


class Monitor(Callback):
    """Diagnostics at the end of each epoch: a column each in the history and in what is printed."""

    def on_epoch_end(self, net: NeuralNetClassifier, **_: Any) -> None:
        for name, value in logged(net.optimizer_).items():
            net.history.record(name, value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=4, help="more epochs, when resumed")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    checkpoint = Checkpoint(monitor=None, dirname=arguments.out)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        criterion=nn.CrossEntropyLoss,
        optimizer=SALAdamW,
        optimizer__protection=10.0,
        optimizer__consolidate_every=50,
        lr=1e-2,  # the optimizer's too
        batch_size=64,
        max_epochs=arguments.epochs,
        train_split=None,
        callbacks=[Monitor(), checkpoint],
    )
    net.initialize()
    if arguments.resume:
        net.load_params(checkpoint=checkpoint)
    net.partial_fit((data.data / 16).astype("float32"), data.target)


if __name__ == "__main__":
    main()
