"""JSON payloads that every worker can read, checked where they come in; and the place of what cannot be read.

PURE.  JSON allows what no worker takes as it was meant: integers beyond 64 bits, numbers beyond a float, halves of surrogate pairs, nesting without
end.  Nearly no payload has anything of it, so each is only searched for what such a thing looks like; what is found is then looked at closely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import attrs

INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
INT_CHARACTERS_MAX = 20
PATH_CHARACTERS_MAX = 200
STEP_CHARACTERS_MAX = 64
# large payloads are searched piece by piece; what is searched for has less than OVERLAP_BYTES
PIECE_BYTES, OVERLAP_BYTES = 64 << 10, 32
# all digits as 0, and one case: then a few words are all that is to be found
FLAT = bytes.maketrans(b"123456789ED", b"000000000ed")
DIGITS, EXPONENT, SIGNED_EXPONENT, SURROGATE_ESCAPE = b"0" * 19, b"0e000", b"0e+000", b"\\ud"
WHITE = re.compile(r"[ \t\r\n]*")
SURROGATE = re.compile("[\ud800-\udfff]")


@attrs.frozen
class Unreadable:
    """Stands where a value cannot be read."""

    why: str


LARGE_INTEGER = Unreadable("an integer of more than 64 bits; send it as text")
LARGE_NUMBER = Unreadable("a number that no float can hold; send it as text")
LONE_SURROGATE = Unreadable("text with half of a surrogate pair, which is no Unicode; send both halves, or bytes as base64")
TOO_DEEP = Unreadable("nested too deep; send it flat, or as text")


def unreadable(text: bytes | memoryview) -> tuple[str, str] | None:
    """(path, why) of the first part of this JSON text that a worker could not read, "" for the whole; None if all of it can be read."""
    return closely(bytes(text)) if _is_suspicious(memoryview(text)) else None


def _is_suspicious(text: memoryview) -> bool:
    if len(text) <= PIECE_BYTES:
        return _holds(bytes(text))
    return any(_holds(bytes(text[at : at + PIECE_BYTES + OVERLAP_BYTES])) for at in range(0, len(text), PIECE_BYTES))


def _holds(piece: bytes) -> bool:
    flat = piece.translate(FLAT)
    return DIGITS in flat or EXPONENT in flat or SIGNED_EXPONENT in flat or SURROGATE_ESCAPE in flat


def closely(text: bytes) -> tuple[str, str] | None:
    """The same without the search; also None for what is no JSON at all."""
    try:
        path, why = next(_found(DECODER.decode(text.decode()), ""), ("", ""))
    except RecursionError:
        return "", TOO_DEEP.why
    except ValueError:
        return None
    return (path[:PATH_CHARACTERS_MAX], why) if why else None


def cut(text: bytes) -> list[bytes]:
    """The entries of a JSON array as they stand; ValueError or RecursionError if it is none."""
    source = text.decode()
    entries: list[bytes] = []
    at = _skip(source, 1)
    for _ in DECODER.decode(source):
        _, end = DECODER.raw_decode(source, at)
        entries.append(source[at:end].encode())
        at = _skip(source, _skip(source, end) + 1)
    return entries


def _skip(source: str, at: int) -> int:
    found = WHITE.match(source, at)
    return at if found is None else found.end()


def _integer(digits: str) -> int | Unreadable:
    if len(digits) > INT_CHARACTERS_MAX:
        return LARGE_INTEGER
    value = int(digits)
    return value if INT_MIN <= value <= INT_MAX else LARGE_INTEGER


def _number(digits: str) -> float | Unreadable:
    value = float(digits)
    return value if abs(value) != float("inf") else LARGE_NUMBER


def _constant(name: str) -> Unreadable:
    return Unreadable(f"{name}, which is no JSON; send null or text")


DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _found(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """All that cannot be read, in the order of the text."""
    if isinstance(value, dict):
        for name, part in value.items():
            if SURROGATE.search(name):
                yield path, f"has a name that is {LONE_SURROGATE.why}"
            yield from _found(part, f"{path}.{name.encode(errors='backslashreplace').decode()[:STEP_CHARACTERS_MAX]}")
    elif isinstance(value, list):
        for at, part in enumerate(value):
            yield from _found(part, f"{path}[{at}]")
    elif isinstance(value, Unreadable):
        yield path, value.why
    elif isinstance(value, str) and SURROGATE.search(value):
        yield path, LONE_SURROGATE.why
