"""THE table of frames: kind ↔ message class.  Append only; a kind is never reused.

0x00xx session · 0x01xx tasks · 0x03xx administration.  The high bit is never set.
"""

from __future__ import annotations

from typing import Any

import attrs

from taskq.core import messages as m

VERSION = 1
PREFIX_BYTES = 16
RESENT = 0x01

KINDS: dict[int, type] = {
    0x0001: m.Hello,
    0x0002: m.Welcome,
    0x0003: m.Resume,
    0x0004: m.Resumed,
    0x0005: m.Heartbeat,
    0x0006: m.Beat,
    0x0007: m.Keepalive,
    0x0008: m.Died,
    0x0009: m.Ok,
    0x000A: m.Error,
    0x000B: m.Goaway,
    0x000C: m.Bye,
    0x000D: m.Challenge,
    0x000E: m.Proof,
    0x0100: m.Enqueue,
    0x0101: m.Enqueued,
    0x0102: m.Consume,
    0x0103: m.Credit,
    0x0104: m.Deliver,
    0x0105: m.Ack,
    0x0106: m.Fail,
    0x0107: m.Release,
    0x0108: m.Reported,
    0x0109: m.Revoke,
    0x010A: m.Cancel,
    0x010B: m.Cancelled,
    0x010C: m.Get,
    0x010D: m.TaskInfo,
    0x010E: m.Declare,
    0x0300: m.Inspect,
    0x0301: m.Inspected,
}
KIND_OF: dict[type, int] = {cls: kind for kind, cls in KINDS.items()}


@attrs.define
class Frame:
    """One frame: its flags, its seq (0: nobody waits for an answer) and its message."""

    flags: int
    seq: int
    message: Any


@attrs.frozen
class Unknown:
    """The message of a frame whose kind is not in the table; the owner answers UNKNOWN_KIND."""

    kind: int = attrs.field(repr="0x{:04x}".format)

    def __str__(self) -> str:
        return f"0x{self.kind:04x}"
