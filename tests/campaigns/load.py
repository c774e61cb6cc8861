"""Load: what a broker does under 10,000 connections, a storm of them, peers that do not read or hardly send, and a flood; `make load`.

    .venv/bin/python tests/campaigns/load.py                                   all parts, in about 20 minutes
    .venv/bin/python tests/campaigns/load.py --only flood --flood-seconds 30

Each part starts a `taskq-broker` of its own, on loopback, with the settings that its row shows; the crowd runs in another process, and the good
clients here: `Good` pings, enqueues, and holds tasks as a worker does.  A part gives its figures and what went wrong; nothing wrong is recorded in
the ledger too, since figures without it are worth little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from programs import IN_CODE, ON_FREE_PORTS, READY, environment

from campaigns import ledger
from campaigns import load_peers as peers
from taskq.core import messages as m
from taskq.ids import split

MIB = 1 << 20
FILES = 30_000
PING_S = 0.02
HELD_TASKS = 50
# beside those that do not read: the two good ones, and the one that made what the deaf ask for
OTHERS = 3
RSS_FLOOD_MAX = 512 * MIB
RATIO_MAX = 3.0


@attrs.frozen
class Sizes:
    """How large the parts are; these are the full ones."""

    connections: int = 10_000
    active_s: float = 60.0
    storm_a_second: int = 2_000
    storm_s: float = 30.0
    deaf: int = 20
    slow_each: int = 334
    slow_pause_s: float = 5.0
    flood_s: float = 600.0
    rounds: int = 5
    baseline_s: float = 10.0
    settings: tuple[str, ...] = ()
    deadlines_s: dict[str, float] = attrs.field(
        factory=lambda: {"greeting": 5, "frame head": 10, "frame body": 10, "request line": 5, "header": 5, "body": 15}
    )


@attrs.define
class Found:
    """What a part has found.  `wrong` is empty, or says what should not have been."""

    figures: dict[str, Any] = attrs.field(factory=dict)
    wrong: list[str] = attrs.field(factory=list)

    def expect(self, good: bool, what: str) -> None:
        if not good:
            self.wrong.append(what)


# ---- the broker --------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Broker:
    pid: int
    tcp: peers.Address
    http: peers.Address

    def connections(self) -> int:
        return sum(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(self.pid).net_connections("tcp"))

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def broker(*settings: str) -> Iterator[Broker]:
    """A broker as a process, with its data in a folder that is removed; RuntimeError if it ended by itself."""
    with tempfile.TemporaryDirectory(prefix="taskq-load-") as folder:
        command = [sys.executable, "-c", IN_CODE.format("broker"), *ON_FREE_PORTS, "--data", folder, "--log-level", "error", *settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        assert process.stdout is not None
        try:
            found = re.match(READY, process.stdout.readline())
            if found is None:
                raise RuntimeError("the broker did not start")
            tcp, http = (address.rsplit(":", 1) for address in (found["tcp"], found["http"]))
            yield Broker(process.pid, (tcp[0], int(tcp[1])), (http[0], int(http[1])))
            if process.poll() is not None:
                raise RuntimeError(f"the broker ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def raise_file_limit() -> None:
    """For both sides of all connections; what is not allowed is left as it is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(hard, FILES), hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return


# ---- good clients ------------------------------------------------------------------------------------------------------------------


class Good:
    """Clients that behave: one that pings and enqueues, and a worker that holds tasks and tells so with each heartbeat."""

    def __init__(self, at: Broker) -> None:
        self._at = at
        self.late_s: list[float] = []
        self.lost = 0
        self.beats = 0
        self._running: list[asyncio.Future[None]] = []

    @classmethod
    @asynccontextmanager
    async def clients(cls, at: Broker) -> Any:
        good = cls(at)
        client, worker = await peers.greeted(at.tcp), await peers.greeted(at.tcp, "worker")
        await client.ask(peers.enqueue("held", HELD_TASKS))
        await worker.ask(m.Consume(["held"], ["work"], HELD_TASKS))
        worker.send(m.Credit(HELD_TASKS))
        held: list[tuple[bytes, bytes]] = []
        while len(held) < HELD_TASKS:
            await asyncio.sleep(0.01)
            held = [pair for each in worker.pushed for pair in zip(split(each.ids, 16), split(each.tokens, 8), strict=True)]
        worker.pushed.clear()
        good._running = [asyncio.ensure_future(good._ping(client)), asyncio.ensure_future(good._beat(worker, held))]
        try:
            yield good
            await good._end(worker, held)
        finally:
            for each in good._running:
                each.cancel()

    async def _ping(self, client: peers.Peer) -> None:
        for number in range(1 << 40):
            begin_s = time.monotonic()
            await client.ask(m.Heartbeat() if number % 2 else peers.enqueue("good"))
            self.late_s.append(time.monotonic() - begin_s)
            await asyncio.sleep(PING_S)

    async def _beat(self, worker: peers.Peer, held: list[tuple[bytes, bytes]]) -> None:
        tokens = b"".join(token for _, token in held)
        while True:
            await asyncio.sleep(1.0)
            beat = await worker.ask(m.Heartbeat(len(held), tokens))
            self.beats += 1
            self.lost += len(beat.lost) // 8

    async def _end(self, worker: peers.Peer, held: list[tuple[bytes, bytes]]) -> None:
        """Every task is still this worker's to complete."""
        ids, tokens = (b"".join(column) for column in zip(*held, strict=True))
        reported = await worker.ask(m.Ack([b"\x80"] * len(held), ids, tokens))
        self.lost += len(held) - reported.outcomes.count(m.REPORT_OK)

    def take_ms(self) -> float:
        """The 99th percentile since the last call."""
        late_s, self.late_s = self.late_s, []
        return peers.percentile(late_s) * 1000

    def check(self, found: Found) -> None:
        found.expect(not self.lost, f"a good worker lost {self.lost} leases")
        for each in self._running:
            if each.done():
                found.wrong.append(f"a good client was cut: {each}")


