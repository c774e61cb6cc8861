"""arq on Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from arq import Worker, create_pool, func
from arq.connections import RedisSettings
from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, chunks, mark, payload, working

REDIS = RedisSettings(HOST, PORT)
RESULT_S = 60 if RESULTS else 0


async def work(context: Any, to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


class Pool:
    """Its pool is made on the loop that uses it."""

    async def open(self) -> None:
        self.pool = await create_pool(REDIS)

    async def close(self) -> None:
        await self.pool.aclose()

    async def one(self, n: int) -> Any:
        return await self.pool.enqueue_job("work", **payload(n))

    async def bulk(self, numbers: range) -> None:
        for chunk in chunks(numbers, SETTINGS["batch"]):
            await asyncio.gather(*(self.one(n) for n in chunk))

    async def answer(self, n: int) -> object:
        return await (await self.one(n)).result(timeout=30, poll_delay=SETTINGS["poll_delay"])


async def start() -> None:
    worker = Worker(
        [func(work, name="work", keep_result=RESULT_S)],
        redis_settings=REDIS,
        poll_delay=SETTINGS["poll_delay"],
        max_jobs=SETTINGS["max_jobs"],
        queue_read_limit=SETTINGS["max_jobs"],
        keep_result=RESULT_S,
    )
    await worker.async_run()


if __name__ == "__main__":
    if working():
        uvloop.run(start())
    else:
        pool = Pool()
        Producer(pool.one, pool.bulk, pool.answer).run(pool.open, pool.close)
