"""Content: whether two enqueues of one id or key mean the same call.

The same queue, task type and bytes are the same content, and nearly always nothing else has to be looked at.  Where the bytes differ, msgpack and
JSON are compared by value: the order of keys in a map, white space and the form of a length do not count, nor which of the two it is.

Rules:
- Types count: 1, 1.0, true and "1" are four values.  NaN equals nothing, so it has to have the same bytes.
- What cannot be decoded, payloads over VALUE_BYTES_MAX, one that is RATIO_MAX times as long as the other, and what a frame brings beyond
  FRAME_BYTES_MAX of both sides are compared by bytes.  So nobody makes the broker decode much by sending little.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack
import msgspec

from taskq.core.messages import JSON, MSGPACK, Payload

VALUE_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = 8 << 20
RATIO_MAX = 8
# short ones may differ more, by white space above all
SHORT_BYTES = 4_096

# queue, task type, encoding, payload
Content: TypeAlias = tuple[str, str, int, Payload]

DECODE: dict[int, Callable[[bytes], Any]] = {
    MSGPACK: lambda data: msgpack.unpackb(data, strict_map_key=False),
    JSON: json.loads,
}


class Comparison:
    """Of the tasks of one frame with those that are there; it has so many bytes left to decode."""

    def __init__(self) -> None:
        self._left = FRAME_BYTES_MAX

    def same(self, one: Content, other: Content) -> bool:
        if one[:2] != other[:2]:
            return False
        if one[2:] == other[2:]:
            return True
        return self._may_decode(len(one[3]), len(other[3])) and _same_value(one, other)

    def _may_decode(self, one_bytes: int, other_bytes: int) -> bool:
        shorter, longer = sorted((one_bytes, other_bytes))
        if longer > min(VALUE_BYTES_MAX, max(SHORT_BYTES, shorter * RATIO_MAX), self._left):
            return False
        self._left -= one_bytes + other_bytes
        return True


def _same_value(one: Content, other: Content) -> bool:
    """Whatever cannot be decoded, or is nested too deep to be compared, is not the same."""
    decode_one, decode_other = DECODE.get(one[2]), DECODE.get(other[2])
    if decode_one is None or decode_other is None:
        return False
    try:
        mine, theirs = decode_one(bytes(one[3])), decode_other(bytes(other[3]))
        # for Python 1, 1.0 and True are equal; what they are written as is not
        return bool(mine == theirs) and _written(mine) == _written(theirs)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException):
        return False


def _written(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
