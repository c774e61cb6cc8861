"""The producer of the flatness bench, a process of its own:  python producer.py HOST:PORT PAYLOAD_BYTES

It connects, says `ready`, and does what each line on stdin says, a JSON object with the fields of `Wish`; its answer is a JSON line with the
seconds from the first frame to the last durable answer.  Every task carries its number, so that the worker can tell what ran in which order; the
frames are made before the time begins to count only as far as they are in flight, so a rate is that of a client that makes its own.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import attrs
import msgpack
import uvloop
from children import last_words

from taskq import AsyncClient
from taskq.core.messages import CREATED, MSGPACK
from taskq.options import Options

QUEUE = "q0"  # as in notes.py, and the first of those of crowd.py
FRAME_TASKS = 1_000
FRAMES_IN_FLIGHT = 16
DEADLINE_S = 120.0
DAY_MS = 86_400_000
CLUSTERS, CLUSTER_MS = 10, 60_000


@attrs.frozen
class Wish:
    """`tasks` from number `first` on.  `due`: a name in DUES.  `due_ms`: what that takes, a Unix time."""

    tasks: int
    first: int = 0
    priority: int = 5
    due: str = "now"
    due_ms: int = 0


def _clustered(wish: Wish, now_ms: int, rng: random.Random) -> int:
    """Ten clusters, a day to ten days away, each within one minute."""
    return rng.randrange(1, CLUSTERS + 1) * DAY_MS + rng.randrange(CLUSTER_MS)


# due time → the delay of one task in milliseconds
DUES: dict[str, Callable[[Wish, int, random.Random], int]] = {
    "now": lambda wish, now_ms, rng: 0,
    "at": lambda wish, now_ms, rng: max(1, wish.due_ms - now_ms),
    "clustered": _clustered,
    "uniform": lambda wish, now_ms, rng: DAY_MS + rng.randrange(30 * DAY_MS),
}


async def fulfil(client: AsyncClient, wish: Wish, data: bytes, rng: random.Random) -> dict[str, Any]:
    """Enqueue, a few frames ahead of the answers.  `frames`: their first numbers as they were answered, which is the order in which the broker
    has them: one that it refused for a while comes later."""
    firsts = iter(range(wish.first, wish.first + wish.tasks, FRAME_TASKS))
    answered: list[int] = []
    delay_of = DUES[wish.due]
    plain = Options(QUEUE, wish.priority)

    async def enqueue() -> None:
        for first in firsts:
            numbers = range(first, min(first + FRAME_TASKS, wish.first + wish.tasks))
            items = [(msgpack.packb({"n": number, "data": data}), MSGPACK) for number in numbers]
            options = [plain]
            if wish.due != "now":
                now_ms = time.time_ns() // 1_000_000
                options = [Options(QUEUE, wish.priority, delay_ms=delay_of(wish, now_ms, rng)) for _ in numbers]
            told = await client._open().call(client._message(QUEUE, items, ["note"], options), DEADLINE_S)
            if set(told.outcomes) != {CREATED}:
                raise RuntimeError(f"not every task of a frame was admitted: {told.errors[:1]}")
            answered.append(first)

    began_s = time.monotonic()
    await asyncio.gather(*(enqueue() for _ in range(FRAMES_IN_FLIGHT)))
    return {"seconds": time.monotonic() - began_s, "frames": answered}


async def serve(url: str, payload_bytes: int) -> None:
    data, rng = bytes(max(0, payload_bytes - len(msgpack.packb({"n": 1 << 32, "data": b""})))), random.Random(1)
    async with AsyncClient(url) as client:
        await client.queues()
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            wish = Wish(**json.loads(line))
            last_words(**await fulfil(client, wish, data, rng))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1], int(sys.argv[2])))
