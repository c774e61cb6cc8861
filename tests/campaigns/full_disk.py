"""A disk that fills up for real:  python tests/campaigns/full_disk.py --cycles 20 [--first 1]     (root: it mounts a tmpfs of 64 MiB for each cycle)

A cycle of an odd seed: producers and a worker on a real broker, until it refuses with DISK_LOW.  Then it must be alive, some space must be left, and
what runs must be able to end.  Then something else fills the disk to the last byte: the broker lives on its ballast, or stops.  Then there is space:
it admits again, without a restart if it lived.  Then it is killed and started again, and everything that it ever acknowledged must be there, but
for tasks that ran and were dropped early to make room.

A cycle of an even seed: the disk is filled by something else in the middle of the load, which may well be the wall for the broker.

Each cycle is one line of the ledger; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

sys.path.insert(0, str(Path(__file__).parents[1]))

from programs import IN_CODE, READY, Program, environment

from campaigns import ledger
from taskq import AsyncClient, TaskqError
from taskq.client import EnqueueError
from taskq.errors import BrokerUnavailable, DiskLow, NotFound

DISK_MIB = 64
OTHER_PART = 4  # of it is taken by what can be deleted later, so that there is space again
PRODUCERS = 3
BATCH = 20
HELD = 20
# a refusal that lasts: meanwhile journal and store give back what they can
PATIENCE_S = 4.0
AGAIN_S = 20.0
APP = """
import asyncio
from pathlib import Path
from taskq import App
app = App()

@app.task(queue="quick")
async def echo(number: int, text: str) -> int:
    with open("echoed", "a") as echoed: echoed.write(f"{number}\\n")
    return number

@app.task(queue="held")
async def hold(number: int, path: str) -> int:
    with open(path + ".begun", "a") as begun: begun.write("x")
    while not Path(path).exists(): await asyncio.sleep(0.02)
    return number
