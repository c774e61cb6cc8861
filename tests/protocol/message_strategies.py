"""Hypothesis strategies for messages, derived from the annotations of the message classes, so that a new class is covered by itself."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import strategies as st

from taskq.protocol.codec import INT_MAX
from taskq.protocol.frames import KINDS

ints = st.integers(0, INT_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
blobs = st.binary(max_size=40)
scalars = st.none() | st.booleans() | st.integers(-INT_MAX - 1, INT_MAX) | st.floats(allow_nan=False) | texts | blobs
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6)

BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "int": ints,
    "bool": st.booleans(),
    "str": texts,
    "bytes": blobs,
    "list[int]": st.lists(ints, max_size=5),
    "list[str]": st.lists(texts, max_size=5),
    "list[str | None]": st.lists(st.none() | texts, max_size=5),
    "list[Any]": st.lists(plain, max_size=3),
    "dict[str, Any]": st.dictionaries(texts, plain, max_size=4),
    "list[Payload]": st.lists(blobs, max_size=6),
}


def blocks(size: int) -> st.SearchStrategy[bytes]:
    return st.integers(0, 4).flatmap(lambda count: st.binary(min_size=size * count, max_size=size * count))


BY_NAME: dict[str, st.SearchStrategy[bytes]] = {
    "id": st.binary(min_size=16, max_size=16),
    "ids": blocks(16),
    "tokens": blocks(8),
    "lost": blocks(8),
    "cancelled": blocks(8),
}


def messages_of(cls: type) -> st.SearchStrategy[Any]:
    return st.builds(cls, **{field.name: BY_NAME.get(field.name, BY_TYPE[str(field.type)]) for field in attrs.fields(cls)})


messages = st.one_of([messages_of(cls) for cls in KINDS.values()])


def owned(message: Any) -> Any:
    """The message with its payloads as bytes, so that it can be compared with what was sent."""
    if not hasattr(message, "payloads"):
        return message
    return attrs.evolve(message, payloads=[bytes(payload) for payload in message.payloads])
