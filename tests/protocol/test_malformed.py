"""Malformed frames as golden vectors: for each the bytes, and the code with which a broker ends the connection.

`python tests/protocol/test_malformed.py` writes them again; a change of an existing one is a change of the protocol.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest

from taskq.core import messages as m
from taskq.protocol.codec import PREFIX
from taskq.protocol.frames import KIND_OF
from taskq.protocol.framing import FrameDecoder

FILE = Path(__file__).parent / "malformed.json"
SEQ = 7
FRAME_BYTES_MAX = 4 << 20
# what a decoder finds out by itself
DECODERS = ("BAD_FRAME", "FRAME_TOO_LARGE")


def frame(kind: int, head: Any, payload: bytes = b"", *, seq: int = SEQ, **lies: int) -> bytes:
    """`head`: fields, or bytes as they are.  `lies`: another version, length or head_bytes."""
    packed = head if isinstance(head, bytes) else msgpack.packb(head)
    length = lies.get("length", 12 + len(packed) + len(payload))
    return PREFIX.pack(length, lies.get("version", 1), 0, kind, seq, lies.get("head_bytes", len(packed))) + packed + payload


ENQUEUE, GET, HELLO, CANCEL, HEARTBEAT = (KIND_OF[cls] for cls in (m.Enqueue, m.Get, m.Hello, m.Cancel, m.Heartbeat))
ID = bytes(16)
NINE_DEEP: list[Any] = [1, "producer", {"name": [[[[[[[]]]]]]]}]

# name → (bytes, code, seq of the ERROR, whether HELLO was said before)
VECTORS: dict[str, tuple[bytes, str, int, bool]] = {
    "the first frame is no HELLO": (frame(GET, [ID]), "OUT_OF_ORDER", SEQ, False),
    "HELLO of version 2": (frame(HELLO, [2, "producer"]), "VERSION_UNSUPPORTED", SEQ, False),
    "HELLO with an unknown role": (frame(HELLO, [1, "observer"]), "BAD_FRAME", SEQ, False),
    "HELLO without a role": (frame(HELLO, [1]), "BAD_FRAME", SEQ, False),
    "HELLO that is nested nine deep": (frame(HELLO, NINE_DEEP), "BAD_FRAME", SEQ, False),
    "a second HELLO": (frame(HELLO, [1, "producer"]), "OUT_OF_ORDER", SEQ, True),
    "the version byte is 2": (frame(GET, [ID], version=2), "VERSION_UNSUPPORTED", 0, True),
    "an HTTP request": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "VERSION_UNSUPPORTED", 0, False),
    "a frame over the limit": (frame(GET, [ID], length=FRAME_BYTES_MAX), "FRAME_TOO_LARGE", SEQ, True),
    "a length under 12": (frame(GET, [ID], length=11), "BAD_FRAME", SEQ, True),
    "the head is longer than the frame": (frame(GET, [ID], head_bytes=1_000), "BAD_FRAME", SEQ, True),
    "the head is empty": (frame(GET, b""), "BAD_FRAME", SEQ, True),
    "the head is no msgpack": (frame(GET, b"\xc1"), "BAD_FRAME", SEQ, True),
    "the head is cut off": (frame(GET, b"\x91\xc4\x10\x00"), "BAD_FRAME", SEQ, True),
    "something stands behind the head's array": (frame(GET, msgpack.packb([ID]) + b"\x00"), "BAD_FRAME", SEQ, True),
    "the head is a map": (frame(GET, {"id": ID}), "BAD_FRAME", SEQ, True),
    "a field without a default is missing": (frame(GET, []), "BAD_FRAME", SEQ, True),
    "text where bin is wanted": (frame(GET, ["0" * 16]), "BAD_FRAME", SEQ, True),
    "a float where an int is wanted": (frame(GET, [ID, 1_000.0]), "BAD_FRAME", SEQ, True),
    "a bool where an int is wanted": (frame(GET, [ID, True]), "BAD_FRAME", SEQ, True),
    "a negative int": (frame(GET, [ID, -1]), "BAD_FRAME", SEQ, True),
    "an int of 2^63": (frame(GET, [ID, 1 << 63]), "BAD_FRAME", SEQ, True),
    "an id of 15 bytes": (frame(GET, [bytes(15)]), "BAD_FRAME", SEQ, True),
    "a block that is no multiple of its members": (frame(CANCEL, [bytes(17)]), "BAD_FRAME", SEQ, True),
    "an extension type": (frame(GET, msgpack.packb([msgpack.ExtType(5, ID)])), "BAD_FRAME", SEQ, True),
    "a timestamp": (frame(HEARTBEAT, msgpack.packb([msgpack.Timestamp(1_700_000_000)])), "BAD_FRAME", SEQ, True),
    "sizes that do not add up to the payload": (frame(ENQUEUE, [[3], "q", ID, ["t"]], b"ab"), "BAD_FRAME", SEQ, True),
    "a payload behind a frame that has none": (frame(GET, [ID], b"x"), "BAD_FRAME", SEQ, True),
    "text that is no UTF-8": (frame(ENQUEUE, b"\x94\x91\x00\xa1\xff\xc4\x10" + ID + b"\x91\xa1t"), "BAD_FRAME", SEQ, True),
    "a list of 1,101 entries": (frame(ENQUEUE, [[0] * 1_101, "q", ID * 1_101, ["t"]]), "BAD_FRAME", SEQ, True),
    "a list with an entry of another type": (frame(ENQUEUE, [[0], "q", ID, ["t"], ["json"]]), "BAD_FRAME", SEQ, True),
    "a request with seq 0": (frame(ENQUEUE, [[0], "q", ID, ["t"]], seq=0), "OUT_OF_ORDER", 0, True),
}


def rows() -> list[dict[str, Any]]:
    return [{"name": name, "after_hello": after, "bytes": data.hex(), "code": code, "seq": seq} for name, (data, code, seq, after) in VECTORS.items()]


def test_the_file_has_these_vectors() -> None:
    assert json.loads(FILE.read_text(encoding="utf-8")) == rows()


@pytest.mark.parametrize("name", [name for name, (_, code, _, _) in VECTORS.items() if code in DECODERS and name != "HELLO with an unknown role"])
def test_a_decoder_refuses_what_no_session_has_to_see(name: str) -> None:
    data, code, seq, _ = VECTORS[name]
    for size in (len(data), 1):
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        frames = [found for at in range(0, len(data), size) for found in decoder.feed(data[at : at + size])]
        assert not frames and decoder.error is not None and (decoder.error.code, decoder.error_seq) == (code, seq)


def test_eight_levels_are_taken() -> None:
    eight: list[Any] = [1, "producer", {"name": NINE_DEEP[2]["name"][0]}]
    (taken,) = FrameDecoder(FRAME_BYTES_MAX).feed(frame(HELLO, eight))
    assert taken.message.client == eight[2]


@pytest.mark.parametrize("kind", [list, dict])
def test_a_field_that_nobody_knows_may_be_nested_as_deep_as_one_that_is_known(kind: type) -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value] if kind is list else {"a": value}
        return value

    known = m.Get(ID)
    names = [field.name for field in attrs.fields(m.Get)]
    for levels, is_taken in ((7, True), (8, False), (200, False)):
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        frames = decoder.feed(frame(GET, [*(getattr(known, name) for name in names), nested(levels)]))
        assert [found.message for found in frames] == ([known] if is_taken else [])
        assert is_taken or (decoder.error is not None and (decoder.error.code, decoder.error_seq) == ("BAD_FRAME", SEQ))


if __name__ == "__main__":
    FILE.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in rows()) + "\n]\n", encoding="utf-8")
