from __future__ import annotations

from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_strategies import messages, messages_of, owned

from taskq.core import messages as m
from taskq.core.session import ROWS_MAX
from taskq.errors import BadRequest, ProtocolError
from taskq.protocol import codec
from taskq.protocol.codec import JOIN_BYTES, PREFIX, decode, encode, join
from taskq.protocol.frames import KIND_OF, KINDS, PREFIX_BYTES, RESENT, VERSION, Unknown

ENQUEUE = KIND_OF[m.Enqueue]
ID = bytes(range(16))


def parts(message: Any, seq: int = 0, flags: int = 0) -> tuple[int, bytes, memoryview]:
    """(kind, head, payload) of the encoded message."""
    data = b"".join(encode(message, seq, flags))
    length, _, _, kind, _, head_bytes = PREFIX.unpack_from(data)
    assert length + 4 == len(data)
    return kind, data[PREFIX_BYTES : PREFIX_BYTES + head_bytes], memoryview(data)[PREFIX_BYTES + head_bytes :]


def refused(kind: int, fields: Any, payload: bytes = b"") -> ProtocolError:
    head = fields if isinstance(fields, bytes) else msgpack.packb(fields)
    with pytest.raises(ProtocolError) as caught:
        decode(kind, head, memoryview(payload))
    return caught.value


def enqueue_fields(**changes: Any) -> list[Any]:
    values = attrs.asdict(m.Enqueue([3], "email", ID, ["send"]), recurse=False) | changes  # type: ignore[list-item]
    return list(values.values())


# ---- there and back


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_was_sent(cls: type) -> None:
    @given(messages_of(cls))
    @settings(max_examples=40, deadline=None)
    def comes_back(message: Any) -> None:
        assert owned(decode(*parts(message))) == message

    comes_back()


def test_the_prefix_holds_length_version_flags_kind_seq_and_head_length() -> None:
    (frame,) = encode(m.Credit(7), seq=0x01020304, flags=RESENT)
    assert frame == bytes.fromhex("0000000e 01 01 0103 01020304 00000002") + b"\x91\x07"
    assert frame[4] == VERSION


def test_payload_buffers_are_handed_on_uncopied() -> None:
    big, view = b"b" * 70_000, memoryview(bytearray(b"v" * 70_000))
    buffers = encode(m.Enqueue([big, view], "q", ID * 2, ["t"]))
    assert buffers[1] is big
    assert buffers[2] is view


def test_decoded_payloads_are_views_of_what_was_received() -> None:
    kind, head, payload = parts(m.Ack([b"one", b"", b"3" * 1_025], ID * 3, bytes(24)))
    message = decode(kind, head, payload)
    assert [bytes(view) for view in message.payloads] == [b"one", b"", b"3" * 1_025]
    assert all(view.obj is payload.obj for view in message.payloads)


def test_payloads_that_are_all_small_are_decoded_as_bytes() -> None:
    given = [b"one", b"", b"3" * 1_024]
    kind, head, payload = parts(m.Ack(given, ID * 3, bytes(24)))
    message = decode(kind, head, payload)
    assert message.payloads == given
    assert {type(part) for part in message.payloads} == {bytes}


def test_missing_trailing_fields_take_the_defaults_of_an_old_peer() -> None:
    head = msgpack.packb([[1], "email", ID, ["send"]])
    assert owned(decode(ENQUEUE, head, memoryview(b"x"))) == m.Enqueue([b"x"], "email", ID, ["send"])


def test_surplus_fields_of_a_newer_peer_are_dropped() -> None:
    assert decode(KIND_OF[m.Credit], msgpack.packb([5, "new", {"x": [1]}]), memoryview(b"")) == m.Credit(5)


def test_an_unknown_kind_is_a_value_that_names_it() -> None:
    unknown = decode(0x7FFF, b"\xc1 not msgpack", memoryview(b"anything"))
    assert unknown == Unknown(0x7FFF)
    assert str(unknown) == "0x7fff"


