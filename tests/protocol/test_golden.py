"""The golden vectors: one frame of each kind, as bytes and as a description that any language can read.

`python tests/protocol/test_golden.py` writes them again; a change of an existing file is a change of the protocol.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from taskq.core import messages as m
from taskq.protocol.codec import encode
from taskq.protocol.frames import KIND_OF, KINDS, RESENT, VERSION
from taskq.protocol.framing import FrameDecoder

FOLDER = Path(__file__).parent / "golden"
SESSION = bytes(range(0x10, 0x20))
SECRET = bytes(range(0x40, 0x60))
# UUIDv8 of queue "email", partition 0: slot 0xc49
IDS = bytes.fromhex("018bcfe568008c498000000000000001018bcfe568018c49bfffffffffffffff")
TOKENS = bytes.fromhex("00000100000000010000010000000002")
NOW_MS = 1_700_000_000_000

# (message, seq, flags)
VECTORS: list[tuple[Any, int, int]] = [
    (m.Hello(1, "worker", {"name": "w1", "host": "h", "pid": 4242, "version": "1.0", "sdk": "python"}, b""), 1, 0),
    (m.Welcome(SESSION, SECRET, NOW_MS, 3, 5_000, 15_000, {"frame_bytes_max": 4 << 20, "payload_bytes_max": 1 << 20}, {}), 1, 0),
    (m.Resume(SESSION, SECRET, 7, TOKENS), 2, 0),
    (m.Resumed(bytes([m.KEPT, m.LOST])), 2, 0),
    (m.Heartbeat(7, TOKENS, 57), 3, 0),
    (m.Beat(TOKENS[:8], TOKENS[8:], 7), 3, 0),
    (m.Keepalive(SESSION, SECRET, 7), 2, 0),
    (m.Died(SESSION, SECRET, "SIGKILL"), 3, 0),
    (m.Ok(), 3, 0),
    (m.Error("OVERLOADED", "The broker is behind", "", True, 250), 9, 0),
    (m.Goaway("the broker is stopping", 1_000), 0, 0),
    (m.Bye(), 12, 0),
    (m.Challenge(b"r=AAECAwQFBgcICQoLDA0ODxARZGVmZ2hpamtsbW5vcHFyc3R1,s=AAECAwQFBgcICQoLDA0ODw==,i=1"), 1, 0),
    (m.Proof(b"c=biws,r=AAECAwQFBgcICQoLDA0ODxARZGVmZ2hpamtsbW5vcHFyc3R1,p=DxYONmi/kaDBfyrvdra0GLxkDM5K5/W5xOa48HK/To0="), 2, 0),
    (
        m.Enqueue(
            [b"\x81\xa2to\xa3a@b", b"{}"],
            "email",
            IDS,
            ["send_email"],
            [m.MSGPACK, m.JSON],
            [0, 9],
            [0],
            [None, "ключ-1"],
            [5],
            [30_000],
            [[1_000, 2.0, 60_000]],
        ),
        4,
        RESENT,
    ),
    (
        m.Enqueued(IDS, bytes([m.CREATED, m.REFUSED]), bytes([2, 0]), m.FSYNC, [[1, "BAD_REQUEST", "delays_ms: must be 0 to 366 days", "delays_ms"]]),
        4,
        0,
    ),
    (m.Consume(["email", "default"], ["send_email"], 50, [0, 1]), 2, 0),
    (m.Credit(150), 0, 0),
    (
        m.Deliver(
            [b"\x81\xa2to\xa3a@b", b"{}"], "email", 6, IDS, TOKENS, ["send_email"], [m.MSGPACK, m.JSON], [1, 2], [30_000], [5], [[1_000, 2.0, 60_000]]
        ),
        0,
        0,
    ),
    (m.Ack([b"\xa2ok", b""], IDS, TOKENS, [m.MSGPACK, m.BYTES]), 5, 0),
    (m.Fail(IDS, TOKENS, [m.RETRY_AFTER, m.DISCARD], [2_500, 0], ["OSError", "ValueError"], ["no route to host", "bad address"]), 6, 0),
    (m.Release(IDS, TOKENS, [0, 60_000]), 7, 0),
    (m.Reported(bytes([m.REPORT_OK, m.REPORT_LEASE_LOST])), 7, 0),
    (m.Revoke(TOKENS[:8]), 0, 0),
    (m.Cancel(IDS), 8, 0),
    (m.Cancelled(bytes([m.CANCEL_DONE, m.CANCEL_NOT_FOUND])), 8, 0),
    (m.Get(IDS[:16], 30_000), 10, 0),
    (m.TaskInfo([b"{}", b"\xa2ok"], {"id": IDS[:16].hex(), "task_type": "send_email", "state": "completed", "key": None, "attempts": []}), 10, 0),
    (m.Declare(["send_email", "report"], ["email"], [5, 0], [10], [30_000, 0], [None, [1_000, 2.0, 60_000]]), 2, 0),
    (m.Inspect("queues"), 11, 0),
    (m.Inspected([{"queue": "email", "pending": 3}]), 11, 0),
]
NAMES = [type(message).__name__.lower() for message, _, _ in VECTORS]
by_vector = pytest.mark.parametrize(("message", "seq", "flags"), VECTORS, ids=NAMES)


def readable(value: Any) -> Any:
    """JSON that says bytes as {"hex": …}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, list):
        return [readable(entry) for entry in value]
    if isinstance(value, dict):
        return {key: readable(entry) for key, entry in value.items()}
    return value


def description(message: Any, seq: int, flags: int) -> dict[str, Any]:
    fields = {field.name: readable(getattr(message, field.name)) for field in attrs.fields(type(message))}
    name = type(message).__name__
    return {"message": name, "kind": f"0x{KIND_OF[type(message)]:04x}", "version": VERSION, "flags": flags, "seq": seq, "fields": fields}


def paths(message: Any) -> tuple[Path, Path]:
    stem = f"{KIND_OF[type(message)]:04x}_{type(message).__name__.lower()}"
    return FOLDER / f"{stem}.bin", FOLDER / f"{stem}.json"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for message, seq, flags in VECTORS:
        frame, text = paths(message)
        frame.write_bytes(b"".join(encode(message, seq, flags)))
        text.write_text(json.dumps(description(message, seq, flags), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@by_vector
def test_encode_gives_exactly_the_golden_bytes(message: Any, seq: int, flags: int) -> None:
    assert b"".join(encode(message, seq, flags)) == paths(message)[0].read_bytes()


@by_vector
def test_the_golden_bytes_give_back_the_message(message: Any, seq: int, flags: int) -> None:
    decoder = FrameDecoder(4 << 20)
    (frame,) = decoder.feed(paths(message)[0].read_bytes())
    assert (frame.message, frame.seq, frame.flags) == (message, seq, flags)


@by_vector
def test_the_description_says_what_the_bytes_hold(message: Any, seq: int, flags: int) -> None:
    assert json.loads(paths(message)[1].read_text(encoding="utf-8")) == description(message, seq, flags)


def test_every_frame_kind_has_a_golden_vector_and_there_are_no_others() -> None:
    assert [type(message) for message, _, _ in VECTORS] == list(KINDS.values())
    assert {path.name for path in FOLDER.iterdir()} == {path.name for message, _, _ in VECTORS for path in paths(message)}


if __name__ == "__main__":
    write()
