"""Bounds on foreign msgpack, looked at before a single object of it is made.

An array header makes the decoder reserve its list at once, and headers nest: 64 KiB of them can reserve hundreds of MiB.  Besides, an empty list
of one byte becomes an object of 56.  Most heads are harmless by their size, or because they hold few bytes that could be such a header; only the
others are walked through here, item by item, without making objects.

PURE.  What it must not know: messages, frames.
"""

from __future__ import annotations

HEAD_BYTES_HARMLESS = 800
HEAD_BYTES_UNWALKED = 28 * 1024
RESERVED_BYTES_MAX = 1_800_000
POINTER_BYTES = 8
DEPTH_MAX = 8
ARRAY16, ARRAY32 = b"\xdc", b"\xdd"
ARRAY, MAP = 1, 2


def _sizes() -> list[int]:
    """First byte → bytes of the whole item; 0 for those that say it themselves."""
    sizes = [0] * 256
    sizes[0x00:0x80] = [1] * 128
    sizes[0xA0:0xC0] = range(1, 33)
    sizes[0xE0:0x100] = [1] * 32
    sizes[0xC0], sizes[0xC2], sizes[0xC3] = 1, 1, 1
    sizes[0xCA:0xD4] = (5, 9, 2, 3, 5, 9, 2, 3, 5, 9)
    sizes[0xD4:0xD9] = (3, 4, 6, 10, 18)
    return sizes


SIZES = tuple(_sizes())
# first byte → (bytes of the length, what else follows it): bin, ext, str
LENGTHS = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
# first byte → (bytes of the count, items for each count)
COUNTS = {0xDC: (2, ARRAY), 0xDD: (4, ARRAY), 0xDE: (2, MAP), 0xDF: (4, MAP)}


def check(head: bytes, items_max: int, list_max: int) -> None:
    """Raise ValueError if decoding this could cost far more memory than the head has bytes."""
    size = len(head)
    if size <= HEAD_BYTES_HARMLESS:
        return
    headers = head.count(ARRAY16) + head.count(ARRAY32)
    if size > HEAD_BYTES_UNWALKED or headers * list_max * POINTER_BYTES > RESERVED_BYTES_MAX:
        walk(head, items_max, list_max)


def walk(head: bytes, items_max: int, list_max: int) -> None:
    """Raise ValueError if there are more items, longer lists or deeper nesting than allowed.  What is cut off, or no msgpack, the decoder refuses."""
    at, items, end = 0, 0, len(head)
    open_counts = [1]
    while open_counts:
        if not open_counts[-1]:
            open_counts.pop()
            continue
        if at >= end:
            return
        open_counts[-1] -= 1
        items += 1
        first = head[at]
        size = SIZES[first]
        if size:
            at += size
        elif first in LENGTHS:
            width, more = LENGTHS[first]
            at += 1 + width + more + int.from_bytes(head[at + 1 : at + 1 + width], "big")
        elif first == 0xC1:
            return
        else:
            width, count = _count(head, at, first, list_max)
            at += 1 + width
            open_counts.append(count)
        if items > items_max or len(open_counts) > DEPTH_MAX:
            raise ValueError(f"more than {items_max} items, or nested deeper than {DEPTH_MAX}")


def _count(head: bytes, at: int, first: int, list_max: int) -> tuple[int, int]:
    """(bytes of the count, items that follow) of the list or map that begins here."""
    if first < 0xA0:
        return 0, (first & 15) * (ARRAY if first >= 0x90 else MAP)
    width, each = COUNTS[first]
    count = int.from_bytes(head[at + 1 : at + 1 + width], "big")
    if count > list_max:
        raise ValueError(f"a list or map of {count} entries, more than {list_max}")
    return width, count * each