# ---- what is refused


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("queue", 5, "text"),
        ("queue", b"email", "text"),
        ("ids", "x" * 16, "16 bytes for each id"),
        ("ids", b"x" * 15, "16 bytes for each id"),
        ("task_types", "send", "list of texts"),
        ("task_types", [b"send"], "list of texts"),
        ("task_types", ["send", None], "list of texts"),
        ("encodings", [True], "integers"),
        ("encodings", [1, False], "integers"),
        ("priorities", [-1], "integers"),
        ("priorities", [5, -1], "integers"),
        ("priorities", [1 << 63], "integers"),
        ("priorities", [0, 1 << 63], "integers"),
        ("delays_ms", [1.0], "integers"),
        ("delays_ms", None, "integers"),
        ("delays_ms", {"a": 1}, "integers"),
        ("keys", [5], "texts or nil"),
        ("keys", "key", "texts or nil"),
        ("max_attempts", [[1]], "integers"),
        ("retries", 5, "plain values"),
        ("retries", [{b"key": 1}], "plain values"),
        ("retries", [1 << 63], "plain values"),
        ("payloads", [-3], "sizes"),
        ("payloads", ["3"], "sizes"),
        ("payloads", [4], "add up to 4"),
        ("payloads", [], "add up to 0"),
        ("payloads", [1, 1], "add up to 2"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_expected(field: str, value: Any, expected: str) -> None:
    error = refused(ENQUEUE, enqueue_fields(**{field: value}), b"abc")
    assert error.field == field
    assert error.message.startswith(f"ENQUEUE.{field}: ")
    assert expected in error.message


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (m.Hello(1, "worker"), "client", []),
        (m.Hello(1, "worker"), "client", {"when": msgpack.Timestamp(5)}),
        (m.Hello(1, "worker"), "client", {"deep": [[[[[[[[[1]]]]]]]]]}),
        (m.Hello(1, "worker"), "version", True),
        (m.Hello(1, "worker"), "auth", "text"),
        (m.Heartbeat(), "tokens", b"seven77"),
        (m.Beat(), "lost", b"1"),
        (m.Beat(), "cancelled", b"1"),
        (m.Get(ID), "id", ID + b"x"),
        (m.Get(ID), "id", b""),
        (m.Get(ID), "wait_ms", -1),
        (m.Cancel(ID), "ids", ID[1:]),
        (m.Error("X", "y"), "retryable", 1),
        (m.Credit(1), "allowed", 1.0),
        (m.Inspected([]), "rows", [msgpack.ExtType(3, b"x")]),
    ],
)
def test_wrong_values_of_other_messages_are_refused(message: Any, field: str, value: Any) -> None:
    setattr(message, field, value)
    error = refused(KIND_OF[type(message)], list(attrs.asdict(message, recurse=False).values()))
    assert error.code == "BAD_FRAME"
    assert error.field in (field, "")


def test_a_missing_required_field_is_named() -> None:
    error = refused(ENQUEUE, [[1], "email"], b"x")
    assert error.field == "ids"
    assert "at least 4" in error.message


def test_payload_bytes_behind_a_message_without_payloads_are_refused() -> None:
    assert "carries no payload" in refused(KIND_OF[m.Ok], [], b"x").message


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        b"\x00",
        b"\x80",
        b"\xa5ab",
        b"\x90\x90",
        b"\x91",
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xa2\xff\xfe",
        b"\x91\x81\x01\x02",
        b"\x91\xc7\x05\x01hello",
        b"\x91\xd4\x80x",
        b"\x91" * 2_000 + b"\x90",
        msgpack.packb([[0] * 1_101]),
    ],
    ids=repr,
)
def test_a_head_that_is_no_msgpack_array_within_the_limits_is_refused(head: bytes) -> None:
    assert "msgpack array" in refused(ENQUEUE, head).message


