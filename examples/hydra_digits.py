"""Digits, with the optimizer chosen in Hydra's configuration; diagnostics in its log.

python examples/hydra_digits.py optimizer.protection=20.0
python examples/hydra_digits.py optimizer._target_=sal_optim.SALLion optimizer.lr=0.0003
"""

import logging

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torch import nn

log = logging.getLogger(__name__)


@hydra.main(version_base=None, config_path=".", config_name="hydra_digits")
def main(config: DictConfig) -> None:
    torch.manual_seed(0)
    data = load_digits()
    inputs = torch.tensor(data.data / 16, dtype=torch.float32)
    targets = torch.tensor(data.target)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = instantiate(config.optimizer)(model.parameters())
    for step in range(1, config.steps + 1):
        chosen = torch.randint(0, len(inputs), (64,))
        loss = nn.functional.cross_entropy(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            log.info("step %d, loss %.3f, %s", step, loss.item(), optimizer.diagnostics())


if __name__ == "__main__":
    main()
