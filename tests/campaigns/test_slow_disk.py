"""A disk that has become slow: strace holds each fdatasync of an unmodified broker.  Nobody loses a lease, who is refused is told when to come
back, memory stays bounded, and afterwards everything is as before."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil
from programs import ON_FREE_PORTS, READY, Program, Spawn, Start

from taskq import AsyncClient, BrokerUnavailable
from taskq.errors import Overloaded

HELD = 20
LEASE_S, HEARTBEAT_S = 6, 2
# how long each fdatasync takes, and for how long
SLOW = ((0.01, 1.0), (2.0, 7.0))
GROWTH_BYTES_MAX = 100 << 20
APP = """
import asyncio
from pathlib import Path
from taskq import App
app = App()

@app.task
async def hold(path: str) -> int:
    with open(path + ".begun", "a") as begun: begun.write("x")
    while not Path(path).exists(): await asyncio.sleep(0.02)
    return 7
"""


@attrs.define
class Seen:
    """What producers were told, and how fast a broker whose disk is slow answers who asks for nothing from it."""

    acknowledged: list[str] = attrs.field(factory=list)
    refusals: list[Overloaded] = attrs.field(factory=list)
    unknown: int = 0
    silent_ms: int = 0
    waited_s: float = 0.0


@contextmanager
def slow_disk(spawn: Spawn, broker: Program, delay_s: float) -> Iterator[None]:
    """Each fdatasync takes so much longer meanwhile."""
    inject = f"inject=fdatasync:delay_enter={round(delay_s * 1e6)}"
    strace = spawn(["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject, "-p", str(broker.process.pid)])
    while not all_traced(broker.process.pid):
        assert strace.process.poll() is None, f"strace ended: {strace.said}"
    try:
        yield
    finally:
        strace.signal(signal.SIGTERM)
        strace.end()


def all_traced(pid: int) -> bool:
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


async def produce(client: AsyncClient, seen: Seen, until_s: float) -> None:
    while time.monotonic() < until_s:
        try:
            handles = await client.enqueue_many("nobody", [{"text": "x" * 1_000}] * 50, queue="waiting", deadline=0.4)
            seen.acknowledged += [handle.id for handle in handles]
        except Overloaded as refusal:
            seen.refusals.append(refusal)
        except BrokerUnavailable:
            seen.unknown += 1


async def listen(client: AsyncClient, seen: Seen, until_s: float) -> None:
    """How long ago the worker was heard of; the question needs no disk."""
    while time.monotonic() < until_s:
        began_s = time.monotonic()
        (row,) = await client.workers()
        seen.waited_s = max(seen.waited_s, time.monotonic() - began_s)
        seen.silent_ms = max(seen.silent_ms, row["heard_ms_ago"])
        await asyncio.sleep(0.05)


async def test_a_slow_disk_costs_no_lease_and_no_memory_and_refuses_in_time(start: Start, spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(APP)
    go, begun = tmp_path / "go", tmp_path / "go.begun"
    leases = ("--lease", f"{LEASE_S}s", "--heartbeat", f"{HEARTBEAT_S}s")
    broker = start("broker", *ON_FREE_PORTS, *leases)
    address = broker.wait_for(READY)["tcp"]
    worker = start("worker", "--connect", address, "--app", "slow")
    seen, process = Seen(), psutil.Process(broker.process.pid)
    async with AsyncClient(address, deadline=10) as client, AsyncClient(address, deadline=10) as producer:
        held = await client.enqueue_many("hold", [{"path": str(go)}] * HELD)
        while not begun.exists() or len(begun.read_text()) < HELD:
            assert worker.process.poll() is None
            await asyncio.sleep(0.02)
        before = process.memory_info().rss
        for delay_s, seconds in SLOW:
            with slow_disk(spawn, broker, delay_s):
                until_s = time.monotonic() + seconds
                await asyncio.gather(listen(client, seen, until_s), *(produce(producer, seen, until_s) for _ in range(4)))
                growth = process.memory_info().rss - before
        assert (await producer.enqueue("nobody", {}, queue="waiting")).created
        go.write_text("")
        for handle in held:
            assert await client.result(handle, timeout=20) == 7
            assert [attempt["outcome"] for attempt in (await handle.info()).fields["attempts"]] == ["completed"]
        assert len(begun.read_text()) == HELD
        states = {(await client.get(task_id)).state for task_id in seen.acknowledged[:: max(1, len(seen.acknowledged) // 200)]}
    assert seen.acknowledged and states == {"pending"}
    assert seen.refusals and all(refusal.retryable and refusal.retry_after_ms == 500 for refusal in seen.refusals)
    assert seen.silent_ms < LEASE_S * 1000 / 2 and seen.waited_s < 1, seen
    assert growth < GROWTH_BYTES_MAX
    assert broker.stop() == 0
    assert "not connected" not in worker.errors
