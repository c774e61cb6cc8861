"""What HTTP asks of the shards, in a session without a connection."""

from __future__ import annotations

import asyncio
import random

from taskq import AsyncClient, ids, testing
from taskq.core import messages as m
from taskq.core.effects import Command
from taskq.node import Node

TASK_ID = ids.make_id(1_700_000_000_000, ids.slot_of_queue("default"), random.Random(1))


async def flushed(node: Node) -> None:
    """Until the store has all, and memory has let go of what is final."""
    while any(actor.shard.tasks for actor in node._shards):
        await asyncio.sleep(0.01)


async def test_only_an_enqueue_that_names_its_ids_may_have_been_sent_before() -> None:
    async with testing.broker() as node:
        told: list[tuple[int, Command]] = []
        node._local._tell = told.extend
        for message in (m.Enqueue([b"1"], "default", TASK_ID, ["t"]), m.Enqueue([b"1"], "default", ids.NIL, ["t"]), m.Get(TASK_ID)):
            node._local.submit(message, lambda _: None)
    assert [command.resent for _, command in told] == [True, False, False]


async def test_a_task_that_is_sent_again_by_its_id_long_after_it_was_over_is_still_the_same() -> None:
    async with testing.broker() as node, AsyncClient(node.tcp) as client:
        first = await client.enqueue("t", {"n": 1})
        await client.cancel(first)
        await flushed(node)
        again = await client.enqueue("t", {"n": 1}, id=first.id)
        assert (again, again.created) == (first, False)
        answered: asyncio.Future[m.Enqueued] = asyncio.get_running_loop().create_future()
        await flushed(node)
        message = m.Enqueue([(await client.get(first)).payload_bytes], "default", first.raw, ["t"])
        node._local.submit(message, answered.set_result)
        assert (await answered).outcomes == bytes([m.EXISTS])
