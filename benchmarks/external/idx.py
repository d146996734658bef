"""A data set as IDX files, the form in which other harnesses read MNIST without a download.

What the files are made of is read by benchmarks/data/; which harness looks where is its module's.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset

BYTES = 8  # the type of unsigned bytes in an IDX header
RAW = Path("MNIST/raw")
SIDE, CLASSES = 28, 10  # of MNIST


def require_mnist(data: Dataset, harness: str) -> None:
    """Raise a UserError where data are not of MNIST's shape, which the harness has built in."""
    if (data.features, data.classes) != (SIDE * SIDE, CLASSES):
        raise UserError(
            f"--data: {data.name!r} has {data.features} pixels and {data.classes} classes; "
            f"allowed for {harness}: {SIDE} x {SIDE} pixels and {CLASSES} classes"
        )


def write_idx(path: Path, values: Tensor) -> None:
    """A uint8 tensor of any shape as an IDX file: its header, then its elements row by row."""
    if values.dtype != torch.uint8:
        raise ValueError(f"values: dtype {values.dtype} is not supported; allowed: torch.uint8")
    shape = tuple(values.shape)
    header = struct.pack(f">HBB{len(shape)}I", 0, BYTES, len(shape), *shape)
    path.write_bytes(header + values.contiguous().numpy().tobytes())


def write_folder(data: Dataset, folder: Path) -> None:
    """The four files of MNIST in `folder`: train and test, images of side x side and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = (("train", data.train_x, data.train_y), ("t10k", data.test_x, data.test_y))
    for name, x, y in parts:
        images = (x * 255).round().clamp_(0, 255).to(torch.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte", images.view(-1, data.side, data.side))
        write_idx(folder / f"{name}-labels-idx1-ubyte", y.to(torch.uint8))


def write_raw(data: Dataset, root: Path, within: Path = RAW) -> Path:
    """The files where torchvision's MNIST looks for them below `root`; returns `root`."""
    write_folder(data, root / within)
    return root
