"""A stretch of the journal: the records between two flushes of a replay, and which of them need not be replayed.

A task that was admitted and completed within one stretch leaves one row and nothing else.  Where that row would be deleted by the first prune,
because so many younger ones are to come, the task is left out: of the records that name it, the parts around it are replayed.

It knows the shape of records (records.py) and that a completed task never changes again, and nothing else of what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import attrs

from taskq.core import records as r
from taskq.ids import ID_BYTES, TOKEN_BYTES, split
from taskq.storage.rows import Opened

# fields that hold a block of so many bytes a task, and those that number the record's first task; a list with more than one entry is a column
BLOCKS = {"ids": ID_BYTES, "tokens": TOKEN_BYTES}
FIRSTS = frozenset({"first_seq", "first", "first_position"})
_FIELDS: dict[type, tuple[str, ...]] = {cls: tuple(field.name for field in attrs.fields(cls)) for cls in r.KIND_OF}


@attrs.define
class Stretch:
    """`changes`: how often a task is named.  `completed`: how many of them complete one.  `size`: the bytes of the records, and of the tasks from the
    store that they name.  `admitted`: the tasks that come in it."""

    changes: int = 0
    completed: int = 0
    size: int = 0
    admitted: set[bytes] = attrs.field(factory=set)
    _records: list[tuple[Opened, list[bytes]]] = attrs.field(factory=list)

    def add(self, opened: Opened, size: int) -> None:
        ids = split(opened.get("ids"), ID_BYTES)
        self._records.append((opened, ids))
        self.changes += len(ids)
        self.size += size
        if opened.cls is r.Completed:
            self.completed += len(ids)
        elif opened.cls is r.Admitted:
            self.admitted.update(ids)

    def passing(self) -> frozenset[bytes]:
        """The tasks that come and complete within this stretch."""
        return frozenset(self._named(r.Completed)).intersection(self.admitted)

    def _named(self, kind: type) -> Iterator[bytes]:
        return chain.from_iterable(ids for opened, ids in self._records if opened.cls is kind)

    def without(self, left_out: frozenset[bytes]) -> Iterator[Any]:
        """The records in their order, but for these tasks."""
        for opened, ids in self._records:
            if not left_out or left_out.isdisjoint(ids):
                yield opened.record()
            elif not left_out.issuperset(ids):
                yield from _around(opened.record(), ids, left_out)


def _around(record: Any, ids: list[bytes], left_out: frozenset[bytes]) -> Iterator[Any]:
    begin = 0
    for at, task_id in enumerate(ids):
        if task_id in left_out:
            if at > begin:
                yield part(record, begin, at)
            begin = at + 1
    if begin < len(ids):
        yield part(record, begin, len(ids))


def part(record: Any, begin: int, end: int) -> Any:
    """The record of these of its tasks alone."""
    values = []
    for name in _FIELDS[type(record)]:
        value = getattr(record, name)
        size = BLOCKS.get(name)
        if size is not None:
            value = value[begin * size : end * size]
        elif name in FIRSTS:
            value += begin
        elif type(value) is list and len(value) > 1:
            value = value[begin:end]
        values.append(value)
    return type(record)(*values)