# ---- parts -------------------------------------------------------------------------------------------------------------------------


async def connections(sizes: Sizes) -> Found:
    """So many idle, then each with one enqueue a second; one more is refused."""
    found = Found()
    with broker("--durability", "os", "--connections-max", str(sizes.connections + 2), *sizes.settings) as at:
        async with Good.clients(at) as good:
            before = at.rss_bytes()
            with peers.spawned(peers.many, at.tcp, sizes.connections) as crowd:
                begin_s = time.monotonic()
                opened = await crowd.heard()
                found.figures["opened_s"] = round(time.monotonic() - begin_s, 1)
                good.take_ms()
                await asyncio.sleep(min(10.0, sizes.active_s))
                found.figures |= {"connections": opened, "rss_kib_each": round((at.rss_bytes() - before) / 1024 / max(1, opened), 1)}
                found.figures["idle_p99_ms"] = round(good.take_ms(), 1)
                one_more = await peers.open_peer(at.tcp)
                await one_more.closed
                found.expect(one_more.error == "TOO_MANY_CONNECTIONS", f"one more was told {one_more.error!r}")
                active = await crowd.ask(sizes.active_s)
                found.figures["active_p99_ms"] = round(good.take_ms(), 1)
                found.figures |= {"operations_a_second": round(active["operations"] / sizes.active_s)}
                found.figures["operation_p99_ms"] = round(active["operation_p99_ms"])
                found.expect(opened == sizes.connections, f"{sizes.connections - opened} connections were not let in")
                found.expect(not active["lost"], f"{active['lost']} connections were cut")
            good.check(found)
    found.expect(found.figures["rss_kib_each"] <= 30, "a connection takes more than 30 KiB")
    found.expect(found.figures["idle_p99_ms"] <= 250, "with idle connections a ping takes more than 250 ms")
    return found


async def connect_storm(sizes: Sizes) -> Found:
    """Connections that come, greet and go."""
    found = Found()
    with broker("--durability", "os", *sizes.settings) as at:
        async with Good.clients(at) as good:
            with peers.spawned(peers.storm, at.tcp, sizes.storm_a_second, sizes.storm_s) as crowd:
                found.figures |= await crowd.heard()
                found.figures["p99_ms"] = round(good.take_ms(), 1)
            good.check(found)
            found.expect(not found.figures.get("refused"), f"{found.figures.get('refused')} connections were refused below the limit")
    return found


