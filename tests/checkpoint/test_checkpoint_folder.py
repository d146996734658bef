"""Importance out of a checkpoint of torch.distributed by one process. Many: tests/distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from sal_optim import SALAdamW, load_importance

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Network(nn.Module):
    """Names of modules that look like keys of a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.state_of = nn.Linear(4, 3), nn.Linear(3, 2)
        self.own = nn.ModuleDict({"state": nn.Linear(2, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.own["state"](self.state_of(self.state(x)))
        return result


@pytest.mark.parametrize("before", ["optimizer", "state", "app.state"])
def test_parameters_whose_names_have_state_in_them(tmp_path: Path, before: str) -> None:
    torch.manual_seed(0)
    model, other = Network(), Network()
    optimizer, fresh = SALAdamW(model.parameters()), SALAdamW(other.parameters())
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimizer.step()
    optimizer.consolidate()
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({before: state}, checkpoint_id=tmp_path / "folder", no_dist=True)

    with torch.device("meta"):  # another default device: it is read on the host
        load_importance(fresh, tmp_path / "folder", other)
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert len(pairs) == 6
    for one, two in pairs:
        saved, loaded = optimizer.controller.state_of(one), fresh.controller.state_of(two)
        assert loaded["evidence_weight"] == saved["evidence_weight"] > 0.0
        assert torch.equal(loaded["anchor"], saved["anchor"])


def test_a_matrix_that_three_dimensions_of_a_mesh_cut(tmp_path: Path) -> None:
    """How its blocks lie is not told: the file that tells it is named."""
    state = {
        "evidence_weight": 1.0,
        "left_basis_of_2x2x2": torch.ones(2, 2, 2, 1, 1),
        "left_values_of_2x2x2": torch.ones(2, 2, 2, 2),
        "right_basis_of_2x2x2": torch.ones(2, 2, 2, 1, 1),
        "right_values_of_2x2x2": torch.ones(2, 2, 2, 2),
        "anchor": torch.ones(3, 4),
    }
    saved = {"optimizer": {"state": {"state.weight": state}}}
    dcp.save(saved, checkpoint_id=tmp_path / "folder", no_dist=True)
    model = Network()
    with pytest.raises(ValueError, match=r"'state.weight' is cut.*save_importance"):
        load_importance(SALAdamW(model.parameters()), tmp_path / "folder", model)


@pytest.mark.parametrize("damage", ["a part is gone", "a part is cut", "no metadata"])
def test_a_damaged_folder_is_named(damage: str, tmp_path: Path) -> None:
    """torch's own error is no Exception, so that nobody catches it."""
    torch.manual_seed(0)
    model = Network()
    optimizer = SALAdamW(model.parameters())
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimizer.step()
    optimizer.consolidate()
    folder = tmp_path / "folder"
    state = get_optimizer_state_dict(model, optimizer)
    dcp.save({"optimizer": state}, checkpoint_id=folder, no_dist=True)
    (part,) = folder.glob("*.distcp")
    if damage == "a part is gone":
        part.unlink()
    elif damage == "a part is cut":
        part.write_bytes(part.read_bytes()[:100])
    else:
        (folder / ".metadata").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"folder' can't be read.*path must be the folder of a"):
        load_importance(optimizer, folder, model)
