"""ShardActor: what is held back keeps its place, and is looked at again."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from taskq.actors.shard import ShardActor
from taskq.clock import SystemClock
from taskq.core import messages as m
from taskq.core.book import Sequence64, Shared
from taskq.core.effects import Command
from taskq.core.line import Budget
from taskq.core.shard import Shard
from taskq.ids import NIL


class Holding(Shard):
    """A shard that holds back what is for the queue `busy` as long as it is told to."""

    busy = True

    def holds(self, command: Command, steady_ms: int) -> bool:
        return self.busy and getattr(command.message, "queue", "") == "busy"


def fail(error: BaseException) -> None:
    raise error


def enqueue(origin: int, seq: int, queue: str) -> Command:
    return Command(origin, seq, m.Enqueue([b"x"], queue, NIL, ["send_email"]))


async def test_who_is_held_back_waits_with_all_that_it_asks_for_and_nobody_else_does() -> None:
    answered: list[tuple[int, int]] = []
    all_answered = asyncio.Event()

    def submit(records: list[Any], replies: list[Any]) -> None:
        answered.extend((reply.origin, reply.seq) for reply in replies)
        if len(answered) == 4:
            all_answered.set()

    shard = Holding(0, 1, Shared(Sequence64(1), Sequence64(1), Budget(1 << 20), random.Random(0)))
    actor = ShardActor(asyncio.get_running_loop(), fail, shard, SystemClock(), submit, lambda _, loads: None, lambda offers: None)
    for command in (enqueue(7, 1, "email"), enqueue(7, 2, "busy"), enqueue(7, 3, "email"), enqueue(8, 1, "email")):
        actor.tell(command)
    await asyncio.sleep(0)
    assert answered == [(7, 1), (8, 1)]
    shard.busy = False
    await asyncio.wait_for(all_answered.wait(), 5)
    assert answered[2:] == [(7, 2), (7, 3)]
    actor.stop()
