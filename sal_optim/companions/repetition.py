"""``repetition_rate`` and ``horizon``: how much of a generated text repeats itself, and how long it
stays right.

Both are of outputs. What activations do is watched by ``spectral.py``; loops are not seen in
their spectrum.
"""

import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from sal_optim.utils import checks


def repetition_rate(tokens: Sequence[Any] | Tensor, n: int = 3) -> float:
    """``1 - unique/total`` of the n-grams: 0 where none comes twice, near 1 in a loop.

    Args:
        tokens: one sequence of tokens, or several: a tensor of one or two dimensions, or a list of
            tokens or of lists of them. N-grams are counted within each sequence; of several, the
            shares are those of all n-grams together.
        n: length of the n-grams, at least 1.

    Raises:
        ValueError: no sequence has ``n`` tokens.
    """
    n = checks.whole("n", n, low=1)
    total = unique = 0
    for sequence in _sequences(tokens):
        grams = [tuple(sequence[at : at + n]) for at in range(len(sequence) - n + 1)]
        total += len(grams)
        unique += len(set(grams))
    if not total:
        raise ValueError(f"Invalid tokens value: no sequence of {n} tokens; tokens must have one")
    return 1.0 - unique / total


def horizon(p: float, target: float = 0.5) -> float:
    """``ln(target) / ln(p)``: tokens after which a share ``target`` of sequences is without error.

    From p^L = target, where each token is right with probability p whatever came before. Errors
    that gather in few places or few sequences make it wrong: how far is in
    ``docs/companions-results.md``.

    Args:
        p: the probability that a token is right, in (0, 1).
        target: share of the sequences, in (0, 1).
    """
    p = checks.number("p", p, high=1.0, low_open=True)
    target = checks.number("target", target, high=1.0, low_open=True)
    return math.log(target) / math.log(p)


def _sequences(tokens: Any) -> list[list[Hashable]]:
    allowed = "tokens must be a sequence, a list of sequences, or a tensor of one or two dimensions"
    given = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    if not isinstance(given, Sequence):
        raise TypeError(f"Invalid tokens value: a {type(tokens).__name__}; {allowed}")
    given = [item.tolist() if isinstance(item, Tensor) else item for item in given]
    several = given and all(isinstance(item, (list, tuple)) for item in given)
    rows = [list(row) for row in (given if several else [given])]
    for token in itertools.chain.from_iterable(rows):
        if not isinstance(token, Hashable):
            kind = type(token).__name__
            raise TypeError(f"Invalid tokens value: a token is a {kind}; {allowed}")
    return rows