"""


@attrs.define
class Outcome:
    """What one cycle found.  `free_kib`: what was left when the broker refused.  `lived`: it outlived a disk without a byte.  `started_full`: it
    had not, and could be started again while the disk was full.  `dropped`: tasks that had run, and are gone."""

    acknowledged: int = 0
    completed: int = 0
    free_kib: int = 0
    refused_after_ms: int = 0
    lived: int = 0
    started_full: int = 0
    again_ms: int = 0
    dropped: int = 0
    lost: int = 0
    wrong: list[str] = attrs.field(factory=list)


@contextmanager
def disk(size_mib: int) -> Iterator[Path]:
    """A small disk of its own."""
    if os.geteuid() != 0:
        raise PermissionError("only root can mount a disk: run it as root")
    with tempfile.TemporaryDirectory(prefix="taskq-full-disk-") as name:
        folder = Path(name) / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)], check=True, timeout=20)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def free_kib(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize // 1024


class Cycle:
    """One cycle on one disk."""

    def __init__(self, folder: Path, seed: int, durability: str, patience_s: float) -> None:
        self.patience_s = patience_s
        self.seed = seed
        self.folder, self.rng, self.durability = folder, random.Random(seed), durability
        self.home = folder.parent
        self.outcome = Outcome()
        self.acknowledged: dict[str, int] = {}
        self.completed: dict[str, int] = {}
        self.address = "127.0.0.1:0"
        self._programs: list[Program] = []

    # ---- programs

    def _start(self, name: str, *arguments: str) -> Program:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_CODE.format(name), *arguments],
            cwd=self.home,
            env={name: value for name, value in environment().items() if name != "TASKQ_BALLAST_BYTES"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._programs.append(Program(process))
        return self._programs[-1]

    def start_broker(self) -> None:
        options = ("--listen", self.address, "--http", "127.0.0.1:0", "--data", str(self.folder / "data"), "--durability", self.durability)
        self.broker = self._start("broker", *options)
        ready = self.broker.wait_for(READY)
        self.address, self.http = ready["tcp"], ready["http"]

    def discard(self) -> None:
        for program in self._programs:
            program.discard()

    # ---- load

    async def produce(self, client: AsyncClient, seed: int) -> None:
        """Enqueue until the disk is low.  What was acknowledged is remembered, in a batch that was refused in part as well."""
        rng, number = random.Random(seed), seed << 32
        while True:
            size = rng.choice([40, 400, 4_000, 20_000])
            payloads = [{"number": number + at, "text": rng.randbytes(size // 2).hex()} for at in range(BATCH)]
            task_type, queue = rng.choice([("echo", "quick"), ("nobody", "waiting")])
            try:
                handles: Sequence[Any] = await client.enqueue_many(task_type, payloads, queue=queue, deadline=self.patience_s)
            except EnqueueError as error:
                handles = error.handles
            except (DiskLow, BrokerUnavailable):
                return
            self.acknowledged.update((handle.id, number + at) for at, handle in enumerate(handles) if handle is not None)
            number += BATCH

    async def hold(self, client: AsyncClient, name: str) -> list[Any]:
        """Tasks that run until a file is there."""
        path = self.home / name
        handles = [await client.enqueue("hold", {"number": number, "path": str(path)}, queue="held") for number in range(HELD)]
        self.acknowledged.update((handle.id, number) for number, handle in enumerate(handles))
        begun = path.with_name(path.name + ".begun")
        while not begun.exists() or len(begun.read_text()) < HELD:
            await asyncio.sleep(0.02)
        return handles

    async def let_go(self, client: AsyncClient, name: str, handles: list[Any]) -> None:
        (self.home / name).write_text("")
        results = await asyncio.gather(*(client.result(handle, timeout=30) for handle in handles))
        self.completed.update((handle.id, result) for handle, result in zip(handles, results, strict=True))

    # ---- the cycle

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(self.address, deadline=10) as client:
            yield client

    async def run(self) -> Outcome:
        other, rest = self.folder / "other", self.folder / "rest"
        other.write_bytes(bytes((free_kib(self.folder) << 10) // OTHER_PART))
        (self.home / "app_of_disk.py").write_text(APP)
        self.start_broker()
        self._start("worker", "--connect", self.address, "--app", "app_of_disk", "--concurrency", str(3 * HELD))
        async with self._client() as client:
            first, second = await self.hold(client, "first"), await self.hold(client, "second")
            if self.seed % 2:
                await self.fill(client)
                await self.let_go(client, "first", first)
                await asyncio.to_thread(fill, rest)
                await self.end_on_ballast(client, second)
            else:
                await self.rush(client, rest)
            rest.unlink()
            other.unlink()
            await self.back(client)
            await self.let_go(client, "first", first)
            await self.let_go(client, "second", second)
            await self.ballast_is_back()
        self.broker.signal(signal.SIGKILL)
        self.broker.end()
        self.start_broker()
        async with self._client() as client:
            await self.check(client)
        return self.outcome

    async def fill(self, client: AsyncClient) -> None:
        began_s = time.monotonic()
        await asyncio.gather(*(self.produce(client, self.rng.randrange(1, 1 << 20)) for _ in range(PRODUCERS)))
        self.outcome.refused_after_ms = round((time.monotonic() - began_s) * 1000)
        self.outcome.free_kib = free_kib(self.folder)
        self._expect(self.broker.process.poll() is None, "the broker ended before the disk was full")
        self._expect(self.outcome.free_kib > 0, "the broker refused only when the disk was full")
        status, body, headers = await asyncio.to_thread(self.post)
        refused = status == 503 and body["error"]["code"] == "DISK_LOW" and body["error"]["retryable"] and "Retry-After" in headers
        self._expect(refused, f"over HTTP: {status} {body}")

    def post(self) -> tuple[int, dict[str, Any], Any]:
        body = json.dumps({"task_type": "nobody", "queue": "waiting"}).encode()
        request = urllib.request.Request(f"http://{self.http}/enqueue", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error), error.headers

    async def rush(self, client: AsyncClient, rest: Path) -> None:
        """The disk becomes full from one moment to the next, in the middle of the load."""
        load = asyncio.gather(*(self.produce(client, self.rng.randrange(1, 1 << 20)) for _ in range(PRODUCERS)))
        await asyncio.sleep(self.rng.uniform(0.2, 2.0))
        await asyncio.to_thread(fill, rest)
        await load
        self.outcome.free_kib = free_kib(self.folder)
        self.outcome.lived = int(self.broker.process.poll() is None)
        if self.outcome.lived:
            return
        self._expect(self.broker.end() == 70, f"the broker ended with {self.broker.process.returncode}: {self.broker.errors[-500:]}")
        try:
            self.start_broker()
            self.outcome.started_full = 1
        except AssertionError:
            told = self.broker.end() in (1, 70) and "Traceback" not in self.broker.errors
            self._expect(told, f"a start on a full disk was no plain message: {self.broker.errors[-2000:]}")

    async def end_on_ballast(self, client: AsyncClient, handles: list[Any]) -> None:
        """Running tasks end on a disk that is full; the broker may stop over it, too."""
        ending = asyncio.ensure_future(self.let_go(client, "second", handles))
        stopped = asyncio.ensure_future(asyncio.to_thread(self.broker.process.wait))
        await asyncio.wait([ending, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.outcome.lived = int(self.broker.process.poll() is None)
        if self.outcome.lived:
            await ending
            self.broker.wait_for("the ballast of .* is given up", "stderr")
            return
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        self._expect(self.broker.end() == 70, f"the broker ended with {self.broker.process.returncode}: {self.broker.errors[-500:]}")

    async def back(self, client: AsyncClient) -> None:
        """There is space: it admits again by itself."""
        if self.broker.process.poll() is not None:
            self._expect(not self.outcome.lived, "the broker ended after all")
            self.start_broker()
        began_s = time.monotonic()
        while True:
            try:
                handle = await client.enqueue("echo", {"number": 7, "text": ""}, queue="quick", deadline=1.0)
                break
            except (DiskLow, BrokerUnavailable) as error:
                if time.monotonic() - began_s > AGAIN_S:
                    self._expect(False, f"nothing is admitted although there is space: {error}")
                    return
        self.outcome.again_ms = round((time.monotonic() - began_s) * 1000)
        self.acknowledged[handle.id] = 7
        self.completed[handle.id] = await client.result(handle, timeout=30)

    async def ballast_is_back(self) -> None:
        began_s = time.monotonic()
        while not (self.folder / "data" / "ballast").exists():
            if time.monotonic() - began_s > AGAIN_S:
                self._expect(False, "the ballast was not made again")
                return
            await asyncio.sleep(0.05)

    async def check(self, client: AsyncClient) -> None:
        """Everything acknowledged is there or had run, and what was shown as completed still is."""
        found = {}
        ids = list(self.acknowledged)
        for at in range(0, len(ids), 500):
            some = ids[at : at + 500]
            found.update(zip(some, await asyncio.gather(*(self._look(client, task_id) for task_id in some)), strict=True))
        self.outcome.acknowledged = len(ids)
        echoed = self.home / "echoed"
        ran = {int(line) for line in echoed.read_text().splitlines()} if echoed.exists() else set()
        gone = [task_id for task_id, info in found.items() if info is None]
        self.outcome.dropped = sum(task_id in self.completed or self.acknowledged[task_id] in ran for task_id in gone)
        self.outcome.lost = len(gone) - self.outcome.dropped
        for task_id, info in found.items():
            if info is None:
                continue
            if info.payload["number"] != self.acknowledged[task_id]:
                self._expect(False, f"task {task_id} has another payload")
            if task_id in self.completed and (info.state, info.result) != ("completed", self.completed[task_id]):
                self._expect(False, f"task {task_id} was completed, and is {info.state}")
        self.outcome.completed = sum(info is not None and info.state == "completed" for info in found.values())
        self._expect(not self.outcome.lost, f"{self.outcome.lost} acknowledged tasks are lost")

    async def _look(self, client: AsyncClient, task_id: str) -> Any:
        with suppress(NotFound):
            return await client.get(task_id)
        return None

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.outcome.wrong.append(otherwise)


def fill(path: Path) -> None:
    """Write until not a page is left."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def cycle(seed: int, durability: str = "fsync", disk_mib: int = DISK_MIB, patience_s: float = PATIENCE_S) -> Outcome:
    """One cycle from beginning to end."""
    with disk(disk_mib) as folder:
        one = Cycle(folder, seed, durability, patience_s)
        try:
            return asyncio.run(one.run())
        except (TaskqError, TimeoutError, AssertionError) as error:
            one.outcome.wrong.append(f"{type(error).__name__}: {error}")
            return one.outcome
        finally:
            one.discard()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=20, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default: after those in the ledger)")
    parser.add_argument("--durability", default="fsync", choices=("fsync", "os"))
    parser.add_argument("--dry", action="store_true", help="write nothing to the ledger")
    options = parser.parse_args()
    done = 0 if options.dry else ledger.sums("full-disk", "mode").get(options.durability, {}).get("cycles", 0)
    first, wrong = options.first or done + 1, 0
    for seed in range(first, first + options.cycles):
        outcome = cycle(seed, options.durability)
        wrong += bool(outcome.wrong)
        print(f"cycle {seed}: {outcome}", flush=True)
        if not options.dry:
            facts = attrs.asdict(outcome)
            ledger.record("full-disk", mode=options.durability, cycles=1, **{**facts, "wrong": len(outcome.wrong), "told": outcome.wrong})
    print(f"{options.cycles} cycles, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
