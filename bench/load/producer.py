"""The producer of the load bench, a process of its own: `python producer.py MODE HOST:PORT TASKS PAYLOAD_BYTES [TASK_TYPE [TASKS_PER_S]]`.

It connects, says `ready`, waits for a line on stdin, and works; its last words are the times of the first enqueue and the last answer, and the id
of the last task.  Like the broker and the worker it runs on uvloop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from children import last_words, make_payload

from taskq import AsyncClient, Client
from taskq.connection import Channel
from taskq.handle import TaskHandle

QUEUE = "bench"
COROUTINES = 1_000
BATCH_TASKS = 1_000
BATCHES_IN_FLIGHT = 16
LOW_LOAD_PER_S = 100
TICK_S = 0.001

Found = dict[str, Any]


def wait_for_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def one_by_one(url: str, tasks: int, payload: dict[str, bytes]) -> Found:
    """Blocking calls, each waits for its answer."""
    with Client(url) as client:
        client.queues()
        wait_for_go()
        started_ns = time.monotonic_ns()
        for _ in range(tasks):
            last = client.enqueue("noop", payload, queue=QUEUE)
        return {"started_ns": started_ns, "ended_ns": time.monotonic_ns(), "last": last.id}


async def coroutines(client: AsyncClient, tasks: int, payload: dict[str, bytes]) -> Found:
    """Many coroutines, each enqueues one task after the other."""
    numbers = iter(range(tasks))

    async def enqueue() -> TaskHandle[Any] | None:
        last = None
        for _ in numbers:
            last = await client.enqueue("noop", payload, queue=QUEUE)
        return last

    started_ns = time.monotonic_ns()
    found = await asyncio.gather(*(enqueue() for _ in range(COROUTINES)))
    return {"started_ns": started_ns, "ended_ns": time.monotonic_ns(), "last": next(last.id for last in reversed(found) if last)}


async def batches(client: AsyncClient, tasks: int, payload: dict[str, bytes], task_type: str = "noop") -> Found:
    """A few coroutines, each enqueues one batch after the other."""
    starts = iter(range(0, tasks, BATCH_TASKS))
    last: dict[int, TaskHandle[Any]] = {}

    async def enqueue() -> None:
        for start in starts:
            count = min(BATCH_TASKS, tasks - start)
            last[start] = (await client.enqueue_many(task_type, [payload] * count, queue=QUEUE))[-1]

    started_ns = time.monotonic_ns()
    await asyncio.gather(*(enqueue() for _ in range(BATCHES_IN_FLIGHT)))
    return {"started_ns": started_ns, "ended_ns": time.monotonic_ns(), "last": last[max(last)].id}


async def low_load(client: AsyncClient, tasks: int, payload: dict[str, bytes]) -> Found:
    """Tasks at fixed times, whatever became of those before; for each, the µs from the call to the start of its function."""
    sent_ns: list[int] = []
    pending: list[asyncio.Task[TaskHandle[Any]]] = []
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    for number in range(tasks):
        await asyncio.sleep(begin_s + number / LOW_LOAD_PER_S - loop.time())
        sent_ns.append(time.monotonic_ns())
        pending.append(loop.create_task(client.enqueue("stamp", payload, queue=QUEUE)))
    handles = await asyncio.gather(*pending)
    started_ns = [await handle.result(timeout=30) for handle in handles]
    return {"us": [(started - sent) / 1000 for started, sent in zip(started_ns, sent_ns, strict=True)], "last": handles[-1].id}


async def stages(client: AsyncClient, tasks: int, payload: dict[str, bytes]) -> Found:
    """One task every 10 ms; for each, the µs in the producer, from there to the worker, and in the worker."""
    left_ns = 0
    write = Channel._write

    def noted(self: Channel, transport: asyncio.Transport) -> None:
        nonlocal left_ns
        write(self, transport)
        left_ns = time.monotonic_ns()

    Channel._write = noted  # type: ignore[method-assign]
    rows: list[tuple[int, int, TaskHandle[Any]]] = []
    await (await client.enqueue("stages", payload, queue=QUEUE)).result(timeout=30)
    for _ in range(tasks - 1):
        await asyncio.sleep(1 / LOW_LOAD_PER_S)
        begin_ns = time.monotonic_ns()
        handle = await client.enqueue("stages", payload, queue=QUEUE)
        rows.append((begin_ns, left_ns, handle))
    us: dict[str, list[float]] = {"producer": [], "broker": [], "worker": []}
    for begin_ns, sent_ns, handle in rows:
        arrived_ns, started_ns = await handle.result(timeout=30)
        us["producer"].append((sent_ns - begin_ns) / 1000)
        us["broker"].append((arrived_ns - sent_ns) / 1000)
        us["worker"].append((started_ns - arrived_ns) / 1000)
    return {"stages_us": us, "last": handle.id}


async def at_rate(client: AsyncClient, tasks: int, payload: dict[str, bytes], task_type: str, per_s: str) -> Found:
    """Tasks at a steady rate, those of a millisecond in one call, whatever became of those before.  Each carries the time of its call."""
    pending: list[asyncio.Task[list[TaskHandle[Any]]]] = []
    loop = asyncio.get_running_loop()
    rate, sent = float(per_s), 0
    started_ns = time.monotonic_ns()
    begin_s = loop.time()
    while sent < tasks:
        await asyncio.sleep(TICK_S)
        due = min(tasks, int((loop.time() - begin_s) * rate))
        if due > sent:
            stamped = {**payload, "sent_ns": time.monotonic_ns()}
            pending.append(loop.create_task(client.enqueue_many(task_type, [stamped] * (due - sent), queue=QUEUE)))
            sent = due
    ended_ns = time.monotonic_ns()
    handles = await asyncio.gather(*pending)
    return {"started_ns": started_ns, "ended_ns": ended_ns, "last": handles[-1][-1].id}


async def round_trips(client: AsyncClient, tasks: int, payload: dict[str, bytes]) -> Found:
    """One task after the other, each with its result; the µs of each."""
    us: list[float] = []
    for _ in range(tasks):
        begin_ns = time.monotonic_ns()
        handle = await client.enqueue("stamp", payload, queue=QUEUE)
        await handle.result(timeout=30)
        us.append((time.monotonic_ns() - begin_ns) / 1000)
    return {"us": us, "last": handle.id}


ASYNC_MODES: dict[str, Callable[..., Awaitable[Found]]] = {
    "coroutines": coroutines,
    "batches": batches,
    "low_load": low_load,
    "at_rate": at_rate,
    "stages": stages,
    "round_trips": round_trips,
}


async def with_client(mode: str, url: str, tasks: int, payload: dict[str, bytes], *more: str) -> Found:
    async with AsyncClient(url) as client:
        await client.queues()
        await asyncio.to_thread(wait_for_go)
        return await ASYNC_MODES[mode](client, tasks, payload, *more)


def main() -> None:
    mode, url, tasks, payload_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    payload = make_payload(payload_bytes)
    if mode == "one_by_one":
        last_words(**one_by_one(url, tasks, payload))
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        last_words(**runner.run(with_client(mode, url, tasks, payload, *sys.argv[5:])))


if __name__ == "__main__":
    main()
