"""The loss of each step, which transformers' Trainer does not hand to callbacks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from sal_optim import SALAdamW
from sal_optim.integrations import protection_of
from tests.integrations.tasks import BATCH, WithLoss, fine_tune, rows

transformers = pytest.importorskip("transformers")
from sal_optim.integrations.transformers import SALCallback  # noqa: E402


class Recorded(SALAdamW):
    """Keeps what it is told."""

    told: list[float]

    def tell(self, **numbers: Any) -> None:
        vars(self).setdefault("told", []).extend([float(n) for n in numbers.values()])
        super().tell(**numbers)


class Steady(WithLoss):
    """Its losses are 1, 2, 3 and so on, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
        found = super().forward(inputs, labels)
        self.calls += self.training
        found["loss"] = found["loss"] * 0.0 + float(self.calls)
        return found


class Parts(Steady):
    """Its losses are parts of a step's mean, as those of transformers' own models are."""

    accepts_loss_kwargs = True

    def forward(  # type: ignore[override]
        self, inputs: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> Any:
        found = super().forward(inputs, labels)
        if num_items_in_batch is not None:
            found["loss"] = found["loss"] * (len(labels) / num_items_in_batch)
        return found


def trained(model: WithLoss, out: Path, **args: Any) -> Any:
    args = {"callbacks": [SALCallback()], "max_steps": 4, **args}
    trainer = fine_tune(model, 1, out, Recorded, **args)
    return protection_of(trainer.optimizer)


@pytest.mark.parametrize("batches", [1, 3])
def test_it_is_told_before_each_step(batches: int, tmp_path: Path) -> None:
    found = trained(Steady(), tmp_path, gradient_accumulation_steps=batches, logging_steps=500)
    means = [sum(range(batches * k + 1, batches * (k + 1) + 1)) / batches for k in range(4)]
    assert found.told == means, "the mean of a step's batches"


def test_parts_of_a_mean_are_added(tmp_path: Path) -> None:
    """The last step of an epoch has fewer batches, and would tell another size."""
    found = trained(Parts(), tmp_path, gradient_accumulation_steps=8, logging_steps=500)
    count = len(rows(1))
    sizes = [min(BATCH, count - start) for start in range(0, count, BATCH)]
    assert 0 < len(sizes) % 8 < 4 or sizes[-1] < BATCH
    calls = 0
    for told, start in zip(found.told, range(0, len(sizes), 8), strict=True):
        parts = sizes[start : start + 8]
        each = [size * (calls + place + 1) for place, size in enumerate(parts)]
        assert told == pytest.approx(sum(each) / sum(parts), rel=1e-5)
        calls += len(parts)


def test_the_losses_of_evaluation_are_not_told(tmp_path: Path) -> None:
    callback = SALCallback(observe=rows(2), probe=rows(2), probe_every=1)
    found = trained(Steady(), tmp_path, callbacks=[callback], logging_steps=500)
    assert found.told == [1.0, 2.0, 3.0, 4.0]


def test_the_loss_that_is_trained_is_told_and_not_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in DPO, whose model puts out a loss that nothing goes back by."""
    own = []

    def margin(trainer: Any, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        own.append(model(**inputs)["logits"].square().mean())
        return own[-1]

    monkeypatch.setattr(transformers.Trainer, "compute_loss", margin)
    found = trained(Steady(), tmp_path, logging_steps=500)
    assert found.told == [float(loss.detach()) for loss in own]


def test_an_evaluation_before_training(tmp_path: Path) -> None:
    lost = []

    def evaluated(trainer: Any) -> None:
        lost.append(trainer.evaluate(rows(1))["eval_loss"])

    fine_tune(Steady(), 1, tmp_path, Recorded, callbacks=[SALCallback()], begin=evaluated)
    assert lost == [0.0]


def test_a_compiled_model(tmp_path: Path) -> None:
    found = trained(Steady(), tmp_path, torch_compile=True, torch_compile_backend="eager",
                    logging_steps=500)  # fmt: skip
    assert found.told == [1.0, 2.0, 3.0, 4.0]


def test_a_copy_of_a_model_in_training_is_heard_by_nobody(tmp_path: Path) -> None:
    """And what is saved of it loads without this package: nothing of it is in there."""
    saved = tmp_path / "whole.pt"

    class Copying(SALCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_begin(args, state, control, **kwargs)
            other = copy.deepcopy(kwargs["model"])
            batch = {"inputs": torch.zeros(2, 64), "labels": torch.zeros(2, dtype=torch.long)}
            assert other(**batch)["loss"].requires_grad
            torch.save(kwargs["model"], saved)

    model = Steady()
    found = trained(model, tmp_path, callbacks=[Copying()], logging_steps=500)
    assert found.told == [1.0, 2.0, 3.0, 4.0]
    assert not model._forward_hooks
    assert not torch.load(saved, weights_only=False)._forward_hooks
    assert b"sal_optim" not in saved.read_bytes()


def test_a_training_inside_of_another(tmp_path: Path) -> None:
    """Of the same model, as a callback may begin one: both are told."""

    class Nesting(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                self.inner = trained(kwargs["model"], tmp_path / "inner", logging_steps=500)

    nesting = Nesting()
    found = trained(Steady(), tmp_path, callbacks=[SALCallback(), nesting], logging_steps=500)
    assert nesting.inner.told == [3.0, 4.0, 5.0, 6.0]
    assert len(found.told) == 4
