"""Seals of rows: SQLite keeps no checksums, so a flipped bit in a page would be handed out as if it had been written.

A seal is four bytes, crc32c of all that a row says, behind the last blob of the row: `meta` of a live one, `body` of a finished one.  A named
integer of `meta` has its seal in a column.  What a seal does not cover, pages and indexes, is found by SQLite's own check.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, TypeAlias

from crc32c import crc32c

from taskq.storage.base import Row

Pack: TypeAlias = Callable[[Any], bytes]
Buffer: TypeAlias = bytes | bytearray | memoryview

SEAL_BYTES = 4
PRIME = 4_294_967_291  # the largest below 2**32: a number modulo it can seed a crc, and no flipped bit of the number leaves it as it was
_CRC = Struct("<I")


class BrokenSeal(Exception):
    """A row is not as it was written."""


def seal_of_live(row: Row, pack: Pack) -> bytes:
    """The seal of a row, whose values are as `base.COLUMNS` has them."""
    payload, result, meta = row[10:]
    head = pack((*row[:10], len(payload), len(result)))
    return _CRC.pack(crc32c(meta, crc32c(result, crc32c(payload, crc32c(head)))))


def unsealed_live(row: Row, pack: Pack) -> Row:
    """The row without its seal.  Raises BrokenSeal."""
    sealed = row[12]
    try:
        bare = (*row[:12], sealed[:-SEAL_BYTES])
        if seal_of_live(bare, pack) == sealed[-SEAL_BYTES:]:
            return bare
    except TypeError:
        pass  # a value is not even of its kind
    raise BrokenSeal(f"row {row[0]} of table tasks is not as it was written")


def seal_of_finished(id_: Buffer, finished_ms: int, body: bytes, payload: Buffer | None, result: Buffer | None) -> bytes:
    """The seal of a finished row; payload and result are None if the body has them."""
    crc = crc32c(id_, crc32c(body, finished_ms % PRIME))
    if payload is not None and result is not None:
        crc = crc32c(result, crc32c(payload, crc))
    return _CRC.pack(crc)


def unsealed_finished(id_: bytes, finished_ms: int, sealed: bytes, payload: bytes | None, result: bytes | None) -> bytes:
    """The body without its seal.  Raises BrokenSeal."""
    try:
        body = sealed[:-SEAL_BYTES]
        if seal_of_finished(id_, finished_ms, body, payload, result) == sealed[-SEAL_BYTES:]:
            return body
    except TypeError:
        pass  # a value is not even of its kind
    raise BrokenSeal(f"the row of task {bytes(id_).hex()} in table finished is not as it was written")


def seal_of_number(name: str, value: int) -> int:
    return crc32c(repr((name, value)).encode())
