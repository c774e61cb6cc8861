"""The texts of attempts on their way into the store.

A row's `meta` is made without the long texts of its task's errors, since one text may count for a thousand tasks: a batch has them beside its rows,
each once, and the engine puts them in row by row (`completed`).  A text that memory has left to the store comes from the row that is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgpack

from taskq.core.attempt import Attempt, History, lean, with_texts
from taskq.storage.base import META_COLUMN, Row
from taskq.storage.rows import META

# where a meta is longer there is a history with texts, or a long name, at most
SMALL_META_BYTES = 1_024
HISTORY_AT = META.index("history")


def history_of(meta: bytes) -> History:
    return tuple([Attempt(*attempt) for attempt in msgpack.unpackb(meta, use_list=False)[HISTORY_AT]])


def completed(row: Row, history: Sequence[Attempt], before: bytes | None) -> Row:
    """The row with all texts of this history; `before` is the meta of the row that the store has, if it has one."""
    return _with_history(row, with_texts(history, () if before is None else history_of(before)))


def without_texts(row: Row) -> Row:
    """The row as memory has it: what is read a thousand rows at a time must not bring their texts."""
    meta = row[META_COLUMN]
    return row if len(meta) <= SMALL_META_BYTES else _with_history(row, lean(history_of(meta)))


def _with_history(row: Row, history: History) -> Row:
    values = list(msgpack.unpackb(row[META_COLUMN], use_list=False))
    values[HISTORY_AT] = [attempt.fields() for attempt in history]
    return (*row[:META_COLUMN], msgpack.packb(values))
