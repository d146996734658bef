"""Three tasks of permuted digits by Avalanche's Naive strategy, with its log and checkpoints.

python examples/avalanche_digits.py --out out --tasks 2
python examples/avalanche_digits.py --out out             the rest, from the checkpoint
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from sal_optim import SALAdam
from sal_optim.integrations import logged, required_protection


class Monitor(PluginMetric[float]):
    """Diagnostics after each epoch."""

    def reset(self) -> None:
        pass

    def result(self) -> None:
        return None

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        found = logged(required_protection(strategy.optimizer))
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for name, value in found.items()]


def tasks() -> Any:
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    targets = torch.tensor(data.target)
    labels = DataAttribute([0] * len(inputs), "targets_task_labels", use_in_getitem=True)
    classes = DataAttribute(targets.tolist(), "targets")
    made = [
        AvalancheDataset(
            [TensorDataset(inputs[:, torch.randperm(64)], targets)],
            data_attributes=[classes, labels],
        )
        for _ in range(3)
    ]
    return benchmark_from_datasets(train=made, test=made)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=3, help="stop after so many")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    benchmark = tasks()
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    arguments.out.mkdir(parents=True, exist_ok=True)
    strategy = Naive(
        model=model,
        optimizer=SALAdam(model.parameters(), lr=1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=64,
        train_epochs=arguments.epochs,
        evaluator=EvaluationPlugin(
            accuracy_metrics(epoch=True, stream=True), Monitor(), loggers=[TextLogger()]
        ),
    )
    checkpoint = arguments.out / "strategy.pkl"
    strategy, begun = maybe_load_checkpoint(strategy, checkpoint)
    for experience in benchmark.train_stream[begun : arguments.tasks]:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        save_checkpoint(strategy, checkpoint)


if __name__ == "__main__":
    main()
