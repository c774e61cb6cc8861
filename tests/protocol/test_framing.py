from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_strategies import messages, owned

from taskq.core import messages as m
from taskq.protocol.codec import PREFIX, encode
from taskq.protocol.frames import KIND_OF, PREFIX_BYTES, RESENT, Frame, Unknown
from taskq.protocol.framing import LARGE_PART, FrameDecoder

MAX = 4 << 20
ID = bytes(range(16))


def frame(message: Any, seq: int = 1, flags: int = 0) -> bytes:
    return b"".join(encode(message, seq, flags))


def raw(head: bytes, kind: int = KIND_OF[m.Enqueue], *, version: int = 1, flags: int = 0, seq: int = 9, payload: bytes = b"") -> bytes:
    return PREFIX.pack(12 + len(head) + len(payload), version, flags, kind, seq, len(head)) + head + payload


def fed(decoder: FrameDecoder, chunks: Iterable[bytes]) -> list[Frame]:
    return [Frame(got.flags, got.seq, owned(got.message)) for chunk in chunks for got in decoder.feed(chunk)]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def in_two(data: bytes) -> Iterator[bytes]:
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]


CUTS = pytest.mark.parametrize("cut", [whole, byte_by_byte, in_two])

GOOD: dict[str, list[tuple[Any, int, int]]] = {
    "an empty head": [(m.Ok(), 1, 0)],
    "a flag": [(m.Ok(), 2, RESENT)],
    "the largest seq": [(m.Credit(1 << 40), 0xFFFF_FFFF, 0)],
    "payloads": [(m.Enqueue([b"one", b"", b"three"], "q", ID * 3, ["t"]), 3, 0)],
    "several frames": [(m.Heartbeat(5, bytes(16)), 1, 0), (m.Ack([b"r" * 300], ID, bytes(8)), 2, RESENT), (m.Ok(), 3, 0), (m.Ok(), 4, 0)],
    "a payload larger than a piece": [(m.Ok(), 1, 0), (m.Ack([b"r" * 9_000, b"s"], ID * 2, bytes(16)), 2, 0), (m.Ok(), 3, 0)],
}


@CUTS
@pytest.mark.parametrize("tail", [False, True], ids=["alone", "with a tail"])
@pytest.mark.parametrize("case", GOOD, ids=str)
def test_frames_come_out_however_the_stream_is_cut(cut: Any, tail: bool, case: str) -> None:
    sent = GOOD[case]
    data = b"".join(frame(*one) for one in sent)
    rest = frame(m.Ack([b"later" * 3], ID, bytes(8)), 77)
    decoder = FrameDecoder(MAX)
    got = fed(decoder, cut(data + rest[:-1] if tail else data))
    assert [(one.message, one.seq, one.flags) for one in got] == sent
    assert decoder.error is None
    assert decoder.buffered_bytes == (len(rest) - 1 if tail else 0)
    if tail:
        assert [one.seq for one in decoder.feed(rest[-1:])] == [77]
        assert decoder.buffered_bytes == 0


# what is wrong → (bytes, code, seq of the error)
BAD: dict[str, tuple[bytes, str, int]] = {
    "version": (raw(b"\x90", version=2), "VERSION_UNSUPPORTED", 0),
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "VERSION_UNSUPPORTED", 0),
    "too large": (PREFIX.pack(MAX - 3, 1, 0, 0x100, 9, 1), "FRAME_TOO_LARGE", 9),
    "far too large": (PREFIX.pack(0xFFFF_FFFF, 1, 0, 0x100, 9, 1), "FRAME_TOO_LARGE", 9),
    "length below the prefix": (PREFIX.pack(11, 1, 0, 0x100, 9, 0), "BAD_FRAME", 9),
    "length zero": (PREFIX.pack(0, 1, 0, 0x100, 9, 0), "BAD_FRAME", 9),
    "head longer than the frame": (PREFIX.pack(12, 1, 0, 0x100, 9, 1), "BAD_FRAME", 9),
    "head length near 2^32": (PREFIX.pack(20, 1, 0, 0x100, 9, 0xFFFF_FFFF) + bytes(8), "BAD_FRAME", 9),
    "no head": (raw(b""), "BAD_FRAME", 9),
    "head is no array": (raw(b"\x80"), "BAD_FRAME", 9),
    "head is cut off": (raw(b"\x9b\x91"), "BAD_FRAME", 9),
    "sizes and payload differ": (raw(b"\x94\x91\x05\xa1q\xc4\x10" + ID + b"\x91\xa1t", payload=b"1234"), "BAD_FRAME", 9),
    "payload that does not belong": (raw(b"\x90", KIND_OF[m.Ok], payload=b"x"), "BAD_FRAME", 9),
}


