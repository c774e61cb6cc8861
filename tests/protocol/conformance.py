"""The dialogues of docs/protocol.md and its malformed frames, tried on a broker: `python tests/protocol/conformance.py localhost:7000 [--verbose]`.

For the author of a client in another language: each dialogue is one function, `--verbose` shows every frame of it, and what is said here is what
your client has to say.  It needs sockets and msgpack alone.  Its tasks go to queues with names of their own and are final when it ends.  Exit code 0:
the broker does all that is written; 1: it does not, and the first line says what.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

PREFIX = struct.Struct(">IBBHII")  # length, version, flags, kind, seq, head length
KINDS = {
    0x1: "HELLO",
    0x2: "WELCOME",
    0x3: "RESUME",
    0x4: "RESUMED",
    0x5: "HEARTBEAT",
    0x6: "BEAT",
    0x7: "KEEPALIVE",
    0x8: "DIED",
    0x9: "OK",
    0xA: "ERROR",
    0xB: "GOAWAY",
    0xC: "BYE",
    0xD: "CHALLENGE",
    0xE: "PROOF",
    0x100: "ENQUEUE",
    0x101: "ENQUEUED",
    0x102: "CONSUME",
    0x103: "CREDIT",
    0x104: "DELIVER",
    0x105: "ACK",
    0x106: "FAIL",
    0x107: "RELEASE",
    0x108: "REPORTED",
    0x109: "REVOKE",
    0x10A: "CANCEL",
    0x10B: "CANCELLED",
    0x10C: "GET",
    0x10D: "TASKINFO",
    0x10E: "DECLARE",
    0x300: "INSPECT",
    0x301: "INSPECTED",
}
NUMBERS = {name: kind for kind, name in KINDS.items()}
RESENT = 1
NIL = bytes(16)
WAIT_S = 20.0
HELD, LOST = 0, 1
RETRY, DISCARD = 0, 1
CREATED, EXISTS, REFUSED = 0, 1, 2
MALFORMED = Path(__file__).parent / "malformed.json"


# peer, where it goes, kind, seq, fields
Note = Callable[[str, str, str, int, list[Any]], None]


class Wrong(AssertionError):
    """The broker does something else than is written."""


def expect(what: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise Wrong(f"{what}: {got!r}, not {wanted!r}")


class Peer:
    """One connection of a client.  `note` is told of each of its frames: the name of the peer, where it goes, kind, seq, fields."""

    def __init__(self, address: str, role: str, name: str, note: Note) -> None:
        host, _, port = address.rpartition(":")
        self.name, self.note = name, note
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT_S)
        self.stream = self.socket.makefile("rb")
        self.pushed: list[tuple[str, list[Any], bytes]] = []
        self.seq = 0
        if role:
            (self.session, self.secret, self.now_ms, _, self.heartbeat_ms, self.lease_ms, self.limits, *_), _ = self.ask(
                "HELLO", [1, role, {"name": "conformance", "sdk": "conformance"}]
            )

    def say(self, kind: str, fields: list[Any], payload: bytes = b"", *, seq: int = 0, flags: int = 0) -> None:
        self.socket.sendall(self.frame(kind, fields, payload, seq=seq, flags=flags))

    def frame(self, kind: str, fields: list[Any], payload: bytes = b"", *, seq: int = 0, flags: int = 0) -> bytes:
        head = msgpack.packb(fields)
        self.note(self.name, "→", kind, seq, fields)
        return PREFIX.pack(12 + len(head) + len(payload), 1, flags, NUMBERS[kind], seq, len(head)) + head + payload

    def together(self, *requests: tuple[str, list[Any]], behind: bytes = b"") -> list[int]:
        """Send these requests and what stands behind them in one write; their seqs."""
        seqs = [self.seq + number for number in range(1, len(requests) + 1)]
        self.seq += len(requests)
        self.socket.sendall(b"".join(self.frame(*request, seq=seq) for request, seq in zip(requests, seqs, strict=True)) + behind)
        return seqs

    def receive(self) -> tuple[str, int, list[Any], bytes]:
        prefix = self.stream.read(16)
        if len(prefix) < 16:
            raise EOFError
        length, _, _, kind, seq, head_bytes = PREFIX.unpack(prefix)
        head, payload = msgpack.unpackb(self.stream.read(head_bytes)), self.stream.read(length - 12 - head_bytes)
        self.note(self.name, "←", KINDS[kind], seq, head)
        return KINDS[kind], seq, head, payload

    def request(self, kind: str, fields: list[Any], payload: bytes = b"", *, flags: int = 0) -> int:
        """Send it; its seq.  The answer may come whenever it does."""
        self.seq += 1
        self.say(kind, fields, payload, seq=self.seq, flags=flags)
        return self.seq

    def answer(self, seq: int) -> tuple[list[Any], bytes]:
        """The answer with this seq; what is pushed meanwhile is kept."""
        while True:
            kind, got, head, payload = self.receive()
            if got == seq:
                if kind == "ERROR":
                    raise Refused(*head[:2])
                return head, payload
            if got:
                raise Wrong(f"an answer with seq {got}, which nobody waits for")
            self.pushed.append((kind, head, payload))

    def ask(self, kind: str, fields: list[Any], payload: bytes = b"", *, flags: int = 0) -> tuple[list[Any], bytes]:
        return self.answer(self.request(kind, fields, payload, flags=flags))

    def push(self, wanted: str) -> tuple[list[Any], bytes]:
        """The next pushed frame of this kind."""
        while True:
            for at, (kind, head, payload) in enumerate(self.pushed):
                if kind == wanted:
                    del self.pushed[at]
                    return head, payload
            kind, seq, head, payload = self.receive()
            if seq:
                raise Wrong(f"an answer with seq {seq}, which nobody waits for")
            self.pushed.append((kind, head, payload))

    def end(self) -> str:
        """What is pushed before the broker closes: the code of the last ERROR, "" if there is none."""
        code = ""
        try:
            while True:
                kind, seq, head, _ = self.receive()
                code = head[0] if kind == "ERROR" else code
                if seq and kind != "ERROR":
                    raise Wrong(f"an answer with seq {seq}, which nobody waits for")
        except (EOFError, ConnectionError):
            return code

    def cut(self) -> None:
        """The connection ends without a word."""
        self.stream.close()
        self.socket.close()

    def bye(self) -> None:
        self.ask("BYE", [])
        self.cut()


class Refused(Exception):
    """The broker has answered with ERROR: code, message."""


def refusal(ask: Callable[[], Any]) -> str:
    """The code with which this request is refused, "" if it is not."""
    try:
        ask()
    except Refused as refused:
        return str(refused.args[0])
    return ""


class World:
    """A broker at an address, and names that nobody else uses.  `said`: all frames of a dialogue, as (peer, where it goes, kind, seq)."""

    def __init__(self, address: str, *, verbose: bool = False) -> None:
        self.address, self.verbose = address, verbose
        self.queue = f"conformance-{secrets.token_hex(6)}"
        self.peers: list[Peer] = []
        self.said: list[tuple[str, str, str, int]] = []

    def connect(self, role: str) -> Peer:
        """A peer with the first letter of its role as its name, and a number if it is not the first."""
        letter = role[:1].upper()
        number = 1 + sum(peer.name.startswith(letter) for peer in self.peers)
        self.peers.append(Peer(self.address, role, letter if number == 1 else f"{letter}{number}", self.note))
        return self.peers[-1]

    def note(self, name: str, way: str, kind: str, seq: int, fields: list[Any]) -> None:
        self.said.append((name, way, kind, seq))
        if self.verbose:
            print(f"  {name} {way} {kind} {seq or ''} {fields!r:.140}")

    def close(self) -> None:
        for peer in self.peers:
            peer.cut()

    def make_id(self, now_ms: int) -> bytes:
        """A UUIDv8 of this queue (section 3)."""
        slot = zlib.crc32(f"{self.queue}/0".encode()) % 4096
        return now_ms.to_bytes(6, "big") + (0x8000 | slot).to_bytes(2, "big") + (1 << 63 | secrets.randbits(62)).to_bytes(8, "big")

    def enqueue(self, producer: Peer, *payloads: Any, ids: bytes = b"", flags: int = 0, **columns: Any) -> list[Any]:
        """The fields of ENQUEUED for tasks `work` with these values as payloads."""
        packed = [msgpack.packb(value) for value in payloads]
        fields = [[len(body) for body in packed], self.queue, ids or NIL * len(packed), ["work"], [1], [5], [0], columns.get("keys", [None])]
        fields.append(columns.get("max_attempts", [10]))
        return producer.ask("ENQUEUE", fields, b"".join(packed), flags=flags)[0]

    def subscribe(self, worker: Peer, allowed: int = 1) -> None:
        worker.ask("CONSUME", [[self.queue], ["work"], 1])
        worker.say("CREDIT", [allowed])


def ack(worker: Peer, task_id: bytes, token: bytes, result: Any, flags: int = 0) -> int:
    """The outcome."""
    body = msgpack.packb(result)
    return int(worker.ask("ACK", [[len(body)], task_id, token], body, flags=flags)[0][0][0])


# ---- the dialogues -------------------------------------------------------------------------------------------------------------------------


def enqueue_and_wait(world: World) -> None:
    """Section 5, dialogue 1: a task is enqueued, and its result waited for."""
    producer, worker = world.connect("producer"), world.connect("worker")
    ids, outcomes, *_ = world.enqueue(producer, {"to": "a@b"})
    expect("a new task", outcomes[0], CREATED)
    waiting = producer.request("GET", [ids, 10_000])
    world.subscribe(worker)
    deliver, _ = worker.push("DELIVER")
    expect("the report", ack(worker, deliver[3], deliver[4], "sent"), HELD)
    (sizes, info), body = producer.answer(waiting)
    expect("the state", info["state"], "completed")
    expect("the result", msgpack.unpackb(body[sizes[0] :]), "sent")
    producer.bye()


def work(world: World) -> None:
    """Section 5, dialogue 2: a worker takes tasks, says that it lives, reports, and says goodbye."""
    producer, worker = world.connect("producer"), world.connect("worker")
    world.subscribe(worker, 2)
    world.enqueue(producer, 1, 2, 3)
    tasks: list[tuple[bytes, bytes]] = []
    while len(tasks) < 2:
        deliver, _ = worker.push("DELIVER")
        expect("the first delivery number of the frame", deliver[2], len(tasks) + 1)
        tasks += [(deliver[3][16 * at :][:16], deliver[4][8 * at :][:8]) for at in range(len(deliver[0]))]
    beat, _ = worker.ask("HEARTBEAT", [2, b"".join(token for _, token in tasks), 2])
    expect("what was lost", beat[0], b"")
    expect("deliveries sent", beat[2], 2)
    expect("the first report", ack(worker, *tasks[0], "done"), HELD)
    expect("the same report again", ack(worker, *tasks[0], "done", flags=RESENT), HELD)
    expect("a report without a lease", ack(worker, tasks[0][0], bytes(7) + b"\1", "done"), LOST)
    worker.say("CREDIT", [3])
    deliver, _ = worker.push("DELIVER")
    expect("the next delivery number", deliver[2], 3)
    reported, _ = worker.ask("FAIL", [deliver[3], deliver[4], [DISCARD], [0], ["ValueError"], ["no such user"]])
    expect("a failure", reported[0], b"\0")
    info = producer.ask("GET", [deliver[3]])[0][1]
    expect("a discarded task", (info["state"], info["attempts"][-1]["error_type"]), ("failed", "ValueError"))
    worker.bye()
    expect("what the worker still held is pending again", producer.ask("GET", [tasks[1][0]])[0][1]["state"], "pending")
    producer.ask("CANCEL", [tasks[1][0]])


def cut_and_resume(world: World) -> None:
    """Section 5, dialogue 3: the connection breaks while a task runs and after a report was sent; the worker comes back."""
    producer, worker = world.connect("producer"), world.connect("worker")
    ids, *_ = world.enqueue(producer, 1, 2)
    world.subscribe(worker, 2)
    tokens = b""
    while len(tokens) < 16:
        tokens += worker.push("DELIVER")[0][4]
    body = msgpack.packb("first")
    worker.request("ACK", [[len(body)], ids[:16], tokens[:8]], body)
    worker.cut()  # whether the report has arrived is not known
    again = world.connect("worker")
    (outcomes,), _ = again.ask("RESUME", [worker.session, worker.secret, 2, tokens])
    expect("the task that still runs", outcomes[1], HELD)
    again.ask("CONSUME", [[world.queue], ["work"], 1])
    again.say("CREDIT", [2])
    expect("the report, sent again", ack(again, ids[:16], tokens[:8], "first", flags=RESENT), HELD)
    expect("the report of the other", ack(again, ids[16:], tokens[8:], "second"), HELD)
    for task_id, result in ((ids[:16], "first"), (ids[16:], "second")):
        (sizes, info), both = producer.ask("GET", [task_id])
        expect("a result", msgpack.unpackb(both[sizes[0] :]), result)
        expect("one attempt", len(info["attempts"]), 1)
    again.bye()


def send_again(world: World) -> None:
    """Section 8: the same id and the same key, with the same and with other content."""
    producer = world.connect("producer")
    task_id = world.make_id(producer.now_ms)
    expect("the first time", world.enqueue(producer, "a", ids=task_id)[1][0], CREATED)
    expect("again", world.enqueue(producer, "a", ids=task_id, flags=RESENT)[1][0], EXISTS)
    enqueued = world.enqueue(producer, "b", ids=task_id, flags=RESENT)
    expect("other content", (enqueued[1][0], enqueued[4][0][1]), (REFUSED, "ID_CONFLICT"))
    first = world.enqueue(producer, "a", keys=["k"])
    second = world.enqueue(producer, "a", keys=["k"])
    expect("the same key", (second[1][0], second[0]), (EXISTS, first[0]))
    third = world.enqueue(producer, "b", keys=["k"])
    expect("the same key with other content", (third[1][0], third[4][0][1]), (REFUSED, "KEY_CONFLICT"))
    expect("cancelled", producer.ask("CANCEL", [task_id + first[0]])[0][0], b"\0\0")
    producer.bye()


def give_back_and_retry(world: World) -> None:
    """Section 6: RELEASE uses up no attempt, FAIL does; the last failed attempt ends the task."""
    producer, worker = world.connect("producer"), world.connect("worker")
    ids, *_ = world.enqueue(producer, 1, max_attempts=[2])
    world.subscribe(worker)
    deliver, _ = worker.push("DELIVER")
    worker.ask("RELEASE", [deliver[3], deliver[4], [0]])
    attempts: list[int] = []
    for allowed in (2, 3):
        worker.say("CREDIT", [allowed])
        deliver, _ = worker.push("DELIVER")
        attempts += deliver[7]
        worker.ask("FAIL", [deliver[3], deliver[4], [2], [1], ["OSError"], ["no route to host"]])
    expect("attempts", attempts, [1, 2])
    info = producer.ask("GET", [ids])[0][1]
    expect("the end", (info["state"], info["attempts_used"], info["interruptions"]), ("failed", 2, 1))
    worker.bye()


def cancel(world: World) -> None:
    """Section 5: a running task is asked to stop, and its failure makes it cancelled."""
    producer, worker = world.connect("producer"), world.connect("worker")
    ids, *_ = world.enqueue(producer, 1)
    world.subscribe(worker)
    deliver, _ = worker.push("DELIVER")
    expect("asked to stop", producer.ask("CANCEL", [ids])[0][0], b"\1")
    expect("the token", worker.push("REVOKE")[0][0], deliver[4])
    expect("in the heartbeat as well", worker.ask("HEARTBEAT", [1, deliver[4], 1])[0][1], deliver[4])
    worker.ask("FAIL", [deliver[3], deliver[4], [RETRY], [0], ["Cancelled"], ["asked to"]])
    expect("the state", producer.ask("GET", [ids])[0][1]["state"], "cancelled")
    expect("too late", producer.ask("CANCEL", [ids])[0][0], b"\2")
    worker.bye()


def preferred_queues(world: World) -> None:
    """Section 6, CONSUME: the queue of the lower rank goes first."""
    producer, worker = world.connect("producer"), world.connect("worker")
    queues = [f"{world.queue}.{number}" for number in range(8)]
    for queue in reversed(queues):
        producer.ask("ENQUEUE", [[0] * 2, queue, NIL * 2, ["work"]])
    worker.ask("CONSUME", [queues, ["work"], 1])
    order: list[str] = []
    for allowed in range(1, 17):
        worker.say("CREDIT", [allowed])
        deliver, _ = worker.push("DELIVER")
        order.append(deliver[1])
        ack(worker, deliver[3], deliver[4], None)
    expect("the order", order, [queue for queue in queues for _ in range(2)])
    worker.bye()


def refusals(world: World) -> None:
    """Sections 4 and 9: what is refused while the connection goes on."""
    producer = world.connect("producer")
    expect("a worker's frame", refusal(lambda: producer.ask("CONSUME", [["q"], ["work"], 1])), "FORBIDDEN")
    expect("a name", refusal(lambda: producer.ask("ENQUEUE", [[0], "no name", NIL, ["work"]])), "BAD_REQUEST")
    expect("an id of nobody", refusal(lambda: producer.ask("GET", [world.make_id(producer.now_ms)])), "NOT_FOUND")
    expect("an id of another queue", world.enqueue(producer, 1, ids=NIL[:6] + b"\x80\1\x80" + NIL[:7])[1][0], REFUSED)
    seq, kinds = producer.seq + 1, [0x01FF]
    producer.socket.sendall(PREFIX.pack(13, 1, 0, kinds[0], seq, 1) + b"\x90")
    producer.seq = seq
    expect("an unknown kind", refusal(lambda: producer.answer(seq)), "UNKNOWN_KIND")
    producer.bye()


def seqs(world: World) -> None:
    """Section 4: a CREDIT with a seq is answered, an unknown kind with seq 0 is not, and a seq in use ends the connection."""
    producer, worker = world.connect("producer"), world.connect("worker")
    expect("a CREDIT with a seq", worker.ask("CREDIT", [1])[0], [])
    producer.socket.sendall(PREFIX.pack(13, 1, 0, 0x01FF, 0, 1) + b"\x90")
    ids, *_ = world.enqueue(producer, 1)
    expect("an id that stands twice", producer.ask("CANCEL", [ids + ids])[0][0], b"\0\0")
    other, *_ = world.enqueue(producer, 1)
    waiting = producer.request("GET", [other, 10_000])
    producer.say("GET", [other], seq=waiting)
    expect("a seq in use", producer.end(), "OUT_OF_ORDER")
    producer.cut()
    cleaner = world.connect("producer")
    cleaner.ask("CANCEL", [other])
    worker.bye()


def resume_in_one_write(world: World) -> None:
    """Section 5: what follows a RESUME in the same write waits until that is answered."""
    producer, worker = world.connect("producer"), world.connect("worker")
    worker.cut()
    again = world.connect("worker")
    resume, consume, credit = again.together(
        ("RESUME", [worker.session, worker.secret, 0]), ("CONSUME", [[world.queue], ["work"], 1]), ("CREDIT", [1])
    )
    expect("the tokens", again.answer(resume)[0], [b""])
    expect("the subscription", again.answer(consume)[0], [])
    expect("the credit", again.answer(credit)[0], [])
    world.enqueue(producer, 1)
    deliver, _ = again.push("DELIVER")
    expect("the report", ack(again, deliver[3], deliver[4], None), HELD)
    expect("a second RESUME", refusal(lambda: again.ask("RESUME", [worker.session, worker.secret, 1])), "OUT_OF_ORDER")


def taken_session(world: World) -> None:
    """Section 5: a connection is told that its session was resumed by another one, and that its keeper said DIED."""
    worker, thief = world.connect("worker"), world.connect("worker")
    expect("a wrong secret", refusal(lambda: thief.ask("RESUME", [worker.session, bytes(32), 0])), "NOT_FOUND")
    thief.ask("RESUME", [worker.session, worker.secret, 0])
    expect("the one that had it", worker.end(), "SESSION_TAKEN")
    keeper = world.connect("keeper")
    expect("a sign of life", keeper.ask("KEEPALIVE", [worker.session, worker.secret, 0])[0], [])
    expect("a death", keeper.ask("DIED", [worker.session, worker.secret, "SIGKILL"])[0], [])
    expect("the one that is said to be dead", thief.end(), "SESSION_OVER")
    expect("a second death", refusal(lambda: keeper.ask("DIED", [worker.session, worker.secret, "SIGKILL"])), "NOT_FOUND")
    keeper.bye()


def answers_before_an_end(world: World) -> None:
    """Sections 2, 4 and 6: what was asked before a malformed frame, before the end of the client's own direction and before BYE is answered."""
    asked = [("CANCEL", [world.make_id(1)])] * 20
    producer = world.connect("producer")
    for seq in producer.together(*asked, behind=producer.frame("GET", [b"short"], seq=99)):
        expect("an answer before a malformed frame", producer.answer(seq)[0], [b"\3"])
    expect("the malformed frame", refusal(lambda: producer.answer(99)), "BAD_FRAME")
    producer = world.connect("producer")
    numbers = producer.together(*asked)
    producer.socket.shutdown(socket.SHUT_WR)
    for seq in numbers:
        expect("an answer to who sends no more", producer.answer(seq)[0], [b"\3"])
    expect("what comes behind them", producer.end(), "")
    producer = world.connect("producer")
    ids, *_ = world.enqueue(producer, 1)
    get, bye = producer.together(("GET", [ids, 300]), ("BYE", []), behind=producer.frame("GET", [ids], seq=99))
    expect("the answer to BYE, before that of a GET that waits", producer.answer(bye)[0], [])
    expect("the answer of the GET", producer.answer(get)[0][1]["state"], "pending")
    expect("what was sent behind BYE", producer.end(), "")
    world.connect("producer").ask("CANCEL", [ids])


