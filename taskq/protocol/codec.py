"""Messages to bytes and back.

A message travels as a *head*, the msgpack array of its fields in the order of the class, and its *payloads*, raw bytes behind the head.  Encoding
hands on the payloads that it was given, decoding slices views from what was received; only payloads of 1 KiB and less become bytes here.

Rules:
- Everything that comes from the peer is checked: the type of each field and list entry, ranges, block sizes, payload sizes.  What is wrong is a
  ProtocolError that names the field; nothing else is ever raised by `decode`.
- Missing fields at the end take the defaults of the class (an older peer), surplus ones are dropped (a newer peer), unless they are nested too deep.
- The checks are derived from the annotations of the message classes, once, when this module is loaded.

PURE.  What it must not know: sessions, what the fields mean, sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import attrgetter
from struct import Struct
from typing import Any, TypeAlias

import attrs
import msgpack

from taskq.core import messages as m
from taskq.core.task import COPY_BYTES_MAX
from taskq.errors import BadRequest, ProtocolError
from taskq.ids import ID_BYTES, TOKEN_BYTES
from taskq.protocol import guard
from taskq.protocol.frames import KIND_OF, KINDS, PREFIX_BYTES, VERSION, Unknown

Buffer: TypeAlias = "bytes | memoryview"
Check: TypeAlias = Callable[[Any], bool]

PREFIX = Struct(">IBBHII")
# one packer for all: making one costs as much as packing a small head, and 256 KiB for its buffer; it holds nothing between two calls
pack = msgpack.Packer(buf_size=4_096).pack
LENGTH_BYTES = 4
UNCOUNTED_BYTES = PREFIX_BYTES - LENGTH_BYTES
JOIN_BYTES = 4_096
INT_MAX = (1 << 63) - 1
# a frame carries at most 1,000 tasks; the rest is room for a clear refusal by the shard
LIST_MAX = 1_100
ITEMS_MAX = 32_768
LONG_LISTS: dict[type, tuple[int, int]] = {m.Consume: (10_000, 32_768), m.Inspected: (10_000, 400_000)}


# ---- checks: True if the value is right --------------------------------------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT_MAX


def _is_ints(value: Any) -> bool:
    if type(value) is not list:
        return False
    if len(value) == 1:
        return _is_int(value[0])
    return not value or (set(map(type, value)) == {int} and bool(min(value) >= 0 and max(value) <= INT_MAX))


def _is_texts(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) <= {str}


def _is_optional_texts(value: Any) -> bool:
    return type(value) is list and set(map(type, value)) <= {str, type(None)}


def _is_plain(value: Any, depth: int = guard.DEPTH_MAX - 1) -> bool:
    """Only what JSON can say, and bytes: no extension types, no keys but text, no integers beyond 64 bits with sign.
    The head around it is one of the levels that there may be."""
    kind = type(value)
    if kind is int:
        return bool(-INT_MAX - 1 <= value <= INT_MAX)
    if kind is list:
        return depth > 0 and all(_is_plain(entry, depth - 1) for entry in value)
    if kind is dict:
        return depth > 0 and set(map(type, value)) <= {str} and all(_is_plain(entry, depth - 1) for entry in value.values())
    return value is None or kind in (str, bool, float, bytes)


def _is_shallow(value: Any, depth: int = guard.DEPTH_MAX - 1) -> bool:
    """The same bound on nesting, for a field of which nothing else is known."""
    kind = type(value)
    if kind is list:
        return depth > 0 and all(_is_shallow(entry, depth - 1) for entry in value)
    return kind is not dict or (depth > 0 and all(_is_shallow(entry, depth - 1) for entry in value.values()))


def _is_plain_list(value: Any) -> bool:
    return type(value) is list and (value == [None] or _is_plain(value))


def _is_plain_dict(value: Any) -> bool:
    return type(value) is dict and _is_plain(value)


def _exactly(kind: type) -> Check:
    return lambda value: type(value) is kind


def _blocks(size: int) -> Check:
    return lambda value: type(value) is bytes and len(value) % size == 0


def _sized(size: int) -> Check:
    return lambda value: type(value) is bytes and len(value) == size


# annotation → (check, what is expected)
BY_TYPE: dict[str, tuple[Check, str]] = {
    "int": (_is_int, "an integer from 0 to 2^63-1"),
    "bool": (_exactly(bool), "true or false"),
    "str": (_exactly(str), "text"),
    "bytes": (_exactly(bytes), "bin"),
    "list[int]": (_is_ints, "a list of integers from 0 to 2^63-1"),
    "list[str]": (_is_texts, "a list of texts"),
    "list[str | None]": (_is_optional_texts, "a list of texts or nil"),
    "list[Any]": (_is_plain_list, "a list of plain values"),
    "dict[str, Any]": (_is_plain_dict, "a map of plain values with text as keys"),
    "list[Payload]": (_is_ints, "the list of the payloads' sizes"),
}
# field name → the same, where the bytes have a fixed shape
BY_NAME: dict[str, tuple[Check, str]] = {
    "id": (_sized(ID_BYTES), "bin of 16 bytes"),
    "ids": (_blocks(ID_BYTES), "bin of 16 bytes for each id"),
    **dict.fromkeys(("tokens", "lost", "cancelled"), (_blocks(TOKEN_BYTES), "bin of 8 bytes for each token")),
}


def _rule(cls: type, field: Any) -> tuple[str, Check, str]:
    return (field.name, *(BY_NAME.get(field.name) or BY_TYPE[str(field.type)]))


def _getter(names: list[str]) -> Callable[[Any], Iterable[Any]]:
    """Message → its fields, without the payloads."""
    if not names:
        return lambda message: ()
    if len(names) == 1:
        name = names[0]
        return lambda message: (getattr(message, name),)
    return attrgetter(*names)


@attrs.frozen
class Plan:
    """How one message class is packed and checked."""

    kind: int
    cls: Callable[..., Any]
    name: str
    get: Callable[[Any], Iterable[Any]]
    rules: tuple[tuple[str, Check, str], ...]
    required: int
    carries: bool
    list_max: int
    items_max: int


def _plan(kind: int, cls: type) -> Plan:
    fields = attrs.fields(cls)
    names = [field.name for field in fields]
    carries = names[:1] == ["payloads"]
    required = sum(field.default is attrs.NOTHING for field in fields)
    list_max, items_max = LONG_LISTS.get(cls, (LIST_MAX, ITEMS_MAX))
    rules = tuple(_rule(cls, field) for field in fields)
    return Plan(kind, cls, cls.__name__.upper(), _getter(names[carries:]), rules, required, carries, list_max, items_max)


PLANS: dict[int, Plan] = {kind: _plan(kind, cls) for kind, cls in KINDS.items()}
PLAN_OF: dict[type, Plan] = {cls: PLANS[kind] for cls, kind in KIND_OF.items()}


# ---- encode ------------------------------------------------------------------------------------------------------------------------------


def encode(message: Any, seq: int = 0, flags: int = 0) -> list[Buffer]:
    """The frame as buffers to send one behind the other: prefix and head in one, then the payloads as they were given.
    Raises BadRequest if a field holds something that msgpack cannot say."""
    plan = PLAN_OF[type(message)]
    payloads: list[Buffer] = []
    values = plan.get(message)
    if plan.carries:
        payloads = message.payloads
        values = ([*map(len, payloads)], *values)
    try:
        head: bytes = pack(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRequest(f"{plan.name}: a field cannot be packed: {error}") from error
    length = UNCOUNTED_BYTES + len(head)
    if not payloads:
        return [PREFIX.pack(length, VERSION, flags, plan.kind, seq, len(head)) + head]
    return [PREFIX.pack(length + sum(values[0]), VERSION, flags, plan.kind, seq, len(head)) + head, *payloads]  # type: ignore[index]


def join(buffers: Iterable[Buffer]) -> list[Buffer]:
    """The same bytes in fewer buffers: small neighbours are joined, as each buffer costs more than its copy; those from 4 KiB up stay alone."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < JOIN_BYTES:
            small.append(buffer)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(buffer)
    if small:
        joined.append(b"".join(small))
    return joined


