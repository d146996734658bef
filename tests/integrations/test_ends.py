"""Where a trainer begins anew, ends and keeps what is best, and what it has told until then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sal_optim import SALAdamW, load_importance
from sal_optim.integrations import protection_of
from tests.integrations.tasks import (
    LR,
    WithLoss,
    fine_tune,
    loader,
    loss_of,
    network,
    rows,
    task,
)

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def test_a_checkpoint_of_weights_alone_is_no_resumed_optimizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback

    file = tmp_path / "a.safetensors"
    fine_tune(WithLoss(), 1, tmp_path, callbacks=[SALCallback(importance_to=file)])
    saving = {"save_strategy": "steps", "save_steps": 5, "save_only_model": True}
    fine_tune(WithLoss(), 2, tmp_path, max_steps=5, **saving)

    def resumed(trainer: Any) -> None:
        trainer.train(resume_from_checkpoint=True)

    callback = SALCallback(importance_from=file, consolidate=False)
    given = {"callbacks": [callback], "max_steps": 6, **saving}
    trainer = fine_tune(WithLoss(), 2, tmp_path, begin=resumed, **given)
    weight = trainer.model.layers[0].weight
    assert float(protection_of(trainer.optimizer).stability(weight).max()) > 0.5


def test_importance_from_and_to_of_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import register

    register()
    file = tmp_path / "a.safetensors"
    args = {"optim": "saladamw", "max_steps": 20}
    fine_tune(WithLoss(), 1, tmp_path, None, optim_args=f"importance_to={file}", **args)
    trainer = fine_tune(WithLoss(), 2, tmp_path, None, optim_args=f"importance_from={file}", **args)
    known = protection_of(trainer.optimizer)
    assert known is not None
    assert known.diagnostics()["protected"] > 0.0
    model = WithLoss()
    assert load_importance(SALAdamW(model.named_parameters()), file).new == []


class Told(SALAdamW):
    """Keeps the losses that it is told."""

    def tell(self, **numbers: Any) -> None:
        vars(self).setdefault("told", []).extend([float(n) for n in numbers.values()])
        super().tell(**numbers)


def lightning_module() -> Any:
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()
            self.losses: list[float] = []

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = loss_of(self.layers, batch)
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return Told(self.parameters(), lr=LR)

    return Module()


@pytest.mark.parametrize("batches", [1, 4])
def test_lightning_tells_the_loss_of_a_batch(batches: int) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from sal_optim.integrations.lightning import SALCallback

    module = lightning_module()
    trainer = pl.Trainer(
        max_steps=3, accumulate_grad_batches=batches, callbacks=[SALCallback()],
        enable_checkpointing=False, **QUIET,
    )  # fmt: skip
    trainer.fit(module, loader(1))
    told = trainer.optimizers[0].told
    assert told == pytest.approx(module.losses, rel=1e-5)
    assert len(told) == 3 * batches


def test_a_checkpoint_of_lightning_has_what_was_done_at_the_end(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import ModelCheckpoint

    from sal_optim.integrations.lightning import SALCallback

    module = lightning_module()
    keeping = ModelCheckpoint(tmp_path, save_last=True)
    ending = SALCallback(observe=loader(2), restore=1.0, loss=lambda m, b: loss_of(m.layers, b))
    trainer = pl.Trainer(max_epochs=2, callbacks=[keeping, ending], **QUIET)
    trainer.fit(module, loader(1))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    for name, value in module.state_dict().items():
        assert torch.equal(saved["state_dict"][name], value)
    (own,) = saved["optimizer_states"]
    now = trainer.optimizers[0].diagnostics()["consolidations"]
    assert own["param_groups"][0]["threshold"]["consolidations"] == now


def test_fastai_ends_with_the_weights_that_were_best(tmp_path: Path) -> None:
    pytest.importorskip("fastai")
    from functools import partial

    from fastai.callback.tracker import SaveModelCallback
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    from sal_optim.integrations.fastai import SALCallback

    model = network()
    learn = Learner(
        DataLoaders(loader(2), loader(2)), model, loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=SALAdamW), path=tmp_path, model_dir=tmp_path,
    )  # fmt: skip
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, lr=LR, cbs=[SALCallback(), SaveModelCallback()])
    known = protection_of(learn.opt)
    assert known is not None
    assert known.diagnostics()["drift"] < 1e-6, "anchors are of the weights that there are"
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr=LR, cbs=[SALCallback(restore=10.0), SaveModelCallback()])
    best = torch.load(tmp_path / "model.pth", weights_only=False)
    best = best.get("model", best)
    assert not torch.equal(model[0].weight, best["0.weight"]), "restored after it was loaded"
    names = [metric.name for metric in learn.metrics]
    assert len(names) == len(set(names)), "each column once"
    assert not [cb for cb in learn.cbs if "End" in type(cb).__name__]


def test_ignite_tells_the_loss_of_a_dictionary() -> None:
    pytest.importorskip("ignite")
    from ignite.engine import Engine

    from sal_optim.integrations.ignite import SALHandler

    model = network()
    optimizer = Told(model.parameters(), lr=LR)

    def step(_: Engine, batch: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach().numpy(), "size": len(batch[0])}

    trainer = Engine(step)
    SALHandler(optimizer, model, loss_of).attach(trainer)
    trainer.run(loader(1), max_epochs=1)
    assert len(vars(optimizer)["told"]) == len(loader(1))
    assert len(task(1)) == len(rows(1))
