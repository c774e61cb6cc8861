"""Content: the same call is the same content however it is written, and nothing else is."""

from __future__ import annotations

import json
import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core.content import FRAME_BYTES_MAX, VALUE_BYTES_MAX, Comparison, Content
from taskq.core.messages import BYTES, JSON, MSGPACK


def content(payload: bytes, encoding: int = JSON, queue: str = "email", task_type: str = "send") -> Content:
    return queue, task_type, encoding, payload


def packed(value: Any) -> Content:
    return content(msgpack.packb(value), MSGPACK)


def same(one: Content, other: Content) -> bool:
    return Comparison().same(one, other) and Comparison().same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (content(b'{"a":1,"b":2}'), content(b'{"b":2,"a":1}')),
        (content(b'{"a":[1,2]}'), content(b' {\n "a" : [ 1 , 2 ] }\n')),
        (content(b'"\\u00e9"'), content('"é"'.encode())),
        (content(b'{"a":{"x":1.5,"y":null}}'), packed({"a": {"y": None, "x": 1.5}})),
        (packed({"a": 1, "b": b"raw"}), packed({"b": b"raw", "a": 1})),
        (content(b"\xcd\x00\x01", MSGPACK), content(b"\x01", MSGPACK)),
        (content(b"\xa1x", BYTES), content(memoryview(b"\xa1x"), BYTES)),
    ],
)
def test_the_same_value_is_the_same_content(one: Content, other: Content) -> None:
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (content(b"[1]"), content(b"[true]")),
        (content(b"[0]"), packed([False])),
        (content(b"[1]"), content(b"[1.0]")),
        (content(b"[1]"), content(b'["1"]')),
        (content(b"[1,2]"), content(b"[2,1]")),
        (content(b"null"), content(b"0")),
        (content(b"NaN"), content(b"null")),
        (content(b"NaN"), content(b" NaN")),
        (packed(b"x"), packed("x")),
        (packed({1: "a"}), packed({True: "a"})),
        (packed({1: "a"}), packed({"1": "a"})),
        (content(b"{}"), content(b"[]")),
        (content(b"1"), content(b"1", MSGPACK)),
        (content(b"x", BYTES), content(b"x", MSGPACK)),
        (content(b"{"), content(b" {")),
        (content(b"[" * 50_000), content(b"[" * 50_001)),
        (content(b"\xc1", MSGPACK), content(b"1")),
        (content(b"1"), content(b" 1", queue="other")),
        (content(b"1"), content(b" 1", task_type="other")),
    ],
)
def test_another_value_is_other_content(one: Content, other: Content) -> None:
    assert not Comparison().same(one, other) and not Comparison().same(other, one)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_any_plain_value_is_itself_in_both_encodings(value: Any) -> None:
    assert same(content(json.dumps(value, indent=1).encode()), packed(value))


def test_a_large_payload_with_its_arguments_in_another_order_is_the_same() -> None:
    text = "x" * (VALUE_BYTES_MAX - 100)
    assert same(packed({"text": text, "n": 1}), packed({"n": 1, "text": text}))


def test_a_frame_makes_the_broker_decode_no_more_than_it_may() -> None:
    """A thousand small payloads against a large one each, and large ones against each other."""
    large, small = packed(list(range(100)) * 9_000), packed([])
    comparison = Comparison()
    began_s = time.perf_counter()
    assert not any(comparison.same(large, small) for _ in range(1_000))
    assert time.perf_counter() - began_s < 1
    spaced = [content(b" " * number + b"[" + b"1," * 200_000 + b"1]") for number in range(2, 30)]
    told = [comparison.same(spaced[0], each) for each in spaced[1:]]
    assert told[0] and not told[-1]
    assert told.index(False) <= FRAME_BYTES_MAX // (2 * len(spaced[0][3])) + 1
