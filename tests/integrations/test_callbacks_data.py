"""Data that callbacks are given, in the forms and precisions that trainers have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sal_optim import SALAdamW
from sal_optim.integrations.continual import Continual
from tests.integrations.tasks import LR, WithLoss, fine_tune, loader, loss_of, network


class Columns:
    """What a callback sees of a data set of the package datasets."""

    def __init__(self, *column_names: str) -> None:
        self.column_names = list(column_names)

    def select_columns(self, names: list[str]) -> Columns:
        return Columns(*names)


def test_columns_that_the_trainer_has_removed() -> None:
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import _of_columns

    given = Columns("inputs", "text", "labels", "idx")
    assert _of_columns(given, Columns("labels", "inputs")).column_names == ["inputs", "labels"]
    assert _of_columns([1], Columns("labels")) == [1]
    assert _of_columns(given, [1]) is given


def test_text_that_the_trainer_has_tokenized_for_itself_alone() -> None:
    """All its columns were left out, and the error said that it had no batch."""
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import _of_columns

    with pytest.raises(ValueError, match=r"columns are \['text'\].*'input_ids'.*tokenized"):
        _of_columns(Columns("text"), Columns("input_ids", "labels"))


def test_batches_of_transformers_that_are_no_dictionaries(tmp_path: Path) -> None:
    """They have no names to be moved by: DataLoaders of pairs failed, and GRPO's lists of rows."""
    pytest.importorskip("transformers")
    from sal_optim.integrations.transformers import SALCallback, _own_loss

    callback = SALCallback(probe=loader(1), loss=lambda model, batch: loss_of(model.layers, batch))
    trainer = fine_tune(WithLoss(), 2, tmp_path, callbacks=[callback], max_steps=10)
    assert trainer.state.log_history[0]["sal/old_loss"] > 0.0
    with pytest.raises(ValueError, match=r"batches are of type list.*loss\(model, batch\)"):
        _own_loss(WithLoss(), [{}])


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("automatic", [True, False])
def test_lightning_in_other_precisions(
    monkeypatch: pytest.MonkeyPatch, precision: Any, automatic: bool
) -> None:
    """Steps of a manual optimization are inside of Lightning's autocast."""
    pl = pytest.importorskip("lightning.pytorch")
    from sal_optim.integrations.lightning import SALCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        automatic_optimization = automatic

        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            loss = loss_of(self.layers, batch)
            if not automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return SALAdamW(self.parameters(), lr=LR)

    measured = []
    monkeypatch.setattr(Continual, "measure", lambda _: measured.append(1))
    callback = SALCallback(
        observe=loader(1),
        observe_batches=4,
        probe=loader(1),
        probe_every=10,
        loss=lambda module, batch: loss_of(module.layers, batch),
    )
    trainer = pl.Trainer(
        max_steps=20, accelerator="cpu", logger=False, callbacks=[callback], precision=precision,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        accumulate_grad_batches=2 if automatic else 1,
    )  # fmt: skip
    trainer.fit(Module(), loader(2))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert trainer.optimizers[0].diagnostics()["consolidations"] == 2
    assert len(measured) == 4, "at the beginning, after 10 and 20 steps, and at the end"
