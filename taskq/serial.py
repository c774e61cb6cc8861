"""Arguments and results as bytes: msgpack to send, msgpack or JSON to read, never pickle.

What can be sent: None, bool, int (64 bit), float, str, bytes, and lists, tuples and dicts of them, nested 1,000 deep.  Keys of dicts are None, bool,
int, float, str or bytes.  A tuple arrives as a list; what is made of these types (an enum of str, an OrderedDict) arrives as the plain value that it
equals.  Anything else is a TypeError at the caller that names the argument, the place in it and what to send instead: what was accepted
can be read.

How a payload means arguments, the same for msgpack and JSON: a map = arguments by name, an array = arguments by position, any other value =
the only argument.  Encoding `bytes` is not decoded at all: the raw bytes are the only argument.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from taskq.control import Control
from taskq.core.messages import BYTES, ENCODINGS, JSON, MSGPACK, Payload
from taskq.errors import echo
from taskq.foreign import class_name, is_one_of, of_class

DEPTH_MAX = 1_000
INT_MIN, INT_MAX = -(1 << 63), (1 << 64) - 1
PLACE_CHARACTERS_MAX = 200
KEY_CHARACTERS_MAX = 40
# the first bytes of lists and maps; a value that holds fewer of them is not nested too deep
HEADERS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
# what is sent as it is, and what may be a key: by id, since a class of somebody else may have an __eq__ of its own
ATOMS = frozenset(map(id, (bool, float, bytes, type(None), bytearray, memoryview, msgpack.ExtType, msgpack.Timestamp)))
KEYS = frozenset(map(id, (str, int, bool, float, bytes, type(None))))
# base class → the plain value of what is derived from it, by the base's own code
PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytes(memoryview(value)),
}


def encode(value: Any, what: str = "the value") -> bytes:
    """msgpack bytes; a TypeError that names `what` and the place of the part that cannot be sent."""
    packed = _pack(value)
    return _pack_checked(value, what) if packed is None else packed


def encode_arguments(arguments: dict[str, Any] | list[Any], task_type: str) -> bytes:
    """A payload of arguments; a TypeError that names the first argument that cannot be sent."""
    packed = _pack(arguments)
    if packed is None:
        plain = _plain_arguments(arguments, task_type)
        packed = _pack_checked(plain, f"{task_type}: what the arguments make together")
    return packed


def _pack(value: Any) -> bytes | None:
    """The common case: exactly the types that come back as they are.  None if a closer look is needed."""
    try:
        packed: bytes = msgpack.packb(value, strict_types=True)
    except BaseException:
        return _pack_tuples(value)
    if len(packed) <= DEPTH_MAX or len(packed) - len(packed.translate(None, HEADERS)) <= DEPTH_MAX or _is_readable(packed):
        return packed
    return None


def _pack_tuples(value: Any) -> bytes | None:
    """The same with tuples among them, which may stand where a list cannot: as a key."""
    try:
        packed: bytes = msgpack.packb(value, strict_types=True, default=_listed)
    except BaseException:
        return None
    return packed if _is_readable(packed) else None


def _listed(value: Any) -> list[Any]:
    if type(value) is not tuple:
        raise TypeError
    return list(value)


def _is_readable(packed: bytes) -> bool:
    try:
        decode(packed, MSGPACK)
    except ValueError:
        return False
    return True


def _pack_checked(value: Any, what: str) -> bytes:
    plain = _plain_of(value, what)
    try:
        packed: bytes = msgpack.packb(plain, strict_types=True)
        decode(packed, MSGPACK)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(f"{what} cannot be serialised: {error}") from None
    return packed


def _plain_arguments(arguments: dict[str, Any] | list[Any], task_type: str) -> dict[str, Any] | list[Any]:
    if isinstance(arguments, list):
        return [_plain_of(value, f"argument {at} of {task_type}") for at, value in enumerate(arguments)]
    names = _plain_of(dict.fromkeys(arguments), f"the arguments of {task_type}")
    values = (_plain_of(value, f"argument {echo(name)} of {task_type}") for name, value in zip(names, arguments.values(), strict=True))
    return dict(zip(names, values, strict=True))


def decode(payload: Payload, encoding: int) -> Any:
    """The value behind a payload or result; ValueError when the bytes are not what the encoding says."""
    if encoding == MSGPACK:
        try:
            return msgpack.unpackb(payload, strict_map_key=False)
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"not valid msgpack: {error or type(error).__name__}") from None
    if encoding == JSON:
        return _decode_json(payload)
    if encoding == BYTES:
        return bytes(payload)
    raise ValueError(f"unknown encoding {encoding}; known are {', '.join(ENCODINGS)}")


def _decode_json(payload: Payload) -> Any:
    try:
        return json.loads(bytes(payload))
    except RecursionError:
        return _decode_deep_json(payload)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _decode_deep_json(payload: Payload) -> Any:
    """What the broker could read can be read here, however much of the limit is used up by what called this."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + DEPTH_MAX)
    try:
        return json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    finally:
        sys.setrecursionlimit(limit)


