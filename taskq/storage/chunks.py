"""How rows are cut into statements: many rows in one, few different texts, and a row with a huge blob alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from taskq.storage.base import Row
from taskq.storage.blobs import HUGE_BYTES

T = TypeVar("T")

CHUNKS = (500, 100, 20, 1)  # rows in one statement: few different texts, so that all stay in the connection's statement cache


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items in runs whose lengths are all in CHUNKS."""
    at = 0
    for size in CHUNKS:
        while len(items) - at >= size:
            yield items[at : at + size]
            at += size


def runs(rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], bool]]:
    """The rows in their order, cut into what one statement inserts, and whether that is one row with a huge blob."""
    begin = 0
    for at in [place for place, row in enumerate(rows) if len(row[10]) + len(row[11]) > HUGE_BYTES]:
        yield from ((chunk, False) for chunk in chunks(rows[begin:at]))
        yield rows[at : at + 1], True
        begin = at + 1
    yield from ((chunk, False) for chunk in chunks(rows[begin:]))
