"""taskq: the worker's own command, an async task, batches of 1,000 with 16 in flight."""

from __future__ import annotations

import asyncio
import os
import sys

from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, chunks, mark, payload, working

from taskq import App, AsyncClient, Client

QUEUE = "bench"
URL = f"{HOST}:{PORT}"
app = App()


@app.task(queue=QUEUE, name="work")
async def work(to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


class Clients:
    """Both clients: `client` says which enqueues one by one."""

    def open(self) -> None:
        self.blocking = Client(URL)
        self.client = AsyncClient(URL)

    async def close(self) -> None:
        self.blocking.close()
        await self.client.close()

    def one(self, n: int) -> object:
        client = self.client if SETTINGS["client"] == "async" else self.blocking
        return client.enqueue("work", payload(n), queue=QUEUE)

    async def bulk(self, numbers: range) -> None:
        batches = chunks(numbers, SETTINGS["batch"])

        async def enqueue() -> None:
            for batch in batches:
                await self.client.enqueue_many("work", [payload(n) for n in batch], queue=QUEUE)

        await asyncio.gather(*(enqueue() for _ in range(SETTINGS["in_flight"])))

    async def answer(self, n: int) -> object:
        handle = await self.client.enqueue("work", payload(n), queue=QUEUE)
        return await handle.result(timeout=30)


if __name__ == "__main__":
    if working():
        command = os.path.join(os.path.dirname(sys.executable), "taskq-worker")
        os.execv(sys.executable, [sys.executable, command, "--connect", URL, "--app", "taskq_client"])
    clients = Clients()
    Producer(clients.one, clients.bulk, clients.answer).run(clients.open, clients.close)