@pytest.mark.parametrize("at", range(len(enqueue_fields())))
def test_a_table_in_a_head_has_no_numbers_for_keys_since_their_hashes_can_be_chosen(at: int) -> None:
    fields = enqueue_fields()
    fields[at] = {number << 32: None for number in range(100)}
    assert "not allowed for map key" in str(refused(ENQUEUE, msgpack.packb(fields)))


def test_a_thousand_tasks_and_ten_thousand_names_are_within_the_limits() -> None:
    tasks = m.Enqueue([b"p"] * 1_000, "q", ID * 1_000, [f"type{n}" for n in range(1_000)], retries=[[1, 2.0, 3]] * 1_000, keys=["ключ" * 20] * 1_000)
    assert owned(decode(*parts(tasks))) == tasks
    names = m.Consume(["q"], [f"type{n}" for n in range(10_000)], 5)
    assert decode(*parts(names)) == names


def test_many_bytes_that_look_like_list_headers_are_only_walked_through() -> None:
    message = m.Deliver([b""] * 1_000, "q", 1, b"\xdc" * 16_000, b"\xdd" * 8_000, ["t"], [1], [1], [0])
    assert owned(decode(*parts(message))) == message


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=200), st.binary(max_size=20))
@settings(max_examples=400, deadline=None)
def test_random_heads_raise_nothing_but_protocol_errors(kind: int, head: bytes, payload: bytes) -> None:
    try:
        decode(kind, head, memoryview(payload))
    except ProtocolError as error:
        assert error.message


@given(messages, st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_byte_in_a_head_gives_a_message_or_a_protocol_error(message: Any, data: st.DataObject) -> None:
    kind, head, payload = parts(message)
    at = data.draw(st.integers(0, len(head) - 1))
    broken = head[:at] + bytes([data.draw(st.integers(0, 255))]) + head[at + 1 :]
    try:
        assert type(decode(kind, broken, payload)) is type(message)
    except ProtocolError as error:
        assert error.message


# ---- sending


@pytest.mark.parametrize("value", [1 << 64, "\ud800", {1, 2}, object()], ids=["too large", "lone surrogate", "set", "object"])
def test_what_msgpack_cannot_say_is_a_bad_request_at_the_sender(value: Any) -> None:
    with pytest.raises(BadRequest, match="CONSUME"):
        encode(m.Consume([value], [], 1))


def test_a_failed_encode_leaves_the_next_one_untouched() -> None:
    with pytest.raises(BadRequest):
        encode(m.Consume(["fine", "\ud800"], [], 1))
    assert encode(m.Credit(7))[0][PREFIX_BYTES:] == b"\x91\x07"


@given(st.lists(st.integers(0, 3 * JOIN_BYTES).map(bytes), max_size=20))
@settings(max_examples=50, deadline=None)
def test_join_keeps_the_bytes_and_leaves_no_small_neighbours(buffers: list[bytes]) -> None:
    joined = join(buffers)
    assert b"".join(joined) == b"".join(buffers)
    assert [buffer for buffer in joined if len(buffer) >= JOIN_BYTES and any(buffer is given for given in buffers)] == [
        buffer for buffer in buffers if len(buffer) >= JOIN_BYTES
    ]


def test_join_passes_large_buffers_on_and_joins_small_ones() -> None:
    large = memoryview(bytes(JOIN_BYTES))
    joined = join([b"a", b"b", large, b"c", b"d"])
    assert joined == [b"ab", large, b"cd"]
    assert joined[1] is large


def test_every_field_of_every_message_has_a_check() -> None:
    for kind, plan in codec.PLANS.items():
        assert len(plan.rules) == len(attrs.fields(KINDS[kind]))


def test_as_many_rows_as_a_session_shows_can_be_read() -> None:
    counts = dict.fromkeys(("pending", "running", "scheduled", "waiting", "retrying", "failed", "workers"), 0)
    rows = [{"queue": f"queue-{number}", **counts} for number in range(ROWS_MAX)]
    kind, head, payload = parts(m.Inspected(rows))
    assert decode(kind, head, payload) == m.Inspected(rows)
