"""Attacks on a broker over TCP: small inputs that were once dear, each beside a healthy client that enqueues one task after the other.

    python tests/campaigns/attacks.py [--only NAME] [--seconds S]        (make attack)

Each attack runs against a broker of its own, as a process under a limit of memory (RLIMIT_AS), which stands in for a container.  Told are the
waits of the healthy client, the highest memory of the broker, and whether it still works afterwards and starts again under the same limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import psutil

from taskq.core import messages as m
from taskq.ids import NIL, make_id
from taskq.protocol.codec import encode
from taskq.protocol.framing import FrameDecoder

MIB = 1 << 20
WAIT_S = 60.0
SETTINGS = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--ballast-bytes", "0", "--disk-free-bytes-min", "64MiB")
NO_DELAY = (0, 1.0, 0)


class Peer:
    """A client that says what it likes, one frame at a time or many at once."""

    def __init__(self, address: str, role: str = "producer") -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=WAIT_S)
        self._decoder = FrameDecoder(1 << 27)
        self._frames: list[Any] = []
        self.seq = 0
        self.ask(m.Hello(1, role, {"name": role}))

    def bytes_of(self, *messages: Any) -> bytes:
        """The frames of these requests."""
        buffers = []
        for message in messages:
            self.seq += 1
            buffers += encode(message, 0 if type(message) is m.Credit else self.seq)
        return b"".join(buffers)

    def send(self, *messages: Any) -> None:
        self.socket.sendall(self.bytes_of(*messages))

    def receive(self) -> Any:
        while not self._frames:
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the broker has closed the connection")
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def ask(self, message: Any) -> Any:
        """The answer; deliveries that come before it are lost."""
        self.send(message)
        seq = self.seq
        while (frame := self.receive()).seq != seq:
            pass
        return frame.message


def enqueue(count: int, queue: str, payload: bytes = b"", **columns: Any) -> m.Enqueue:
    return m.Enqueue([payload] * count, queue, NIL * count, ["t"], **columns)


# ---- the attacks: each goes on until it is killed or has done what it can ------------------------------------------------------------------


def one_text_for_thousands(address: str) -> None:
    """FAIL with one error text of 64 KiB for 1,000 tasks, again and again."""
    producer = Peer(address)
    for _ in range(4):
        producer.ask(enqueue(1_000, "failing", max_attempts=[1_000], retries=[NO_DELAY]))
    worker = Peer(address, "worker")
    worker.ask(m.Consume(["failing"], ["t"], 4_000))
    allowed = 4_000
    worker.send(m.Credit(allowed))
    while True:
        message = worker.receive().message
        if type(message) is m.Deliver:
            count = len(message.tokens) // 8
            allowed += count
            worker.send(m.Fail(message.ids, message.tokens, [m.RETRY_AFTER], [0], ["E"], ["\U0001f600" * 16_384]), m.Credit(allowed))


def many_slots(message: Callable[[bytes, bytes], Any], connections: int, frames: int = 256) -> Callable[[str], None]:
    """Requests about ids that nobody knows, in as many slots as there are, with nothing read."""

    def run(address: str) -> None:
        peers = [Peer(address, "worker") for _ in range(connections)]
        data = [peer.bytes_of(*(message(os.urandom(16_000), os.urandom(8_000)) for _ in range(frames))) for peer in peers]
        flood(peers, data, times=1)

    return run


def tiny_frames(message: Any, connections: int) -> Callable[[str], None]:
    def run(address: str) -> None:
        peers = [Peer(address, "worker") for _ in range(connections)]
        flood(peers, [peer.bytes_of(*[message] * 4_000) for peer in peers], times=1 << 30, read=True)

    return run


def many_tokens(kind: str, connections: int) -> Callable[[str], None]:
    """A frame of 3.2 MB that says that 400,000 tasks are held."""

    def run(address: str) -> None:
        peers = [Peer(address, "worker") for _ in range(connections)]
        tokens = b"".join(n.to_bytes(8, "big") for n in range(400_000))
        message = m.Heartbeat(0, tokens) if kind == "heartbeat" else m.Resume(bytes(16), bytes(32), 0, tokens)
        flood(peers, [peer.bytes_of(*[message] * 4) for peer in peers], times=1 << 30, read=True)

    return run


def long_subscriptions(connections: int) -> Callable[[str], None]:
    def run(address: str) -> None:
        peers = [Peer(address, "worker") for _ in range(connections)]
        names = [f"queue-{n}" for n in range(10_000)]
        data = [peer.bytes_of(*(m.Consume(names[at:] + names[:at], names, 10) for at in range(8))) for peer in peers]
        flood(peers, data, times=1 << 30, read=True)

    return run


def bulk(address: str) -> None:
    """One producer that has eight frames of a thousand tasks in flight and minds no refusal."""
    peer = Peer(address)
    peer.send(*(enqueue(1_000, "bulk") for _ in range(8)))
    while True:
        peer.receive()
        peer.send(enqueue(1_000, "bulk"))


def large_payloads(address: str) -> None:
    """Tasks of 1 MiB that nobody works on, until the broker takes no more."""
    peer = Peer(address)
    for _ in range(1_000):
        with suppress(TimeoutError):
            peer.ask(enqueue(1, "large", bytes(MIB)))


def many_types(address: str) -> None:
    """A thousand tasks of each of a thousand types."""
    peer = Peer(address)
    for n in range(1_000):
        peer.ask(m.Enqueue([b""] * 1_000, "types", NIL * 1_000, [f"type-{n}"]))


def flood(peers: list[Peer], data: list[bytes], times: int, *, read: bool = False) -> None:
    """Send as fast as the broker takes it, from one thread, whatever becomes of the connections."""
    for peer in peers:
        peer.socket.setblocking(False)
    left = {peer: memoryview(block) for peer, block in zip(peers, data, strict=True)}
    rounds = dict.fromkeys(peers, times)
    while left:
        for peer, block in zip(peers, data, strict=True):
            if peer not in left:
                continue
            try:
                left[peer] = left[peer][peer.socket.send(left[peer]) :]
            except BlockingIOError:
                pass
            except OSError:
                del left[peer]
                continue
            if read:
                with suppress(OSError):
                    peer.socket.recv(MIB)
            if not left[peer]:
                rounds[peer] -= 1
                left[peer] = memoryview(block)
                if not rounds[peer]:
                    del left[peer]
        time.sleep(0.001)
    while True:
        time.sleep(1)


def cancel(ids: bytes, tokens: bytes) -> Any:
    return m.Cancel(ids)


def fail(ids: bytes, tokens: bytes) -> Any:
    return m.Fail(ids, tokens, [0], [0], ["E"], ["no"])


def ack(ids: bytes, tokens: bytes) -> Any:
    return m.Ack([b""] * 1_000, ids, tokens)


def release(ids: bytes, tokens: bytes) -> Any:
    return m.Release(ids, tokens, [0])


def get(n: int) -> Any:
    return m.Get(make_id(1_700_000_000_000, n, __import__("random").Random(n)))


# name → (the attack, more settings of the broker, its limit of memory)
ATTACKS: dict[str, tuple[Callable[[str], None], tuple[str, ...], int]] = {
    "one error text for thousands": (one_text_for_thousands, (), 2_560 * MIB),
    "CANCEL in many slots": (many_slots(cancel, 40), (), 2_560 * MIB),
    "FAIL in many slots": (many_slots(fail, 20), (), 2_560 * MIB),
    "ACK in many slots": (many_slots(ack, 20), (), 2_560 * MIB),
    "RELEASE in many slots": (many_slots(release, 20), (), 2_560 * MIB),
    "HEARTBEAT with 400,000 tokens": (many_tokens("heartbeat", 10), (), 2_560 * MIB),
    "RESUME with 400,000 tokens": (many_tokens("resume", 10), (), 2_560 * MIB),
    "CONSUME of 10,000 names": (long_subscriptions(20), (), 2_560 * MIB),
    "500 connections of HEARTBEATs": (tiny_frames(m.Heartbeat(), 500), (), 2_560 * MIB),
    "100 connections of GETs": (tiny_frames(get(1), 100), (), 2_560 * MIB),
    "one bulk producer": (bulk, (), 2_560 * MIB),
    "payloads of 1 MiB": (large_payloads, ("--memory-bytes-max", "512MiB"), 2_560 * MIB),
    "a thousand types": (many_types, (), 2_560 * MIB),
}


# ---- a broker, and a healthy client beside -----------------------------------------------------------------------------------------------


@contextmanager
def broker(folder: Path, settings: tuple[str, ...], memory_bytes: int) -> Iterator[tuple[str, psutil.Process]]:
    code = "from taskq.cli import broker; broker(prog_name='taskq-broker')"
    command = [sys.executable, "-c", code, "--data", str(folder), *SETTINGS, *settings]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=limit)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "tcp=" not in line:
            raise AssertionError(f"the broker did not start: {line!r}, exit code {process.wait()}")
        yield line.split("tcp=")[1].split()[0], psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@attrs.define
class Outcome:
    """`waits_ms`: of the healthy client, in order of size."""

    waits_ms: list[float]
    refused: int
    rss_mib: int
    alive: bool
    restart_s: float

    @property
    def p99_ms(self) -> float:
        return self.waits_ms[min(len(self.waits_ms) - 1, len(self.waits_ms) * 99 // 100)] if self.waits_ms else float("inf")


def healthy(address: str, seconds: float) -> None:
    """One task after the other, into a queue of its own; the waits, on stdout."""
    peer, waits, refused, end_s = Peer(address), [], 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        answer = peer.ask(enqueue(1, "healthy"))
        waits.append(1_000 * (time.monotonic() - began_s))
        refused += type(answer) is m.Error
        time.sleep(0.01)
    print(json.dumps([waits, refused]))


def run(name: str, seconds: float) -> Outcome:
    _, settings, memory_bytes = ATTACKS[name]
    own = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as folder:
        with broker(Path(folder) / "data", settings, memory_bytes) as (address, process):
            attacker = subprocess.Popen([*own, "--attack", name, "--address", address])
            probe = subprocess.Popen([*own, "--probe", str(seconds), "--address", address], stdout=subprocess.PIPE, text=True)
            peak = [0]

            def watch() -> None:
                with suppress(psutil.NoSuchProcess):
                    while probe.poll() is None:
                        peak[0] = max(peak[0], process.memory_info().rss)
                        time.sleep(0.05)

            watcher = threading.Thread(target=watch)
            watcher.start()
            told, _ = probe.communicate()
            watcher.join()
            attacker.kill()
            attacker.wait()
            waits, refused = json.loads(told or "[[], 0]")
            alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        began_s = time.monotonic()
        with broker(Path(folder) / "data", settings, memory_bytes) as (address, _):
            restart_s = time.monotonic() - began_s
            peer = Peer(address)
            peer.ask(enqueue(1, "again"))
            peer.socket.close()
    return Outcome(sorted(waits), refused, peak[0] // MIB, alive, restart_s)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--probe", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.attack:
        with suppress(OSError):
            ATTACKS[told.attack][0](told.address)
        return
    if told.probe:
        healthy(told.address, told.probe)
        return
    for name in ATTACKS:
        if told.only in name:
            found = run(name, told.seconds)
            waits = found.waits_ms or [float("inf")]
            print(
                f"{name:32} {len(found.waits_ms):6} enqueues  p50 {waits[len(waits) // 2]:7.1f} ms  p99 {found.p99_ms:7.1f}  max {waits[-1]:7.1f}"
                f"  refused {found.refused:4}  RSS {found.rss_mib:5} MiB  {'alive' if found.alive else 'DEAD'}  restart {found.restart_s:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
