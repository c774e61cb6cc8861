"""Values to bytes and back; what cannot be sent is named."""

from __future__ import annotations

import datetime
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import serial
from taskq.core.messages import BYTES, JSON, MSGPACK

KEYS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5))


@given(VALUES)
def test_what_is_sent_comes_back(value: Any) -> None:
    assert serial.decode(serial.encode(value), MSGPACK) == value


def test_each_encoding_is_read() -> None:
    assert serial.decode(b'{"a":[1,null]}', JSON) == {"a": [1, None]}
    assert serial.decode(memoryview(b"raw"), BYTES) == b"raw"
    assert serial.decode(memoryview(serial.encode((1, "a"))), MSGPACK) == [1, "a"]


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1, 2}, "argument 'to' of send cannot be serialised: a value of type set"),
        ({"cc": [1, object()]}, r"a value of type object at \['cc'\]\[1\]"),
        (datetime.datetime(2024, 1, 1), "datetime.datetime"),
        (2**64, "an int of more than 64 bits"),
        ("\ud800", "not valid Unicode"),
        ({(1, {2}.__class__): 1}, "a value of type type"),
        (deep(2_000), "nested too deep"),
        ({"rows": [{(1, 2): 3}]}, r"argument 'to' of send cannot be serialised: a tuple as a key at \['rows'\]\[0\]"),
        ({b"k": {2.5: -(2**63) - 1}}, r"an int of more than 64 bits at \[b'k'\]\[2.5\]"),
        ({"k" * 1_000: {"m" * 1_000: object()}}, r"at \['k{40}'\]\['m{40}'\];"),
        ({frozenset(): 1}, "a value of type frozenset at"),
    ],
)
def test_the_argument_that_cannot_be_sent_is_named(value: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        serial.encode_arguments({"ok": 1, "to": value}, "send")


@pytest.mark.parametrize("levels", [1_000, 1_010, *range(1_015, 1_030), 5_000])
def test_what_is_too_deep_to_be_read_is_refused(levels: int) -> None:
    try:
        sent = serial.encode(deep(levels))
    except TypeError as error:
        assert levels > 1_000 and "nested too deep" in str(error)
    else:
        assert serial.encode(serial.decode(sent, MSGPACK)) == sent


def test_a_position_is_named_where_there_are_no_names() -> None:
    with pytest.raises(TypeError, match=r"argument 1 of send cannot be serialised: a value of type set at \[0\]"):
        serial.encode_arguments([1, [{2}]], "send")
    with pytest.raises(TypeError, match=r"^the payload of send cannot be serialised: a value of type object;"):
        serial.encode(object(), "the payload of send")


@given(st.binary(max_size=200), st.sampled_from([MSGPACK, JSON]))
def test_foreign_bytes_give_a_value_or_a_value_error(data: bytes, encoding: int) -> None:
    try:
        serial.decode(data, encoding)
    except ValueError as error:
        assert "not valid" in str(error)


def test_json_that_is_as_deep_as_the_broker_takes_it_is_read_from_deep_down() -> None:
    text = b"[" * 900 + b"]" * 900

    def read(frames: int) -> Any:
        return read(frames - 1) if frames else serial.decode(text, JSON)

    value, limit = read(300), sys.getrecursionlimit()
    for _ in range(899):
        (value,) = value
    assert value == [] and sys.getrecursionlimit() == limit


@pytest.mark.parametrize("data", [b"\xc1", b"", b"\x93\x01", b"\x81\x90\x01", b"\x91" * 2_000, b"\x01\x02", b"\xa1\xff"])
def test_broken_msgpack_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not valid msgpack"):
        serial.decode(data, MSGPACK)


def test_an_unknown_encoding_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown encoding 9"):
        serial.decode(b"", 9)
