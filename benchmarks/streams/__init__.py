"""The streams by name. A new stream is a class in a file here and one entry below."""

from __future__ import annotations

from benchmarks.streams.base import ORDERS, Batch, Order, Stream, masked
from benchmarks.streams.labels import LabelPermuted
from benchmarks.streams.permuted import Fuzzy, FuzzyRandom, Long, Permuted
from benchmarks.streams.rotated import Rotated
from benchmarks.streams.split import SplitClass, SplitDomain, SplitTask

STREAMS: dict[str, type[Stream]] = {
    stream.name: stream
    for stream in (
        Permuted,
        Rotated,
        SplitTask,
        SplitDomain,
        SplitClass,
        Fuzzy,
        FuzzyRandom,
        LabelPermuted,
        Long,
    )
}

__all__ = ["ORDERS", "STREAMS", "Batch", "Order", "Stream", "masked"]