async def slow_consumers(sizes: Sizes) -> Found:
    """Workers and producers that do not read: each is cut, its tasks go to another, and nobody else notices."""
    found = Found()
    payload_bytes, tasks = MIB // 2, 24 * sizes.deaf
    with broker("--durability", "os", "--hot-bytes-max", "64MiB", *sizes.settings) as at:
        async with Good.clients(at) as good:
            maker = await peers.greeted(at.tcp)
            for _ in range(tasks):
                await maker.ask(peers.enqueue("deaf", 1, bytes(payload_bytes)))
            maker.transport.close()
            highest = before = at.rss_bytes()
            with peers.spawned(peers.deaf, at.tcp, sizes.deaf, payload_bytes) as crowd:
                count = await crowd.heard()
                cut_s = 0.0
                while at.connections() > OTHERS and cut_s < 60:
                    cut_s = await crowd.ask(True)
                    highest = max(highest, at.rss_bytes())
                    await asyncio.sleep(0.5)
                told = await crowd.ask(False)
                found.figures |= {"peers": count, "cut_s": round(cut_s, 1), "rss_grew_mib": (highest - before) // MIB, **told}
                found.figures["p99_ms"] = round(good.take_ms(), 1)
                found.expect(cut_s < 60 and not told.get("open"), "some were never cut")
            found.figures["redelivered"] = await _take_all(at, "deaf", tasks)
            found.expect(found.figures["redelivered"] == tasks, "tasks of those that were cut did not reach another worker")
            good.check(found)
    return found


async def _take_all(at: Broker, queue: str, tasks: int, within_s: float = 40.0) -> int:
    """How many tasks of the queue another worker is given in this time."""
    worker = await peers.greeted(at.tcp, "worker")
    await worker.ask(m.Consume([queue], ["work"], tasks))
    worker.send(m.Credit(tasks))
    until_s = time.monotonic() + within_s
    count = 0
    while count < tasks and time.monotonic() < until_s:
        await asyncio.sleep(0.2)
        count = sum(len(split(each.ids, 16)) for each in worker.pushed)
        await worker.ask(m.Heartbeat(count, b"".join(each.tokens for each in worker.pushed)))
    return count


async def slow_senders(sizes: Sizes) -> Found:
    """A byte now and then, in each place of both protocols: each is closed a second after its deadline at the latest."""
    found = Found()
    with broker("--durability", "os", *sizes.settings) as at:
        async with Good.clients(at) as good:
            await asyncio.sleep(sizes.baseline_s)
            found.figures["baseline_p99_ms"] = round(good.take_ms(), 1)
            with peers.spawned(peers.slowloris, at.tcp, at.http, sizes.slow_each, sizes.slow_pause_s) as crowd:
                found.figures["sockets"] = await crowd.heard()
                latest_s = await crowd.heard()
                found.figures["p99_ms"] = round(good.take_ms(), 1)
            for where, deadline_s in sizes.deadlines_s.items():
                late_s = latest_s.get(where, float("inf")) - deadline_s
                found.figures[f"{where} late_s"] = round(late_s, 2)
                found.expect(late_s <= 1.0, f"in the {where}: closed {late_s:.1f} s after the deadline")
            good.check(found)
    return found


async def flood(sizes: Sizes) -> Found:
    """A writer that enqueues all it can, for a worker that is stopped: pairs of a quiet time and a flood, alternating."""
    found = Found()
    with broker("--hot-bytes-max", "32MiB", "--journal-backlog-bytes-max", "16MiB", "--held-bytes-max", "64MiB", *sizes.settings) as at:
        async with Good.clients(at) as good:
            with peers.spawned(peers.flood, at.tcp, 100, 100, 256) as writer, peers.spawned(peers.stopped_worker, at.tcp, "flood") as reader:
                await writer.heard()
                await reader.heard()
                os.kill(reader.pid, signal.SIGSTOP)
                await asyncio.sleep(1)
                pairs, highest = [], 0
                for _ in range(sizes.rounds):
                    good.take_ms()
                    await asyncio.sleep(sizes.baseline_s)
                    quiet_ms = good.take_ms()
                    writer.tell("go")
                    until_s = time.monotonic() + sizes.flood_s / sizes.rounds
                    while time.monotonic() < until_s:
                        highest = max(highest, at.rss_bytes())
                        await asyncio.sleep(0.25)
                    pairs.append((quiet_ms, good.take_ms()))
                    for outcome, count in (await writer.ask("stop")).items():
                        found.figures[outcome] = found.figures.get(outcome, 0) + count
                found.figures |= _of_pairs(pairs) | {"rss_mib": highest // MIB, "beats": good.beats}
            good.check(found)
    untyped = set(found.figures) & {"cut", "INTERNAL", "BAD_FRAME"}
    found.expect(not untyped, f"the writer was told {untyped}")
    found.expect(highest <= RSS_FLOOD_MAX, f"the broker grew to {highest // MIB} MiB")
    found.expect(found.figures["ratio"] <= RATIO_MAX, f"the others waited {found.figures['ratio']} times as long")
    return found


def _of_pairs(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    quiet, flooded = zip(*pairs, strict=True)
    return {
        "quiet_p99_ms": round(statistics.median(quiet), 1),
        "flood_p99_ms": round(statistics.median(flooded), 1),
        "ratio": round(statistics.median(late / base for base, late in pairs), 2),
    }


PARTS: dict[str, Callable[[Sizes], Awaitable[Found]]] = {
    "connections": connections,
    "storm": connect_storm,
    "slow-consumers": slow_consumers,
    "slowloris": slow_senders,
    "flood": flood,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between: {', '.join(PARTS)}")
    parser.add_argument("--connections", type=int, default=Sizes().connections)
    parser.add_argument("--active-seconds", type=float, default=Sizes().active_s)
    parser.add_argument("--flood-seconds", type=float, default=Sizes().flood_s)
    parser.add_argument("--quiet-seconds", type=float, default=Sizes().baseline_s, help="how long it is quiet before each flood")
    parser.add_argument("--no-record", action="store_true", help="do not write into the ledger")
    options = parser.parse_args()
    raise_file_limit()
    sizes = Sizes(connections=options.connections, active_s=options.active_seconds, flood_s=options.flood_seconds, baseline_s=options.quiet_seconds)
    bad = 0
    for name in options.only.split(","):
        found = asyncio.run(PARTS[name](sizes))
        bad += len(found.wrong)
        print(f"{name:16}" + "  ".join(f"{figure} {value:,}" for figure, value in found.figures.items()), flush=True)
        for wrong in found.wrong:
            print(f"{'':16}WRONG: {wrong}", flush=True)
        if not options.no_record:
            ledger.record("load", mode=name, wrong=found.wrong, **found.figures)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
