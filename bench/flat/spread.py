"""Enqueues tasks round the queues q0 …: `python spread.py HOST:PORT QUEUES TASKS FRAME_TASKS PER_S`; PER_S 0 is as fast as they are admitted.

A payload begins with the nanoseconds at which its task was enqueued (crowd.py).  Its last words are when it began and when all was admitted.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import uvloop

sys.path.append(str(Path(__file__).parents[1] / "load"))

from children import last_words

from taskq import ids
from taskq.connection import Address, Channel, hello
from taskq.core import messages as m
from taskq.protocol.link import Event

PAYLOAD_BYTES = 150
IN_FLIGHT = 256


def ignore(event: Event | object) -> None:
    """What answers nothing: that the session is ready."""


async def main() -> None:
    url, (queues, tasks, frame_tasks, per_s) = sys.argv[1], map(int, sys.argv[2:6])
    channel = Channel(Address.parse(url), hello("producer"), ignore)
    channel.start()
    await channel.call(m.Inspect("broker"), 30)
    rng, numbers = random.Random(1), iter(range(0, tasks, frame_tasks))

    async def send(number: int) -> None:
        count = min(frame_tasks, tasks - number)
        queue = f"q{number % queues}"
        slot, now_ns = ids.slot_of_queue(queue), time.monotonic_ns()
        block = b"".join([ids.make_id(time.time_ns() // 1_000_000, slot, rng) for _ in range(count)])
        payload = now_ns.to_bytes(8, "big").ljust(PAYLOAD_BYTES, b"\0")
        told = await channel.call(m.Enqueue([payload] * count, queue, block, ["noop"], encodings=[m.BYTES]), 60)
        if any(told.outcomes):
            raise RuntimeError(f"not all of {count} tasks were admitted as new")

    async def go_on() -> None:
        for number in numbers:
            await send(number)

    started_ns = time.monotonic_ns()
    if per_s:
        for at, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, started_ns / 1e9 + at / per_s - time.monotonic()))
            await send(number)
    else:
        await asyncio.gather(*(go_on() for _ in range(IN_FLIGHT)))
    last_words(started_ns=started_ns, ended_ns=time.monotonic_ns())
    await channel.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
