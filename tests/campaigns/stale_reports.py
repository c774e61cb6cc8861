"""The storm of stale reports: workers that hold leases fall silent until all are lost, then all of them report at once.

    .venv/bin/python tests/campaigns/stale_reports.py --workers 100 --tasks 200

Workers are bare connections that speak frames.  Their tasks are, when the storm comes, waiting again (`waiting`), held by an heir (`held`), or
completed by the heir (`done`).  Each token is reported once: an ack, a fail or a release, every second frame flagged as sent again.  None may be
accepted, each must be told LEASE_LOST, and every task must end with the heir's result.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

sys.path.insert(0, str(Path(__file__).parents[2]))

from taskq import AsyncClient, ids, testing
from taskq.batch import FRAME_TASKS_MAX
from taskq.connection import hello
from taskq.core import messages as m
from taskq.protocol.codec import encode
from taskq.protocol.frames import RESENT
from taskq.protocol.framing import FrameDecoder

MOMENTS = ("waiting", "held", "done")
LEASE_S, HEARTBEAT_S = 1.0, 0.3
# nobody is cut off for his silence
SETTINGS: Any = {"lease": LEASE_S, "heartbeat": HEARTBEAT_S, "heartbeats_missed_max": 1_000, "durability": "os"}
LOOK_S = 0.02
FRAME_BYTES_MAX = 64 << 20


@attrs.define
class Storm:
    """What came of it: reports by the outcome that they were told, and tasks by what they are at the end."""

    told: Counter[str] = attrs.field(factory=Counter)
    ended: Counter[str] = attrs.field(factory=Counter)

    @property
    def stale_accepted(self) -> int:
        return self.told["ok"]


class BareWorker:
    """A worker session without a worker: it takes what it is given, and reports what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[bytes, bytes] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._seq = 0
        self._news = asyncio.Event()

    async def connect(self, address: str, queues: Sequence[str], tasks: int) -> None:
        host, _, port = address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._reading = asyncio.get_running_loop().create_task(self._read())
        await self.ask(hello("worker", self.name))
        await self.ask(m.Consume(list(queues), ["t"], tasks))
        self._writer.write(b"".join(encode(m.Credit(tasks))))

    async def _read(self) -> None:
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        while data := await self._reader.read(1 << 16):
            for frame in decoder.feed(data):
                if isinstance(frame.message, m.Deliver):
                    self.held.update(zip(ids.split(frame.message.ids, 16), ids.split(frame.message.tokens, 8), strict=True))
                    self._news.set()
                elif frame.seq in self._answers:
                    self._answers.pop(frame.seq).set_result(frame.message)

    async def ask(self, message: Any, flags: int = 0) -> Any:
        self._seq += 1
        answer = self._answers[self._seq] = asyncio.get_running_loop().create_future()
        self._writer.write(b"".join(encode(message, self._seq, flags)))
        return await answer

    async def holds(self, tasks: int) -> None:
        while len(self.held) < tasks:
            self._news.clear()
            await self._news.wait()

    async def beat(self) -> None:
        """Confirm what was received, and go on living."""
        await self.ask(m.Heartbeat(len(self.held), b"".join(self.held.values())))

    async def live(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(HEARTBEAT_S)

    async def ack(self, wanted: Sequence[bytes], flags: int = 0) -> bytes:
        tokens = b"".join(self.held[task_id] for task_id in wanted)
        answer: m.Reported = await self.ask(m.Ack([self.name.encode()] * len(wanted), b"".join(wanted), tokens, [m.BYTES]), flags)
        return answer.outcomes

    async def report(self, flags: int) -> bytes:
        """A third of each kind of report."""
        third = max(1, len(self.held) // 3)
        acked, failed, released = (list(self.held)[begin:end] for begin, end in ((0, third), (third, 2 * third), (2 * third, None)))
        outcomes = await self.ack(acked, flags)
        for wanted, message in ((failed, self._fail), (released, self._release)):
            if wanted:
                answer: m.Reported = await self.ask(message(b"".join(wanted), b"".join(self.held[task_id] for task_id in wanted)), flags)
                outcomes += answer.outcomes
        return outcomes

    def _fail(self, wanted: bytes, tokens: bytes) -> m.Fail:
        return m.Fail(wanted, tokens, [m.DISCARD], [0], ["Stale"], ["too late"])

    def _release(self, wanted: bytes, tokens: bytes) -> m.Release:
        return m.Release(wanted, tokens, [0])

    async def close(self) -> None:
        self._writer.close()
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading


async def storm(workers: int, tasks: int) -> Storm:
    """`workers` of them, a third for each moment, with `tasks` leases each."""
    found = Storm()
    async with (
        testing.broker(**SETTINGS) as node,
        AsyncClient(node.tcp) as client,
    ):
        late = [(BareWorker(f"late {number}"), MOMENTS[number % 3]) for number in range(workers)]
        wanted = Counter({moment: tasks * sum(each == moment for _, each in late) for moment in MOMENTS})
        handles = [handle for queue, count in wanted.items() for handle in await client.enqueue_many("t", [b""] * count, queue=queue)]
        for worker, moment in late:
            await worker.connect(node.tcp, [moment], tasks)
        await asyncio.gather(*(worker.holds(tasks) for worker, _ in late))
        await asyncio.gather(*(worker.beat() for worker, _ in late))
        while any(row["running"] for row in await client.queues()):
            await asyncio.sleep(LOOK_S)
        heir = BareWorker("heir")
        await heir.connect(node.tcp, MOMENTS[1:], len(handles))
        await heir.holds(wanted["held"] + wanted["done"])
        living = asyncio.get_running_loop().create_task(heir.live())
        done = {task_id for worker, moment in late if moment == "done" for task_id in worker.held}
        await _ack_all(heir, [task_id for task_id in heir.held if task_id in done])
        reports = await asyncio.gather(*(worker.report(RESENT * (number % 2)) for number, (worker, _) in enumerate(late)))
        found.told.update(
            {"ok": sum(each.count(m.REPORT_OK) for each in reports), "LEASE_LOST": sum(each.count(m.REPORT_LEASE_LOST) for each in reports)}
        )
        if not found.stale_accepted:  # else the heir would wait for what it can never get
            await heir.ask(m.Consume(list(MOMENTS), ["t"], len(handles)))
            await heir.holds(len(handles))
            await _ack_all(heir, [task_id for task_id in heir.held if task_id not in done])
        for handle in handles:
            info = await client.get(handle)
            found.ended[f"{info.state} {bytes(info.result_bytes).decode()}"] += 1
        living.cancel()
        for worker in (heir, *(worker for worker, _ in late)):
            await worker.close()
    return found


async def _ack_all(heir: BareWorker, wanted: Sequence[bytes]) -> None:
    """By queue, since a frame is about one."""
    by_slot: dict[int, list[bytes]] = {}
    for task_id in wanted:
        by_slot.setdefault(ids.slot_of_id(task_id), []).append(task_id)
    for some in by_slot.values():
        for begin in range(0, len(some), FRAME_TASKS_MAX):
            outcomes = await heir.ack(some[begin : begin + FRAME_TASKS_MAX])
            assert not any(outcomes), "the heir has lost a lease"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=200, help="for each worker")
    options = parser.parse_args()
    found = asyncio.run(storm(options.workers, options.tasks))
    print(f"{found.told.total():,} stale reports: {found.stale_accepted} accepted, {found.told['LEASE_LOST']:,} told LEASE_LOST; {dict(found.ended)}")
    return bool(found.stale_accepted or len(found.ended) != 1)


if __name__ == "__main__":
    sys.exit(main())
