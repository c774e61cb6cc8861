"""A broker in a control group that has little memory, as in a container or a service with a limit: a real one, whose kernel kills who takes more."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from programs import IN_CODE, ON_FREE_PORTS, READY, Spawn

from taskq import AsyncClient, EnqueueError, TaskqError
from taskq.actors.watch import GROUPS
from taskq.config import MIB
from taskq.errors import BrokerUnavailable, Overloaded

LIMIT = 384 * MIB
PAYLOAD = "x" * 64_000
FLOOD_S = 5.0


@pytest.fixture
def group() -> Iterator[Path]:
    """Root only, as everywhere; version 1 or 2 of control groups."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can make control groups; run the tests as root to see this one")
    top, limit = (GROUPS / "memory", "memory.limit_in_bytes") if (GROUPS / "memory").is_dir() else (GROUPS, "memory.max")
    group = top / f"taskq-test-{os.getpid()}"
    group.mkdir()
    (group / limit).write_text(str(LIMIT))
    yield group
    group.rmdir()


async def flood(client: AsyncClient) -> set[type]:
    """Enqueue all that goes; what the rest is told."""
    told, end_s = set[type](), asyncio.get_running_loop().time() + FLOOD_S
    while asyncio.get_running_loop().time() < end_s:
        try:
            await client.enqueue_many("work", [PAYLOAD] * 100, deadline=0.5)
        except EnqueueError as error:
            told |= {type(each) for each in error.errors.values()}
        except TaskqError as error:
            told.add(type(error))
    return told


async def test_a_flood_into_a_broker_with_little_memory_is_refused_and_never_kills_it(group: Path, spawn: Spawn) -> None:
    code = IN_CODE.format("broker")
    broker = spawn(["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"', sys.executable, "-c", code, *ON_FREE_PORTS])
    address = broker.wait_for(READY)["tcp"]
    process, highest = psutil.Process(broker.process.pid), 0
    async with AsyncClient(address) as client:
        first = await client.enqueue("work", "first")
        flooding = [asyncio.ensure_future(flood(client)) for _ in range(4)]
        while not all(each.done() for each in flooding):
            highest = max(highest, process.memory_info().rss)
            await asyncio.sleep(0.05)
        assert Overloaded in (told := set[type]().union(*(each.result() for each in flooding)))
        assert told <= {Overloaded, BrokerUnavailable}
        assert highest < 0.9 * LIMIT
        assert (await client.get(first.id)).state == "pending"
    (kills,) = (file for file in (group / "memory.oom_control", group / "memory.events") if file.exists())
    assert "oom_kill 0" in kills.read_text()
    assert broker.stop() == 0
