"""Large payloads: what they cost in memory, and how fast they go through the broker beside what socket and disk can do by themselves.

Memory: one task at a time, from its ENQUEUE to its row in the store, with the payload large or the result.  Rates: a producer and a worker, each a
process of its own, that do nothing but pass frames; every task has to arrive, whole, once.  The limits of size and of the backlogs are raised.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "load"))

from children import Program, last_words
from figures import environment
from finding import Finding, Settings
from wire import Peer

from taskq.core import messages as m
from taskq.ids import ID_BYTES, NIL

MIB = 1 << 20
SIZES = (MIB, 64 * MIB)
RATE_TASKS = 512
IN_FLIGHT = 16
GROWTH_MAX = 2.5
# of the rate of a bare loopback socket, of the rate of the bare disk
MEMORY_LEAST, FSYNC_LEAST = 0.5, 0.25
QUEUE, TASK_TYPE = "bench", "noop"
FRAME_BYTES_MAX = 65 * MIB
RAISED = {"payload-bytes-max": "64MiB", "frame-bytes-max": "65MiB", "journal-backlog-bytes-max": "1GiB", "store-backlog-bytes-max": "4GiB"}
LOOK_S = 0.01


@contextmanager
def broker(settings: Settings, durability: str) -> Iterator[tuple[Program, str]]:
    """A broker with an empty data folder and raised limits, and its address."""
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="taskq-bench-") as folder:
        flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", f"{folder}/data", "--durability", durability]
        flags += [part for name, value in RAISED.items() for part in (f"--{name}", value)]
        with Program.installed("broker", *flags, environ=environment()) as program:
            yield program, program.wait_for(r"^taskq-broker listening tcp=(\S+)")[1]


# ---- memory ------------------------------------------------------------------------------------------------------------------------


def growth(settings: Settings) -> Iterator[Finding]:
    for size in SIZES:
        for what, payload, result in (("payload", size, 1), ("result", 1, size)):
            with broker(settings, "fsync") as (program, address):
                through(address, 1, 1)
                before = rss_bytes(program.pid, "VmRSS")
                Path(f"/proc/{program.pid}/clear_refs").write_text("5")
                through(address, payload, result)
                grown = (rss_bytes(program.pid, "VmHWM") - before) / size
            yield Finding(f"a {what} of {size // MIB} MiB: growth of the broker's RSS", grown, "× its size", at_most=GROWTH_MAX)


def through(address: str, payload_bytes: int, result_bytes: int) -> None:
    """One task, until the store has it completed."""
    with Peer(address, "producer") as producer, Peer(address, "worker", FRAME_BYTES_MAX) as worker:
        worker.consume(QUEUE, TASK_TYPE, 1)
        producer.ask(m.Enqueue([bytes(payload_bytes)], QUEUE, NIL, [TASK_TYPE]))
        task = worker.wait_for(m.Deliver)
        assert len(task.payloads[0]) == payload_bytes
        wait_for_store(producer)
        worker.ask(m.Ack([bytes(result_bytes)], task.ids, task.tokens))
        wait_for_store(producer)


def wait_for_store(producer: Peer) -> None:
    while True:
        (row,) = producer.ask(m.Inspect("broker")).rows
        if row["applied_lsn"] == row["journal_lsn"]:
            return
        time.sleep(LOOK_S)


def rss_bytes(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) << 10


# ---- rates, in bytes a second ------------------------------------------------------------------------------------------------------


def rates(settings: Settings) -> Iterator[Finding]:
    tasks = settings.sized(RATE_TASKS)
    loopback, disk = loopback_rate(tasks), disk_rate(settings.folder, tasks)
    yield Finding(f"a bare loopback socket, {tasks} MiB", loopback / MIB, "MiB/s")
    yield Finding(f"the bare disk, {tasks} times 1 MiB and fdatasync", disk / MIB, "MiB/s")
    for durability, bare, least in (("memory", loopback, MEMORY_LEAST), ("fsync", disk, FSYNC_LEAST)):
        rate = broker_rate(settings, durability, tasks)
        yield Finding(f"enqueue → deliver, {tasks} payloads of 1 MiB, {durability}", rate / MIB, "MiB/s")
        yield Finding(f"the same by what is bare, {durability}", rate / bare, "×", at_least=least)


def broker_rate(settings: Settings, durability: str, tasks: int) -> float:
    with broker(settings, durability) as (_, address), ExitStack() as stack:
        worker, producer = (stack.enter_context(Program.python(__file__, part, address, tasks, MIB)) for part in ("work", "produce"))
        for program in (worker, producer):
            program.wait_for("ready")
        producer.say("go")
        started_ns, ended_ns = producer.last_words()["started_ns"], worker.last_words()["ended_ns"]
    return tasks * MIB / (ended_ns - started_ns) * 1e9


def loopback_rate(pieces: int) -> float:
    """One process sends pieces of 1 MiB, this one takes them."""
    with socket.create_server(("127.0.0.1", 0)) as server, Program.python(__file__, "send", f"127.0.0.1:{server.getsockname()[1]}", pieces, MIB):
        connection, _ = server.accept()
        with connection:
            buffer = memoryview(bytearray(MIB))
            begin_ns = time.monotonic_ns()
            left = pieces * MIB
            while left:
                left -= connection.recv_into(buffer)
            return pieces * MIB / (time.monotonic_ns() - begin_ns) * 1e9


def disk_rate(folder: Path, pieces: int) -> float:
    piece = os.urandom(MIB)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begin_ns = time.monotonic_ns()
        for _ in range(pieces):
            file.write(piece)
            os.fdatasync(file.fileno())
        return pieces * MIB / (time.monotonic_ns() - begin_ns) * 1e9


# ---- the processes beside the broker -----------------------------------------------------------------------------------------------


def produce(address: str, tasks: int, size: int) -> None:
    payload = os.urandom(size)
    with Peer(address, "producer") as producer:
        print("ready", flush=True)
        sys.stdin.readline()
        started_ns = time.monotonic_ns()
        for number in range(tasks):
            if number >= IN_FLIGHT:
                producer.wait_for(m.Enqueued)
            producer.send(m.Enqueue([payload], QUEUE, NIL, [TASK_TYPE]))
        for _ in range(min(tasks, IN_FLIGHT)):
            producer.wait_for(m.Enqueued)
        last_words(started_ns=started_ns)


def work(address: str, tasks: int, size: int) -> None:
    seen: set[bytes] = set()
    with Peer(address, "worker", 2 * size) as worker:
        worker.consume(QUEUE, TASK_TYPE, IN_FLIGHT)
        print("ready", flush=True)
        while len(seen) < tasks:
            task = worker.wait_for(m.Deliver)
            assert [*map(len, task.payloads)] == [size] * len(task.payloads)
            ids = {task.ids[at : at + ID_BYTES] for at in range(0, len(task.ids), ID_BYTES)}
            assert not ids & seen
            seen |= ids
            worker.send(m.Ack([b"\xc0"] * len(ids), task.ids, task.tokens))
            worker.send(m.Credit(len(seen) + IN_FLIGHT))
        last_words(ended_ns=time.monotonic_ns())


def send(address: str, pieces: int, size: int) -> None:
    host, port = address.rsplit(":", 1)
    piece = os.urandom(size)
    with socket.create_connection((host, int(port))) as connection:
        for _ in range(pieces):
            connection.sendall(piece)


# ---- the part ----------------------------------------------------------------------------------------------------------------------


def payloads(settings: Settings) -> Iterator[Finding]:
    yield from growth(settings)
    yield from rates(settings)


PROGRAMS = {"produce": produce, "work": work, "send": send}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PROGRAMS:
        PROGRAMS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        for found in payloads(Settings(Path.cwd(), float(sys.argv[1]) if sys.argv[1:] else 1.0)):
            print(f"{found.what}: {found.value:.2f} {found.unit}", flush=True)
