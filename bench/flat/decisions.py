"""What a shard takes to decide about a task that comes and goes alone: enqueue, grant, ack, its part of a flush; in this process, without I/O."""

from __future__ import annotations

import gc
import random
import time
from collections import deque

from taskq.core import messages as m
from taskq.core.admission import Limits
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.effects import Command, Effects, Flushed, Ready, Reply
from taskq.core.line import Budget
from taskq.core.shard import Shard
from taskq.core.task import CLEAN
from taskq.ids import make_id, slot_of_queue

NOW_MS = 1_700_000_000_000
PAYLOAD = b"p" * 150
FLUSH_TASKS = 500
STEP = 7_919
BACKLOG = 20_000


class World:
    """One shard; each worker takes all queues and one task at a time."""

    def __init__(self, queues: int, workers: int) -> None:
        self.rng = random.Random(1)
        self.names = tuple(f"q{number}" for number in range(queues))
        shared = Shared(Sequence64(1), Sequence64(1 << 40), Budget(128 << 20), random.Random(2), Limits(queues_max=2 * queues))
        self.shard = Shard(0, 1, shared)
        self.running: deque[Reply] = deque()
        self.done = 0
        for number in range(workers):
            session = number.to_bytes(16, "big")
            shared.consumers[session] = Consumer(
                session, f"w{number}", NOW_MS + 10**9, origin=number, queues=self.names, task_types=frozenset({"noop"}), allowed=1
            )
            self.turn(Command(0, 0, Ready(session)))

    def turn(self, *commands: Command) -> None:
        effects: Effects = self.shard.turn(commands, NOW_MS)
        self.running += [reply for reply in effects.replies if type(reply.message) is m.Deliver]

    def enqueue(self, number: int) -> None:
        queue = self.names[number * STEP % len(self.names)]
        self.turn(Command(1, 1, m.Enqueue([PAYLOAD], queue, make_id(NOW_MS, slot_of_queue(queue), self.rng), ["noop"])))

    def finish(self) -> None:
        """The task that has run for longest is acknowledged, and its worker takes the next."""
        reply = self.running.popleft()
        session = reply.origin.to_bytes(16, "big")
        self.shard.consumers[session].allowed += 1
        self.turn(Command(reply.origin, 1, m.Ack([b"ok"], reply.message.ids, reply.message.tokens), session=session), Command(0, 0, Ready(session)))
        self.done += 1

    def flush(self) -> None:
        taken = self.shard.take_dirty()
        self.shard.take_sizes()
        for task in taken:
            task.dirty = CLEAN
        for begin in range(0, len(taken), FLUSH_TASKS):
            self.turn(Command(0, 0, Flushed(taken[begin : begin + FLUSH_TASKS], self.shard.flushes)))


def us_per_task(queues: int, workers: int, tasks: int = 4_000) -> float:
    """CPU time.  The garbage collector, whose price goes by what is in memory and by who set its thresholds, is left out."""
    world = World(queues, workers)
    for number in range(BACKLOG):  # the same for all; every queue has its line before the clock runs
        world.enqueue(number)
    gc.collect()
    gc.disable()
    try:
        began_s = time.process_time()
        for number in range(tasks):
            world.enqueue(number)
            world.finish()
            if number % FLUSH_TASKS == FLUSH_TASKS - 1:
                world.flush()
        return (time.process_time() - began_s) / tasks * 1e6
    finally:
        gc.enable()