@CUTS
@pytest.mark.parametrize("tail", [b"", frame(m.Ok(), 5)], ids=["alone", "with a tail"])
@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_malformed_frame_ends_the_stream_after_the_frames_before_it(cut: Any, tail: bytes, case: str) -> None:
    data, code, seq = BAD[case]
    decoder = FrameDecoder(MAX)
    got = fed(decoder, cut(frame(m.Ok(), 3) + frame(m.Ok(), 4) + data + tail))
    assert [one.seq for one in got] == [3, 4]
    assert decoder.error is not None
    assert (decoder.error.code, decoder.error_seq) == (code, seq)
    assert decoder.feed(frame(m.Ok())) == []
    assert decoder.buffered_bytes == 0


@CUTS
def test_an_unknown_kind_is_handed_on_and_the_stream_goes_on(cut: Any) -> None:
    decoder = FrameDecoder(MAX)
    got = fed(decoder, cut(raw(b"\xc1rubbish", 0x0666, payload=b"more") + frame(m.Ok(), 10)))
    assert [(one.message, one.seq) for one in got] == [(Unknown(0x0666), 9), (m.Ok(), 10)]
    assert decoder.error is None


def test_unknown_flags_are_ignored() -> None:
    (got,) = FrameDecoder(MAX).feed(raw(b"\x90", KIND_OF[m.Ok], flags=0xFF))
    assert got.flags == RESENT


def test_the_limit_may_be_raised_between_two_reads() -> None:
    decoder = FrameDecoder(8_192)
    big = frame(m.Ack([bytes(10_000)], ID, bytes(8)))
    assert len(decoder.feed(frame(m.Hello(1, "producer")))) == 1
    decoder.frame_bytes_max = MAX
    assert len(decoder.feed(big)) == 1
    decoder.frame_bytes_max = 8_192
    assert decoder.feed(big[:PREFIX_BYTES]) == []
    assert decoder.error is not None and decoder.error.code == "FRAME_TOO_LARGE"


def test_a_frame_of_exactly_the_limit_passes() -> None:
    data = frame(m.Ack([bytes(1_000)], ID, bytes(8)))
    assert len(FrameDecoder(len(data)).feed(data)) == 1
    decoder = FrameDecoder(len(data) - 1)
    assert decoder.feed(data) == []
    assert decoder.error is not None


