"""What foreign bytes reach, as functions of one input: each raises if a rule is broken, whoever made the input (atheris, a mutator, hypothesis).

    frames     FrameDecoder, cut into chunks: only typed errors; the cuts change nothing; what is decoded is encoded and decoded to the same
    messages   decoded heads, in any order, in a Session over real shards: nothing but ProtocolError, one answer for each request, shards sound
    http       the request parser, the routes and the bodies: nothing but Answers, and each response can be written

`SEEDS` of a target are valid inputs to begin with: the golden frames, the files of corpus/, and sequences made of them.
"""

from __future__ import annotations

import random
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from small_world import Peer, World

from taskq.core import messages as m
from taskq.core.session import Session
from taskq.errors import Answer, ProtocolError, TaskqError
from taskq.gateway.answers import Response, error_response
from taskq.gateway.http1 import PIECE_BYTES, HttpLimits, Interim, Receiver, Request, encode
from taskq.gateway.openapi import document
from taskq.gateway.routes import Gateway
from taskq.protocol import codec
from taskq.protocol.frames import KIND_OF, KINDS, PREFIX_BYTES, Unknown
from taskq.protocol.framing import FrameDecoder

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "protocol" / "golden"
CORPUS = Path(__file__).parent / "corpus"
FRAME_BYTES_MAX = 1 << 20
FRAMES_MAX = 16
AGAIN_MAX = 2
HTTP_LIMITS = HttpLimits(payload_bytes_max=4_096, body_bytes_max=8_192)
WAIT_MS = 70_000


# ---- frames ----------------------------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """The first byte says how the rest is cut."""
    size, stream = 1 + (data[0] if data else 0), data[1:]
    cut, whole = FrameDecoder(FRAME_BYTES_MAX), FrameDecoder(FRAME_BYTES_MAX)
    found = [frame for at in range(0, len(stream), size) for frame in cut.feed(stream[at : at + size])]
    expected = whole.feed(stream)
    told, told_whole = _told(cut.error), _told(whole.error)
    assert told == told_whole and cut.error_seq == whole.error_seq, f"cut into {size}: {told}, in one: {told_whole}"
    if size < len(stream):
        assert [(one.seq, one.flags, _plain(one.message)) for one in found] == [(one.seq, one.flags, _plain(one.message)) for one in expected]
    for frame in expected[:AGAIN_MAX]:
        if type(frame.message) is not Unknown:
            _again(frame.message)


def _told(error: TaskqError | None) -> tuple[str, str] | None:
    return None if error is None else (error.code, error.message)


def _plain(message: Any) -> str:
    """As text, since a float that is no number is not equal to itself."""
    if hasattr(message, "payloads"):
        message = attrs.evolve(message, payloads=[bytes(payload) for payload in message.payloads])
    return repr(message)


def _again(message: Any) -> None:
    decoder = FrameDecoder(2 * FRAME_BYTES_MAX)
    (frame,) = decoder.feed(b"".join(map(bytes, codec.encode(message, 7))))
    assert decoder.error is None and _plain(frame.message) == _plain(message), f"{frame.message} from {message}"


# ---- messages --------------------------------------------------------------------------------------------------------------------------

ROLES = ("", "producer", "worker", "keeper")
KIND_LIST = sorted(KINDS)
HEADER = struct.Struct("<BBBHH")


def messages(data: bytes) -> None:
    """The first byte chooses the role that was greeted, if any; then frames without their prefix: kind, seq, flags, sizes, head, payload."""
    converse(ROLES[data[0] % len(ROLES)] if data else "", _said(data))


def _said(data: bytes) -> Iterator[tuple[int, bool, Any]]:
    at = 1
    for _ in range(FRAMES_MAX):
        if at + HEADER.size > len(data):
            return
        kind, seq, flags, head_bytes, payload_bytes = HEADER.unpack_from(data, at)
        at += HEADER.size
        head, payload = data[at : at + head_bytes], memoryview(data)[at + head_bytes : at + head_bytes + payload_bytes]
        at += head_bytes + payload_bytes
        yield seq, bool(flags & 1), codec.decode(KIND_LIST[kind] if kind < len(KIND_LIST) else 0x7F00, head, payload)


class Talker(Peer):
    """A connection that says anything, and counts the answers."""

    def __init__(self, world: World) -> None:
        self.world, self.name, self.seq = world, "talker", 0
        self.got: Counter[int] = Counter()
        self.session = Session(world.enter(self), world.house)

    def collect(self) -> None:
        session = self.session
        self.world.mail += session.commands
        session.commands = []
        answers, session.answers = session.answers, []
        for seq, message in answers:
            self.got[seq] += 1
            prefix, *payloads = codec.encode(message, seq)
            codec.decode(KIND_OF[type(message)], bytes(prefix[PREFIX_BYTES:]), memoryview(b"".join(payloads)))