# ---- decode ------------------------------------------------------------------------------------------------------------------------------


def decode(kind: int, head: bytes, payload: memoryview) -> Any:
    """The message of a frame, or Unknown.  Its payloads are views of `payload`.  Raises ProtocolError."""
    plan = PLANS.get(kind)
    if plan is None:
        return Unknown(kind)
    values = _unpack(plan, head)
    count = len(values)
    if count < plan.required:
        raise _wrong(plan, plan.rules[count][0], f"is missing: the head has {count} fields, at least {plan.required} are needed")
    if count > len(plan.rules):
        if not all(map(_is_shallow, values[len(plan.rules) :])):
            raise _wrong(plan, "", f"a field that is not known here is nested deeper than {guard.DEPTH_MAX}")
        del values[len(plan.rules) :]
    for value, (name, check, expected) in zip(values, plan.rules, strict=False):
        if not check(value):
            raise _wrong(plan, name, f"must be {expected}")
    if plan.carries:
        values[0] = _cut(plan, values[0], payload)
    elif payload:
        raise _wrong(plan, "", f"carries no payload, but {len(payload)} bytes follow the head")
    return plan.cls(*values)


def _unpack(plan: Plan, head: bytes) -> list[Any]:
    try:
        guard.check(head, plan.items_max, plan.list_max)
        list_max = min(plan.list_max, len(head))
        values = msgpack.unpackb(head, max_array_len=list_max, max_map_len=list_max, ext_hook=_no_extension)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        text = str(error)[:100] or type(error).__name__
        raise _wrong(plan, "", f"the head must be a msgpack array within the limits: {text}") from None
    if type(values) is not list:
        raise _wrong(plan, "", "the head must be a msgpack array")
    return values


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError("extension types are not used")


def _cut(plan: Plan, sizes: list[int], payload: memoryview) -> Sequence[Buffer]:
    """The payloads, one behind the other: as views, or, where all are so small that views of them would be copied later, as bytes."""
    ends = [*accumulate(sizes)]
    total = ends[-1] if ends else 0
    if total != len(payload):
        raise _wrong(plan, "payloads", f"the sizes add up to {total}, but {len(payload)} bytes follow the head")
    whole = bytes(payload) if max(sizes, default=0) <= COPY_BYTES_MAX else payload
    return [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _wrong(plan: Plan, field: str, text: str) -> ProtocolError:
    return ProtocolError(f"{plan.name}{'.' if field else ''}{field}: {text}", field=field)
