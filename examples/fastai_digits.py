"""Digits by a fastai Learner, with diagnostics in its table and CSV log, and a checkpoint.

python examples/fastai_digits.py --epochs 4 --out out
python examples/fastai_digits.py --epochs 2 --out out --resume
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from fastai.callback.progress import CSVLogger
from fastai.data.core import DataLoaders
from fastai.learner import Learner, ValueMetric
from fastai.optimizer import OptimWrapper
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sal_optim import SALAdamW


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=4, help="more epochs, when resumed")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    loader = DataLoader(TensorDataset(inputs, torch.tensor(data.target)), 64)

    def diagnostic(name: str) -> ValueMetric:
        return ValueMetric(lambda: learn.opt.opt.diagnostics()[name], f"sal/{name}")

    learn = Learner(
        DataLoaders(loader, loader),
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=SALAdamW, protection=10.0, consolidate_every=50),
        metrics=[diagnostic("consolidations"), diagnostic("protected")],
        cbs=CSVLogger(append=arguments.resume),
        path=arguments.out,
    )
    if arguments.resume:
        learn.load("digits")
    learn.fit(arguments.epochs, lr=1e-2)
    learn.save("digits")


if __name__ == "__main__":
    main()