def converse(role: str, said: Iterable[tuple[int, bool, Any]]) -> None:
    """One connection to a small broker with tasks in it says all this, (seq, resent, message)."""
    world = World()
    world.enqueue(b"waits", queue="mail", task_type="send_email")
    talker = Talker(world)
    if role:
        talker.session.receive(200, False, m.Hello(1, role, {"name": "fuzz"}), world.now_ms)
    asked: Counter[int] = Counter({200: bool(role)})
    silent: Counter[int] = Counter()
    try:
        for seq, resent, message in said:
            talker.session.receive(seq, resent, message, world.now_ms)
            asked[seq] += 1
            silent[seq] += type(message) is m.Credit
            world.run()
            if talker.session.closing:
                break
    except ProtocolError:
        pass
    world.run()
    if talker.session.requests.open:
        world.tick(WAIT_MS)
    talker.session.lost(world.now_ms)
    for seq, count in asked.items():
        if seq:
            assert count - silent[seq] <= talker.got[seq] <= count, f"seq {seq} was sent {count} times and answered {talker.got[seq]} times"
    world.check()


# ---- http ------------------------------------------------------------------------------------------------------------------------------

_GATEWAY = Gateway(HTTP_LIMITS, lambda: {"ready": True, "reason": ""}, document())
_ERROR = m.Error("OVERLOADED", "later", "", True, 500)


def http(data: bytes) -> None:
    """The first byte says how the rest is cut."""
    size, stream = min(PIECE_BYTES, 1 + 16 * (data[0] if data else 0)), data[1:]
    receiver = Receiver(HTTP_LIMITS)
    for at in range(0, len(stream), size):
        for event in receiver.feed(stream[at : at + size]):
            _served(event)
    receiver.close()


def _served(event: Any) -> None:
    if isinstance(event, Request):
        response = _answered(event)
        assert 200 <= response.status < 600
        encode(response, event, close=not event.keep_alive)
    elif isinstance(event, Answer):
        encode(error_response(event), None, close=True)
    else:
        assert isinstance(event, Interim)


def _answered(request: Request) -> Response:
    try:
        call = _GATEWAY.call(request)
    except Answer as refusal:
        return error_response(refusal)
    return call.respond([_reply(message) for message in call.messages])


def _reply(message: Any) -> Any:
    if type(message) is m.Enqueue:
        return m.Enqueued(message.ids, bytes(len(message.payloads)), bytes([1]) * len(message.payloads), m.FSYNC)
    return m.Inspected([]) if type(message) is m.Inspect else _ERROR


# ---- seeds -----------------------------------------------------------------------------------------------------------------------------


def _golden() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("*.bin")):
        yield path.read_bytes()


def _nested_arrays(kind: int) -> bytes:
    """64 KiB of list headers, each of which promises 65,535 entries: what made other decoders reserve hundreds of MiB."""
    head = b"\xdc\xff\xff" * 21_845
    return codec.PREFIX.pack(PREFIX_BYTES - 4 + len(head), 1, 0, kind, 1, len(head)) + head


def _frame_seeds() -> Iterator[bytes]:
    for frame in _golden():
        yield b"\xff" + frame
        yield b"\x1f" + frame + frame[:9]
    small = [frame for frame in _golden() if len(frame) < 100]
    yield b"\x40" + b"".join(small[:5])
    yield b"\xff" + _nested_arrays(KIND_OF[m.Enqueue])


def _compact(frame: bytes, seq: int) -> bytes:
    _, _, flags, kind, _, head_bytes = codec.PREFIX.unpack_from(frame)
    rest = frame[PREFIX_BYTES:]
    return HEADER.pack(KIND_LIST.index(kind), seq, flags, head_bytes, len(rest) - head_bytes) + rest


def _message_seeds() -> Iterator[bytes]:
    known = [frame for frame in _golden() if codec.PREFIX.unpack_from(frame)[3] in KINDS]
    for role in range(len(ROLES)):
        for frame in known:
            yield bytes([role]) + _compact(frame, 1)
        yield bytes([role]) + b"".join(_compact(frame, 1 + at) for at, frame in enumerate(known))
    task = m.Enqueue([b"x"], "mail", bytes(16), ["send_email"])
    said = [task, m.Consume(["mail"], ["send_email"], 2), m.Credit(5), m.Heartbeat(1, b""), m.Get(bytes(16), 1_000), m.Bye()]
    yield b"\x02" + b"".join(_compact(b"".join(codec.encode(message, 1)), 1 + at) for at, message in enumerate(said))


def _http_seeds() -> Iterator[bytes]:
    for path in sorted((CORPUS / "http").iterdir()):
        data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        yield b"\xff" + data
        yield b"\x01" + data


TARGETS: dict[str, Callable[[bytes], None]] = {"frames": frames, "messages": messages, "http": http}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {"frames": _frame_seeds, "messages": _message_seeds, "http": _http_seeds}
# words that a mutator may put anywhere
WORDS = (
    b"HTTP/1.1\r\n",
    b"Host: localhost\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"\xdc\xff\xff",
    b"\xc1",
    b"\xdf",
    msgpack.packb(1 << 63),
)


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, changed in a few places."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 5)):
        MUTATIONS[rng.randrange(len(MUTATIONS))](rng, data, seeds)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut_out(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randrange(1, 40)]


def _put_in(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice(WORDS)


def _splice(rng: random.Random, data: bytearray, seeds: list[bytes]) -> None:
    other = rng.choice(seeds)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


MUTATIONS = (_flip, _set, _cut_out, _put_in, _splice)
