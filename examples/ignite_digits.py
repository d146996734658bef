"""Digits by an Ignite engine, with diagnostics among its metrics, and its checkpoints.

python examples/ignite_digits.py --epochs 4 --out out
python examples/ignite_digits.py --epochs 4 --out out --resume out/checkpoint_58.pt
"""

import argparse

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, TensorboardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sal_optim import SALAdamW
from sal_optim.integrations import logged


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", help="a file that Checkpoint wrote")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    loader = DataLoader(TensorDataset(inputs, torch.tensor(data.target)), 64)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = SALAdamW(model.parameters(), lr=1e-2, protection=10.0, consolidate_every=50)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)

    @trainer.on(Events.EPOCH_COMPLETED)
    def diagnose(engine: Engine) -> None:
        engine.state.metrics.update({"loss": engine.state.output, **logged(optimizer)})

    kept = {"model": model, "optimizer": optimizer, "trainer": trainer}
    saver = Checkpoint(kept, DiskSaver(arguments.out, require_empty=False), n_saved=None)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    if arguments.resume:
        Checkpoint.load_objects(kept, torch.load(arguments.resume, weights_only=True))
    with TensorboardLogger(log_dir=f"{arguments.out}/log") as logger:
        logger.attach_output_handler(
            trainer, Events.EPOCH_COMPLETED, tag="training", metric_names="all"
        )
        trainer.run(loader, max_epochs=arguments.epochs)
    print(trainer.state.metrics)


if __name__ == "__main__":
    main()
