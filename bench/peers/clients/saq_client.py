"""SAQ on Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, chunks, mark, payload, working
from saq import Queue, Worker

TTL_S = 60 if RESULTS else -1  # -1: nothing is kept


async def work(context: Any, *, to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


class Queues:
    """Its queue is made on the loop that uses it."""

    async def open(self) -> None:
        self.queue = Queue.from_url(f"redis://{HOST}:{PORT}", max_concurrent_ops=SETTINGS["concurrent_ops"])
        await self.queue.connect()

    async def close(self) -> None:
        await self.queue.disconnect()

    async def one(self, n: int) -> None:
        await self.queue.enqueue("work", ttl=TTL_S, timeout=0, **payload(n))

    async def bulk(self, numbers: range) -> None:
        for chunk in chunks(numbers, SETTINGS["batch"]):
            await asyncio.gather(*(self.one(n) for n in chunk))

    async def answer(self, n: int) -> object:
        return await self.queue.apply("work", timeout=30, poll_interval=SETTINGS["result_poll"], ttl=TTL_S, **payload(n))


async def start() -> None:
    queues = Queues()
    await queues.open()
    await Worker(queues.queue, [("work", work)], concurrency=SETTINGS["concurrency"]).start()


if __name__ == "__main__":
    if working():
        uvloop.run(start())
    else:
        queues = Queues()
        Producer(queues.one, queues.bulk, queues.answer).run(queues.open, queues.close)
