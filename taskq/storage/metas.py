"""The texts of errors in SQLite: rows get theirs in the transaction that writes them, see texts.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache

from taskq.core.attempt import lacks_texts
from taskq.storage.base import Row, WriteBatch
from taskq.storage.chunks import chunks
from taskq.storage.seal import SEAL_BYTES
from taskq.storage.texts import completed


@cache
def _join_metas(rows: int) -> str:
    wanted = f"FROM tasks WHERE seq IN ({', '.join('?' * rows)})"
    return f"SELECT group_concat(seq), group_concat(length(meta)), CAST(group_concat(meta, '') AS BLOB) {wanted}"


def with_texts(connection: sqlite3.Connection, rows: Sequence[Row], batch: WriteBatch) -> Sequence[Row]:
    """The same rows; those whose texts are beside them have them now."""
    texts = batch.texts
    if not texts or texts.keys().isdisjoint([row[0] for row in rows]):
        return rows
    before = _metas(connection, [row[0] for row in rows if lacks_texts(texts.get(row[0], ()))])
    return [completed(row, texts[row[0]], before.get(row[0])) if row[0] in texts else row for row in rows]


def _metas(connection: sqlite3.Connection, seqs: Sequence[int]) -> dict[int, bytes]:
    """The meta of these live rows, in few steps (see pages.py), without their seals: these would need the payloads, for texts that people read."""
    metas: dict[int, bytes] = {}
    for some in chunks(seqs):
        found, sizes, joined = connection.execute(_join_metas(len(some)), some).fetchone()
        at = 0
        for seq, size in zip(_numbers(found), _numbers(sizes), strict=True):
            metas[seq] = joined[at : at + size - SEAL_BYTES]
            at += size
    return metas


def _numbers(text: str | None) -> list[int]:
    return [] if text is None else list(map(int, text.split(",")))