# ---- the closer look: a plain copy of a value, part by part, which asks foreign code only where nothing can come of it but a TypeError


class _Culprit(Exception):
    """This part cannot be sent; `steps` lead to it, the last one first."""

    def __init__(self, why: str, way_out: str) -> None:
        super().__init__(why)
        self.way_out = way_out
        self.steps: list[str] = []


def _plain_of(value: Any, what: str) -> Any:
    try:
        return _plain(value)
    except _Culprit as culprit:
        place, why, way_out = "".join(reversed(culprit.steps)), str(culprit), culprit.way_out
    except RecursionError:
        place, why, way_out = "", f"a {class_name(type(value))} that is nested too deep", "send it flat, or as json.dumps(value)"
    if len(place) > PLACE_CHARACTERS_MAX:
        place = f"{place[:PLACE_CHARACTERS_MAX]}…"
    raise TypeError(f"{what} cannot be serialised: {why}{f' at {place}' if place else ''}; {way_out}")


def _plain(value: Any) -> Any:
    """The same value of exact types, whose lists and maps are our own.  One frame a level, as the nesting may be deep."""
    kind = type(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return _number(value)
    if id(kind) in ATOMS:
        return value
    if is_one_of(value, (dict,)):
        return _plain_map(value)
    if is_one_of(value, (list, tuple)):
        parts = _read(value, iter)
        for at, part in enumerate(parts):
            try:
                parts[at] = _plain(part)
            except _Culprit as culprit:
                culprit.steps.append(f"[{at}]")
                raise
        return parts
    for base, convert in PLAIN.items():
        if is_one_of(value, (base,)):
            return _plain(convert(value))
    raise _Culprit(*_describe(value))


def _plain_map(value: dict[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, part in _read(value, lambda value: value.items()):
        name = _key(key)
        try:
            plain = _plain(part)
        except _Culprit as culprit:
            culprit.steps.append(f"[{_cut(name)!r}]")
            raise
        if name in found:
            raise _Culprit(f"a {class_name(type(value))} that has the key {_cut(name)!r} twice when it is sent", "send its keys as text")
        found[name] = plain
    return found


def _read(value: Any, parts: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """Its parts at one moment; what is derived from a list or a dict may do anything when it is asked for them."""
    try:
        return list(parts(value))
    except Exception as error:
        raise _Culprit(f"a {class_name(type(value))} that raises {class_name(type(error))} when it is read", "send a plain copy of it") from None


def _key(key: Any) -> Any:
    try:
        name = _plain(key)
    except _Culprit as culprit:
        culprit.steps = [" (in a key)"]
        raise
    if id(type(name)) not in KEYS:
        raise _Culprit(f"a {class_name(type(key))} as a key", "send a list of pairs, or keys that are text")
    return name


def _cut(name: Any) -> Any:
    return name[:KEY_CHARACTERS_MAX] if isinstance(name, (str, bytes)) else name


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Culprit("a str that is not valid Unicode", 'send value.encode(errors="surrogateescape")') from None
    return value


def _number(value: int) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise _Culprit("an int of more than 64 bits", "send str(value)")
    return value


def _describe(value: Any) -> tuple[str, str]:
    """What it is, and what to send instead."""
    control = value if is_one_of(value, (type,)) else type(value)
    if any(base is Control for base in of_class(control, "__mro__")):
        return f"a {class_name(control)}, which says nothing when it is returned", "raise it"
    from taskq.instead import instead  # what it knows by type takes time to import

    return f"a value of type {class_name(type(value))}", instead(value)