def malformed_frames(world: World) -> None:
    """Section 2: each frame of malformed.json is refused with the code that stands there, and the connection ends."""
    for row in json.loads(MALFORMED.read_text(encoding="utf-8")):
        peer = world.connect("producer" if row["after_hello"] else "")
        peer.socket.sendall(bytes.fromhex(row["bytes"]))
        kind, seq, head, _ = peer.receive()
        expect(row["name"], (kind, seq, head[0]), ("ERROR", row["seq"], row["code"]))
        try:
            peer.receive()
        except (EOFError, ConnectionError):
            peer.cut()
            continue
        raise Wrong(f"{row['name']}: the connection goes on")


DIALOGUES: tuple[Callable[[World], None], ...] = (
    enqueue_and_wait,
    work,
    cut_and_resume,
    send_again,
    give_back_and_retry,
    cancel,
    preferred_queues,
    refusals,
    seqs,
    resume_in_one_write,
    taken_session,
    answers_before_an_end,
    malformed_frames,
)


def main(address: str, verbose: bool = False) -> int:
    """Run all dialogues; 1 if one of them goes wrong."""
    for dialogue in DIALOGUES:
        world = World(address, verbose=verbose)
        if verbose:
            print(f"{dialogue.__name__}: {dialogue.__doc__}")
        try:
            dialogue(world)
        except (Wrong, Refused, EOFError, OSError) as error:
            print(f"{dialogue.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        finally:
            world.close()
        print(f"{dialogue.__name__}: as written")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], "--verbose" in sys.argv))