@given(st.lists(messages, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_any_cut_of_any_stream_gives_the_same_frames(sent: list[Any], data: st.DataObject) -> None:
    stream = b"".join(frame(message, seq) for seq, message in enumerate(sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = FrameDecoder(MAX)
    got = fed(decoder, (stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
    assert decoder.error is None
    assert [(one.seq, one.message) for one in got] == list(enumerate(sent))


@given(st.lists(st.binary(max_size=60), max_size=8))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_raise(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(MAX)
    for chunk in chunks:
        decoder.feed(chunk)


@given(st.integers(0, 0xFFFF), st.integers(0, 40), st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_right_prefix_with_random_bytes_never_raises(kind: int, head_bytes: int, rest: bytes) -> None:
    decoder = FrameDecoder(MAX)
    frames = decoder.feed(PREFIX.pack(12 + len(rest), 1, 0, kind, 1, head_bytes) + rest)
    assert len(frames) == (decoder.error is None)


# ---- memory and copies


def test_payloads_share_the_memory_of_the_chunk() -> None:
    chunk = frame(m.Ok()) + frame(m.Enqueue([b"a" * 100, b"b" * 70_000], "q", ID * 2, ["t"]), 2)
    got = FrameDecoder(MAX).feed(chunk)[1].message
    assert all(view.obj is chunk for view in got.payloads)


def test_payloads_of_a_frame_across_chunks_share_one_joined_buffer_and_later_frames_the_chunk() -> None:
    big, small = frame(m.Ack([b"a" * 50_000, b"b" * 50_000], ID * 2, bytes(16))), frame(m.Ack([b"c" * 5_000], ID, bytes(8)))
    decoder = FrameDecoder(MAX)
    assert decoder.feed(big[:60_000]) == []
    chunk = big[60_000:] + small
    first, second = (got.message for got in decoder.feed(chunk))
    assert first.payloads[0].obj is first.payloads[1].obj
    assert first.payloads[0].readonly
    assert second.payloads[0].obj is chunk


def peak_bytes(feed: Any) -> int:
    tracemalloc.start()
    feed()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_large_frame_in_one_chunk_costs_no_copy() -> None:
    chunk = frame(m.Ack([bytes(1 << 20)] * 3, ID * 3, bytes(24)))
    assert peak_bytes(lambda: FrameDecoder(MAX).feed(chunk)) < 16_384


def test_a_large_frame_across_chunks_is_joined_once() -> None:
    data = frame(m.Ack([bytes(1 << 20)] * 3, ID * 3, bytes(24)))
    chunks = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: [decoder.feed(chunk) for chunk in chunks]) < len(data) + 65_536


def received(decoder: FrameDecoder, stream: bytes, sizes: Iterable[int]) -> list[Any]:
    """As a connection receives: into the room of a large frame while there is one, else in chunks; each time so many bytes at most."""
    got: list[Any] = []
    at = 0
    for size in sizes:
        room = decoder.room
        if room is None:
            chunk = stream[at : at + size]
            got += decoder.feed(chunk)
            at += len(chunk)
        else:
            size = min(size, len(room), len(stream) - at)
            room[:size] = stream[at : at + size]
            decoder.fill(size)
            got += decoder.take(1)
            at += size
    return got


@pytest.mark.parametrize("size", [1_000, 60_000, 262_144, 1 << 22])
def test_the_rest_of_a_large_frame_is_received_into_its_own_buffer(size: int) -> None:
    small, large = m.Ack([b"s" * 300], ID, bytes(8)), m.Ack([b"a" * (1 << 20), b"b" * 400_000], ID * 2, bytes(16))
    stream = b"".join(frame(message, seq) for seq, message in enumerate([small, large, small, large, small]))
    got = received(decoder := FrameDecoder(MAX), stream, [size] * (len(stream) // 1_000 + 9))
    assert decoder.error is None
    assert [one.message for one in got] == [small, large, small, large, small]
    assert all(view.readonly for one in got for view in one.message.payloads if isinstance(view, memoryview))
    assert decoder.room is None
    assert not decoder.buffered_bytes


def test_a_large_frame_has_no_buffer_before_a_part_of_it_is_there() -> None:
    data = frame(m.Ack([bytes(1 << 20)], ID, bytes(8)))
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: [decoder.feed(data[:4_096]), decoder.feed(data[4_096:8_192])]) < 32_768
    assert decoder.room is None
    decoder.feed(data[8_192 : len(data) // LARGE_PART + 1])
    assert decoder.room is not None
    assert len(decoder.room) == len(data) - len(data) // LARGE_PART - 1 == len(data) - decoder.buffered_bytes


def test_a_malformed_large_frame_is_told_when_its_last_byte_was_received() -> None:
    data = bytearray(frame(m.Ack([bytes(1 << 20)], ID, bytes(8)), 7))
    data[16:20] = b"\xc1" * 4
    decoder = FrameDecoder(MAX)
    assert received(decoder, bytes(data), [262_144] * 9) == []
    assert decoder.error is not None
    assert decoder.error_seq == 7
    assert decoder.room is None


def test_a_frame_byte_by_byte_costs_little_more_than_its_size() -> None:
    data = frame(m.Ack([bytes(200_000)], ID, bytes(8)))
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: sum(len(decoder.feed(data[at : at + 1])) for at in range(len(data)))) < 4 * len(data)


def test_a_promised_length_allocates_nothing() -> None:
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: decoder.feed(PREFIX.pack(MAX - 4, 1, 0, 0x100, 9, MAX - 16))) < 4_096
    assert decoder.error is None


ARRAY16, MAP16 = b"\xdc", b"\xde"


def array16(count: int) -> bytes:
    return ARRAY16 + count.to_bytes(2, "big")


BOMBS: dict[str, bytes] = {
    "nested array16": array16(1_000) * 21_845,
    "nested array16 of the largest length": array16(0xFFFF) * 21_845,
    "nested array32": b"\xdd\x00\x00\x03\xe8" * 13_107,
    "nested array32 of the largest length": b"\xdd\xff\xff\xff\xff" * 13_107,
    "nested array32 padded": (b"\xdd\x00\x00\x03\xe8" * 1_000).ljust(65_536, b"\x90"),
    "few nested arrays, just under the first limit": array16(1_000) * 200 + b"\x90" * 1_000,
    "a small head of nested arrays": array16(790) * 266,
    "nested fixarrays": b"\x9f" * 65_536,
    "nested map16": (MAP16 + b"\x03\xe8") * 21_845,
    "empty lists": array16(65) + (array16(1_000) + b"\x90" * 1_000) * 65,
    "empty maps": array16(65) + (array16(1_000) + b"\x80" * 1_000) * 65,
    "empty lists in the largest head that is not walked through": array16(28) + (array16(1_000) + b"\x80" * 1_000) * 28,
    "short chains of lists": array16(1_000) + (b"\x91" * 30 + b"\x90") * 900,
}


@pytest.mark.parametrize("kind", [0x0001, 0x0100, 0x0102], ids=hex)
@pytest.mark.parametrize("case", BOMBS, ids=str)
def test_a_msgpack_bomb_costs_less_than_two_mib(case: str, kind: int) -> None:
    data = raw(BOMBS[case], kind)
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: decoder.feed(data)) < 2 << 20


@pytest.mark.parametrize("case", [case for case in BOMBS if case.startswith("nested")])
def test_the_longer_lists_of_an_inspected_allow_no_nested_bomb(case: str) -> None:
    data = raw(BOMBS[case], KIND_OF[m.Inspected])
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: decoder.feed(data)) < 2 << 20


def test_four_mib_of_empty_lists_are_refused_before_they_are_made() -> None:
    data = raw(array16(1_000) + (array16(1_000) + b"\x90" * 1_000) * 1_000 + bytes(1 << 20))
    decoder = FrameDecoder(MAX)
    assert peak_bytes(lambda: decoder.feed(data)) < 3 << 20
    assert decoder.error is not None and decoder.error.code == "BAD_FRAME"


@pytest.mark.parametrize("cut", [whole, in_two])
def test_a_decoder_that_met_a_malformed_frame_is_freed_with_its_connection_and_not_by_a_collection_long_after(cut: Any) -> None:
    """An error keeps the frames that raised it, and they keep what was received."""
    decoder = FrameDecoder(MAX)
    fed(decoder, cut(raw(b"\xc1" * 100)))
    assert decoder.error is not None
    left = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert left() is None
    finally:
        gc.enable()


STRANGERS = {
    b"HTTP/1.1 400 Bad Request\r\n": "speaks HTTP",
    b"GET / HTTP/1.1\r\n": "an HTTP request",
    b"POST /enqueue HTTP/1.1\r\n": "an HTTP request",
    b"PRI * HTTP/2.0\r\n": "an HTTP request",
    b"\x15\x03\x01\x00\x02\x02\x46": "tls://",
    b"\x16\x03\x01\x02\x00\x01\x00": "without TLS",
    b"SSH-2.0-OpenSSH": "version 50 of the protocol",
}


@pytest.mark.parametrize(("said", "words"), STRANGERS.items(), ids=list(STRANGERS.values()))
@pytest.mark.parametrize("step", [1, 3, 64])
def test_who_speaks_another_protocol_is_told_which(said: bytes, words: str, step: int) -> None:
    decoder = FrameDecoder(1 << 20)
    for at in range(0, len(said), step):
        assert decoder.feed(said[at : at + step]) == []
    assert decoder.error is not None and words in str(decoder.error)
