"""Callbacks in real trainers: observed, probed in the trainer's own log, handed on, restored."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sal_optim import SALAdamW
from sal_optim.integrations import protection_of
from tests.integrations.tasks import (
    BATCH,
    LR,
    WithLoss,
    fine_tune,
    loader,
    loss_of,
    loss_on,
    network,
    rows,
    task,
)


def pretrained() -> nn.Sequential:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for _ in range(6):
        for batch in loader(1):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return model


# ---------------------------------------------------------------- transformers


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "sal_optim")
    return caplog


def test_transformers(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("tensorboard")
    from sal_optim.integrations.transformers import SALCallback

    model = WithLoss()
    model.layers = pretrained()
    callback = SALCallback(
        observe=rows(1), probe=rows(1), probe_every=10, restore=[0.1, 1.0], validation=rows(2)
    )
    log = {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 120}
    trainer = fine_tune(model, 2, tmp_path, callbacks=[callback], **log)
    losses = [row["sal/old_loss"] for row in trainer.state.log_history if "sal/old_loss" in row]
    assert len(losses) == 12
    assert losses[0] < 0.5, "beside the new loss, from the first line of the log on"
    (events,) = tmp_path.rglob("events.out.tfevents*")
    assert b"sal/old_loss" in events.read_bytes()
    assert "4 of 4 parameter tensors are protected" in said.text
    assert "restored with strength" in said.text
    saved = torch.load(tmp_path / "checkpoint-120" / "optimizer.pt", weights_only=True)
    assert saved["param_groups"][0]["threshold"]["consolidations"] > 1.0
    heard = saved["param_groups"][0]["threshold"]
    assert heard["norm_steps"] > 1.0, "told the norm before clipping"
    assert heard["loss_steps"] == 120.0, "told the loss once a step, though two callbacks are there"
    assert not model._forward_hooks, "which the model no longer tells"
    assert saved["param_groups"][0]["param_names"] == ["layers.0.weight", "layers.2.weight"]
    alone = SALAdamW(model.named_parameters())
    alone.load_state_dict(saved)
    assert alone.diagnostics()["consolidations"] > 1.0


def test_a_probe_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback

    found = []
    for settings in ({}, {"probe": rows(1), "probe_every": 1}):
        model = WithLoss()
        fine_tune(model, 2, tmp_path, callbacks=[SALCallback(**settings)], max_steps=20)
        found.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*found)


def test_a_group_that_is_added_in_training(tmp_path: Path) -> None:
    """The names that the Trainer's checkpoints have are not the groups'."""
    transformers = pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback

    class Unfreezing(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                kwargs["optimizer"].add_param_group({"params": [*model.layers[0].parameters()]})

    model = WithLoss()
    model.layers[0].requires_grad_(False)
    optimizer = SALAdamW([param for param in model.parameters() if param.requires_grad], lr=LR)
    steady = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    trainer = fine_tune(
        model, 1, tmp_path, (optimizer, steady), callbacks=[SALCallback(), Unfreezing()],
        max_steps=4, save_strategy="steps", save_steps=4,
    )  # fmt: skip
    assert len(protection_of(trainer.optimizer).controller.optimizer.param_groups) == 2
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    names = [group["param_names"] for group in saved["param_groups"]]
    assert names == [["layers.2.weight", "layers.2.bias"], ["layers.0.weight", "layers.0.bias"]]


def test_nothing_is_protected_yet(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback

    fine_tune(WithLoss(), 1, tmp_path, callbacks=[SALCallback()], max_steps=2)
    assert "nothing is protected yet; the first consolidation comes after 60 steps" in said.text


# ---------------------------------------------------------------- Lightning


def test_lightning(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    from sal_optim.integrations.lightning import SALCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, model: nn.Module, cls: Any) -> None:
            super().__init__()
            self.layers, self.cls = model, cls

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = loss_of(self.layers, batch)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return self.cls(self.parameters(), lr=LR)

    def train(model: nn.Module, seed: int, cls: Any, clip: float, *callbacks: Any) -> Any:
        trainer = pl.Trainer(
            max_epochs=4, accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=list(callbacks),
            enable_progress_bar=False, enable_checkpointing=False, gradient_clip_val=clip,
            enable_model_summary=False, log_every_n_steps=10,
        )  # fmt: skip
        trainer.fit(Module(model, cls), loader(seed))
        return trainer

    old, file = {}, tmp_path / "a.safetensors"
    for clip in (1.0, 0.0):
        model = network()
        train(model, 1, SALAdamW, clip, SALCallback(importance_to=file))
        base = copy.deepcopy(model)
        probe = SALCallback(importance_from=file, probe=loader(1), probe_every=10)
        trainer = train(model, 2, SALAdamW, clip, probe)
        old[clip] = loss_on(model, 1)
    train(base, 2, torch.optim.AdamW, 0.0)
    assert old[1.0] < 1.1 * old[0.0]
    assert old[1.0] < 0.5 * loss_on(base, 1)
    assert trainer.callback_metrics["sal/old_loss"] > 0.0
    (group,) = trainer.optimizers[0].param_groups
    assert group["threshold"]["loss_steps"] > 1.0, "told the loss"
    rows = (Path(trainer.logger.log_dir) / "metrics.csv").read_text()
    assert "sal/old_loss" in rows
    assert "4 of 4 parameter tensors are protected" in said.text


def test_lightning_with_two_optimizers() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from sal_optim.integrations.lightning import SALCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        automatic_optimization = False

        def training_step(self, *_: Any) -> None: ...

        def configure_optimizers(self) -> Any:
            layers = self.layers = network()
            return SALAdamW(layers[0].parameters()), SALAdamW(layers[2].parameters())

    trainer = pl.Trainer(
        max_steps=1, logger=False, callbacks=[SALCallback()], enable_progress_bar=False,
        enable_checkpointing=False, accelerator="cpu", enable_model_summary=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"2 of them.*exactly one"):
        trainer.fit(Module(), loader(1))


# ---------------------------------------------------------------- loops


def test_fastai(tmp_path: Path) -> None:
    pytest.importorskip("fastai")
    from functools import partial

    from fastai.callback.training import GradientClip
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    from sal_optim.integrations.fastai import SALCallback

    def train(model: nn.Module, seed: int, cls: Any, *cbs: Any) -> Any:
        learn = Learner(
            DataLoaders(loader(seed), loader(seed)), model, loss_func=nn.CrossEntropyLoss(),
            opt_func=partial(OptimWrapper, opt=cls), cbs=list(cbs), path=tmp_path,
        )  # fmt: skip
        with learn.no_bar(), learn.no_logging():
            learn.fit(4, lr=LR)
        return learn

    old, file = {}, tmp_path / "a.safetensors"
    for clip in ([GradientClip(1.0)], []):
        model = network()
        train(model, 1, SALAdamW, SALCallback(importance_to=file), *clip)
        base = copy.deepcopy(model)
        probe = SALCallback(importance_from=file, probe=loader(1), probe_every=10)
        learn = train(model, 2, SALAdamW, probe, *clip)
        old[bool(clip)] = loss_on(model, 1)
    train(base, 2, torch.optim.AdamW)
    assert old[True] < 1.1 * old[False]
    assert old[True] < 0.5 * loss_on(base, 1)
    names = list(learn.recorder.metric_names)
    assert names[-2:] == ["sal/old_loss", "time"]
    assert [row[-1] for row in learn.recorder.values][-1] > 0.0


def test_ignite(tmp_path: Path) -> None:
    pytest.importorskip("ignite")
    from ignite.engine import create_supervised_trainer

    from sal_optim.integrations.ignite import SALHandler

    def train(model: nn.Module, seed: int, optimizer: Any, **settings: Any) -> Any:
        trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
        if protection_of(optimizer) is not None:
            SALHandler(optimizer, model, loss_of, **settings).attach(trainer)
        trainer.run(loader(seed), max_epochs=4)
        return trainer

    model, file = network(), tmp_path / "a.safetensors"
    train(model, 1, SALAdamW(model.parameters(), lr=LR), importance_to=file)
    base = copy.deepcopy(model)
    train(base, 2, torch.optim.AdamW(base.parameters(), lr=LR))
    again = {"importance_from": file, "probe": loader(1), "probe_every": 10}
    trainer = train(model, 2, SALAdamW(model.parameters(), lr=LR), **again)
    assert trainer.state.metrics["sal/old_loss"] < 0.5 * loss_on(base, 1)
    assert "sal/protected" in trainer.state.metrics


def test_avalanche() -> None:
    pytest.importorskip("avalanche", exc_type=ImportError)
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.logging import InteractiveLogger
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    from sal_optim.integrations.avalanche import SALPlugin

    def experience(seed: int) -> Any:
        inputs, targets = task(seed).tensors
        labels = DataAttribute([0] * len(inputs), "targets_task_labels", use_in_getitem=True)
        classes = DataAttribute(targets.tolist(), "targets")
        return AvalancheDataset([task(seed)], data_attributes=[classes, labels])

    data = [experience(seed) for seed in (1, 2)]
    benchmark = benchmark_from_datasets(train=data, test=data)
    old = []
    for cls, plugins in (
        (torch.optim.AdamW, []),
        (SALAdamW, [SALPlugin(probe=data[0], probe_every=10)]),
    ):
        model = network()
        evaluator = EvaluationPlugin(loggers=[InteractiveLogger()])
        strategy = Naive(
            model=model, optimizer=cls(model.parameters(), lr=LR), train_mb_size=BATCH,
            criterion=nn.CrossEntropyLoss(), train_epochs=4, plugins=plugins, evaluator=evaluator,
        )  # fmt: skip
        for part in benchmark.train_stream:
            strategy.train(part)
        old.append(loss_on(model, 1))
    assert old[1] < 0.5 * old[0]
    assert strategy.optimizer.diagnostics()["consolidations"] >= 2.0
    assert any("old_loss" in name for name in evaluator.get_all_metrics())


def test_avalanche_grows_a_last_layer() -> None:
    """The rows of classes seen before keep their importance in the larger layer."""
    pytest.importorskip("avalanche", exc_type=ImportError)
    from avalanche.benchmarks import nc_benchmark
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.models import IncrementalClassifier
    from avalanche.training.plugins import SupervisedPlugin
    from avalanche.training.supervised import Naive

    from sal_optim.integrations.avalanche import SALPlugin

    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(256, 8, generator=draw), torch.arange(256) % 4
    classes = DataAttribute(targets.tolist(), "targets", use_in_getitem=False)
    data = AvalancheDataset([TensorDataset(inputs, targets)], data_attributes=[classes])
    benchmark = nc_benchmark(data, data, 2, task_labels=False, fixed_class_order=[0, 1, 2, 3])
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), IncrementalClassifier(16, 2))
    strategy = Naive(
        model=model, optimizer=SALAdamW(model.parameters(), lr=LR), train_mb_size=8,
        criterion=nn.CrossEntropyLoss(), train_epochs=4, plugins=[SALPlugin()],
    )  # fmt: skip
    first, second = benchmark.train_stream
    strategy.train(first)
    controller = strategy.optimizer.controller
    before = controller.importance(model[2].classifier.weight)[0].clone()
    seen = []

    class Look(SupervisedPlugin):
        def before_training_iteration(self, strategy: Any, *_: Any, **__: Any) -> None:
            seen.append(controller.importance(model[2].classifier.weight)[0].clone())

    strategy.plugins.append(Look())
    strategy.train(second)
    assert seen[0].shape == (4, 16)
    assert float(before.mean()) > 0
    torch.testing.assert_close(seen[0][:2], before)


def test_training_once_more_goes_on_with_what_is_known(tmp_path: Path) -> None:
    """The file of the first run was loaded again, over what the second had learned."""
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback

    model, file = WithLoss(), tmp_path / "a.safetensors"
    fine_tune(model, 1, tmp_path, callbacks=[SALCallback(importance_to=file)], max_steps=70)
    callback = SALCallback(importance_from=file)
    trainer = fine_tune(model, 2, tmp_path, callbacks=[callback], max_steps=70)
    before = protection_of(trainer.optimizer).diagnostics()["consolidations"]
    assert before > 1.0
    trainer.train()
    assert protection_of(trainer.optimizer).diagnostics()["consolidations"] > before


def test_lightning_fits_again_with_a_new_optimizer(tmp_path: Path) -> None:
    """It was taken for a run that is resumed, and began unprotected; and a step of one argument."""
    pl = pytest.importorskip("lightning.pytorch")
    from sal_optim.integrations.lightning import SALCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.began = network(), []

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return loss_of(self.layers, batch)

        def configure_optimizers(self) -> Any:
            return SALAdamW(self.parameters(), lr=LR)

        def on_train_epoch_start(self) -> None:
            self.began.append(self.optimizers().diagnostics()["consolidations"])

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
        callbacks=[SALCallback(observe=loader(1), probe=loader(1))],
    )  # fmt: skip
    trainer.fit(module, loader(2))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(2))
    assert module.began == [1.0, 1.0]


def test_lightning_metrics_count_training_alone() -> None:
    pl = pytest.importorskip("lightning.pytorch")
    metrics = pytest.importorskip("torchmetrics")
    from sal_optim.integrations.lightning import SALCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.seen = network(), metrics.SumMetric()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            self.seen.update(len(batch[0]))
            return loss_of(self.layers, batch)

        def configure_optimizers(self) -> Any:
            return SALAdamW(self.parameters(), lr=LR)

    module = Module()
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False,
        callbacks=[SALCallback(observe=loader(1), probe=loader(1), probe_every=2)],
    ).fit(module, loader(2))  # fmt: skip
    assert int(module.seen.compute()) == sum(len(batch[0]) for batch in loader(2))


def test_a_model_without_a_loss_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import _own_loss

    with pytest.raises(ValueError, match=r"Invalid loss value: None.*loss\(model, batch\)"):
        _own_loss(lambda **_: {"logits": torch.ones(1)}, {})
