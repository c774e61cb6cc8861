"""A load for brokers that do not end well: a program that starts a broker, gives it work of every kind, ends it and starts it again.

    python storm.py DATA MARKS SEED MODE FIRST END [END …]        END: seconds and a signal, such as 1.5KILL or 2TERM

FIRST is the number of the first task.  Exit code 3: a broker did not start.
Whatever it is told by the broker becomes a line in MARKS, at once and with one write: `E 17 ID` (task 17 was acknowledged), `D 17 ID` (its result
was shown), `F …` (it was shown as failed), `C …` (its cancelling was acknowledged), `G …` (an enqueue that had no answer was sent again, and
the task was there).  A payload can be told from its number, so a file that
comes out of a storm can be checked without anything else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from programs import IN_CODE, READY, WAIT_S, environment

from taskq import App, AsyncClient, TaskFailed
from taskq.errors import TaskqError
from taskq.testing import worker

QUEUE = "storm"
NO_START = 3
PRODUCERS = 4
BATCH_MAX = 20
PAUSE_S_MAX = 0.1
LARGE_SHARE = 0.03
# no ballast: nothing of it matters, and it is the one file that is made without writing
SETTINGS = (
    "--ballast-bytes",
    "0",
    "--journal-segment-bytes",
    "64KiB",
    "--shards",
    "2",
    "--drain",
    "0",
    "--log-level",
    "warning",
    "--http",
    "127.0.0.1:0",
)
app = App()


@cache
def data_of(number: int) -> bytes:
    """The bytes of a task's payload."""
    rng = random.Random(number)
    return rng.randbytes(rng.randrange(4_000, 30_000) if rng.random() < LARGE_SHARE else rng.randrange(200))


def payload_of(number: int) -> dict[str, Any]:
    return {"number": number, "data": data_of(number)}


def result_of(number: int) -> bytes:
    return data_of(number)[::-1]


@app.task(queue=QUEUE)
async def turn(number: int, data: bytes) -> bytes:
    return data[::-1]


@app.task(queue=QUEUE, max_attempts=1)
async def break_down(number: int, data: bytes) -> None:
    raise ValueError(str(number))


class Storm:
    def __init__(self, client: AsyncClient, marks: Path, rng: random.Random) -> None:
        self.client, self.rng = client, rng
        self.marks = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.number = 0
        self.watched: set[asyncio.Task[None]] = set()
        self.over = False

    def mark(self, letter: str, number: int, task_id: str) -> None:
        os.write(self.marks, f"{letter} {number} {task_id}\n".encode())

    async def produce(self) -> None:
        kinds = (self.turn, self.turn, self.keep, self.break_down, self.cancel)
        while not self.over:
            with suppress(TaskqError):
                await self.rng.choice(kinds)()
            await asyncio.sleep(self.rng.uniform(0, PAUSE_S_MAX))

    async def enqueue(self, task_type: str, count: int, **options: Any) -> list[tuple[int, Any]]:
        numbers = range(self.number, self.number + count)
        self.number += count
        handles = await self.client.enqueue_many(task_type, [payload_of(number) for number in numbers], deadline=30, **options)
        for number, handle in zip(numbers, handles, strict=True):
            self.mark("E", number, handle.id)
            if not handle.created:
                self.mark("G", number, handle.id)
        return list(zip(numbers, handles, strict=True))

    async def turn(self) -> None:
        for number, handle in await self.enqueue("turn", self.rng.randint(1, BATCH_MAX), queue=QUEUE, priority=self.rng.randint(0, 9)):
            self.watch(self.see(number, handle))

    async def keep(self) -> None:
        later = {"delay": "1h"} if self.rng.random() < 0.3 else {"queue": "kept"}
        await self.enqueue("keep", self.rng.randint(1, 5), **later)

    async def break_down(self) -> None:
        number, self.number = self.number, self.number + 1
        options = {"queue": QUEUE, "max_attempts": 1, "key": f"key {number}", "deadline": 30}
        handle = await self.client.enqueue("break_down", payload_of(number), **options)
        self.mark("E", number, handle.id)
        self.watch(self.see(number, handle))

    async def cancel(self) -> None:
        for number, handle in await self.enqueue("keep", 2, queue="kept"):
            if await self.client.cancel(handle) == "cancelled":
                self.mark("C", number, handle.id)

    async def see(self, number: int, handle: Any) -> None:
        try:
            result = await self.client.result(handle, timeout=60)
            assert result == result_of(number)
            self.mark("D", number, handle.id)
        except TaskFailed:
            self.mark("F", number, handle.id)
        except TaskqError:
            pass

    def watch(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.watched.add(task)
        task.add_done_callback(self.watched.discard)


def start(data: str, mode: str, port: int) -> subprocess.Popen[str]:
    options = ("--listen", f"127.0.0.1:{port}", "--data", data, "--durability", mode, *SETTINGS)
    command = [sys.executable, "-c", IN_CODE.format("broker"), *options]
    broker = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert broker.stdout is not None
    if not re.match(READY, broker.stdout.readline()):
        try:
            broker.wait(WAIT_S)  # it has closed its output, and is about to say by its code why
        except subprocess.TimeoutExpired:
            broker.kill()
        os._exit(NO_START)
    return broker


async def main(data: str, marks: str, seed: str, mode: str, first: str, *ends: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    broker = await asyncio.to_thread(start, data, mode, port)
    try:
        async with AsyncClient(f"127.0.0.1:{port}", deadline=30) as client, worker(app, SimpleNamespace(tcp=f"127.0.0.1:{port}")):
            storm = Storm(client, Path(marks), random.Random(seed))
            storm.number = int(first)
            producers = [asyncio.ensure_future(storm.produce()) for _ in range(PRODUCERS)]
            for index, end in enumerate(ends):
                seconds, name = re.fullmatch(r"([\d.]+)([A-Z]+)", end).groups()
                death = asyncio.ensure_future(asyncio.to_thread(broker.wait))
                for ended in (await asyncio.wait([*producers, death], timeout=float(seconds), return_when=asyncio.FIRST_COMPLETED))[0]:
                    ended.result()
                broker.send_signal(getattr(signal, f"SIG{name}"))
                await death
                if index + 1 < len(ends):
                    broker = await asyncio.to_thread(start, data, mode, port)
            storm.over = True
            os._exit(0)
    finally:
        broker.kill()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main(*sys.argv[1:]))
