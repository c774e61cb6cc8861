"""Two tenants with an access token each: what one of them asks too much costs the other nothing that it was promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from access_tokens import make

from taskq import AsyncClient, EnqueueError, testing
from taskq.actors.queueing import TURN_TASKS
from taskq.errors import QueueFull

FRAMES = 60
ROOM = 40_000


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
    """Both in one shard, so that they share its time."""
    async with testing.broker(data=tmp_path, auth=True, shards=1, queue_tasks_max=ROOM) as node:
        loud, quiet = (make(tmp_path, name, f"produce:{name}.*") for name in ("loud", "quiet"))
        async with AsyncClient(node.tcp, token=loud) as flooding, AsyncClient(node.tcp, token=quiet) as other:
            await asyncio.gather(flooding.enqueue("work", queue="loud.mail"), other.enqueue("work", queue="quiet.mail"))
            yield flooding, other


async def test_a_tenant_that_floods_waits_behind_itself(tenants: tuple[AsyncClient, AsyncClient]) -> None:
    flooding, other = tenants
    flood = [asyncio.ensure_future(flooding.enqueue_many("work", range(TURN_TASKS), queue="loud.mail")) for _ in range(FRAMES)]
    await flood[0]
    ahead = sum(each.done() for each in flood)
    await other.enqueue("work", queue="quiet.mail")
    assert sum(each.done() for each in flood) - ahead < FRAMES // 2
    await asyncio.gather(*flood)


async def test_a_tenant_that_fills_its_queue_is_refused_alone(tenants: tuple[AsyncClient, AsyncClient]) -> None:
    flooding, other = tenants
    with pytest.raises(EnqueueError) as refused:
        await flooding.enqueue_many("work", range(ROOM), queue="loud.mail", deadline=3)
    assert {type(error) for error in refused.value.errors.values()} == {QueueFull}
    assert (await other.enqueue("work", queue="quiet.mail")).id
