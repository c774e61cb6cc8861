"""Arguments and results as bytes: msgpack to send, msgpack or JSON to read, never pickle.

What can be sent: None, bool, int (64 bit), float, str, bytes, and lists, tuples and dicts of them.  A tuple arrives as a list.  Anything else
is a TypeError at the caller that names the argument, the place in it and what to send instead.

How a payload means arguments, the same for msgpack and JSON: a map = arguments by name, an array = arguments by position, any other value =
the only argument.  Encoding `bytes` is not decoded at all: the raw bytes are the only argument.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack

from taskq.core.messages import BYTES, ENCODINGS, JSON, MSGPACK, Payload
from taskq.errors import echo

DEPTH_MAX = 32
_PACK_ERRORS = (TypeError, ValueError, OverflowError, RecursionError)


def encode(value: Any, what: str = "the value") -> bytes:
    """msgpack bytes; a TypeError that names `what` and the place of the part that cannot be sent."""
    try:
        packed: bytes = msgpack.packb(value)
    except _PACK_ERRORS as error:
        raise TypeError(_explain(value, what) or f"{what} cannot be serialised: {error}") from None
    return packed


def encode_arguments(arguments: dict[str, Any] | list[Any], task_type: str) -> bytes:
    """A payload of arguments; a TypeError that names the first argument that cannot be sent."""
    try:
        packed: bytes = msgpack.packb(arguments)
    except _PACK_ERRORS as error:
        raise TypeError(_explain_arguments(arguments, task_type) or f"{task_type}: the arguments cannot be serialised: {error}") from None
    return packed


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _explain_arguments(arguments: dict[str, Any] | list[Any], task_type: str) -> str:
    named = arguments.items() if isinstance(arguments, dict) else enumerate(arguments)
    for name, value in named:
        found = _explain(value, f"argument {echo(name)} of {task_type}")
        if found:
            return found
    return ""


def _explain(value: Any, what: str) -> str:
    """Why this value cannot be sent, "" if it can."""
    place, culprit = _culprit(value, "", 0)
    if place is None:
        return ""
    found, way_out = _describe(culprit)
    return f"{what} cannot be serialised: {found}{f' at {place}' if place else ''}; {way_out}"


def _culprit(value: Any, place: str, depth: int) -> tuple[str | None, Any]:
    """The place and value of the innermost part that does not pack; (None, None) when all of it does."""
    try:
        msgpack.packb(value)
    except _PACK_ERRORS:
        pass
    else:
        return None, None
    if depth >= DEPTH_MAX:
        return place, value
    for step, part in _parts(value):
        found = _culprit(part, f"{place}{step}", depth + 1)
        if found[0] is not None:
            return found
    return place, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    if issubclass(type(value), dict):
        return [(f"[{str(key)[:40]!r}]", part) for key, part in value.items()] + [(f" (the key {str(key)[:40]!r})", key) for key in value]
    if issubclass(type(value), (list, tuple)):
        return [(f"[{index}]", part) for index, part in enumerate(value)]
    return []


def _describe(value: Any) -> tuple[str, str]:
    """What it is, and what to send instead."""
    kind = type(value)
    if kind is int:
        return "an int of more than 64 bits", "send str(value)"
    if issubclass(kind, str):
        return "a str that is not valid Unicode", 'send value.encode(errors="surrogateescape")'
    if issubclass(kind, (dict, list, tuple)):
        return f"a {kind.__name__} that is nested too deep", "send it flat, or as json.dumps(value)"
    from taskq.advice import instead  # what it knows by type takes time to import

    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a value of type {name}", instead(value)
