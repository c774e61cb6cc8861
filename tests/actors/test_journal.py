"""Output commit: replies leave in order, each when every record up to its own has reached the broker's level, and never after an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from taskq.actors.journal import JournalActor
from taskq.core.admission import Admission
from taskq.core.effects import Reply
from taskq.core.enqueue import error_of
from taskq.core.messages import FSYNC, MEMORY, OS, Ok
from taskq.core.records import Dropped
from taskq.errors import NotFound, Overloaded
from taskq.storage.journal import FileJournal

WAIT_S = 10.0
RECORD = Dropped(1, 1_700_000_000_000, bytes(16))


class GatedJournal(FileJournal):
    """A journal on a disk that syncs when the test lets it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.syncing = threading.Event()
        self.batches: list[int] = []
        self.error: OSError | None = None

    def write(self, first_lsn: int, records: Sequence[Sequence[Any]]) -> None:
        self.batches.append(len(records))
        super().write(first_lsn, records)

    def sync(self) -> None:
        self.syncing.set()
        assert self.gate.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        super().sync()


class House:
    """The actor with everything around it."""

    def __init__(self, path: Path, level: int) -> None:
        self.journal = GatedJournal(path)
        list(self.journal.read(0))
        self.journal.start(1, 1)
        self.left: list[int] = []
        self.admission = Admission()
        self.crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.news = asyncio.Event()
        self.actor = JournalActor(asyncio.get_running_loop(), self.crash.set_exception, self.journal, level, 1, self.admission, 1_000, self._deliver)

    def _deliver(self, replies: list[Reply]) -> None:
        self.left += [reply.seq for reply in replies]
        self.news.set()

    def submit(self, *seqs: int, records: int = 1) -> None:
        self.actor.submit([RECORD] * records, [Reply(1, seq, 0, Ok()) for seq in seqs])

    async def until_left(self, count: int) -> list[int]:
        async with asyncio.timeout(WAIT_S):
            while len(self.left) < count:
                self.news.clear()
                await self.news.wait()
        return self.left

    async def until_syncing(self) -> None:
        assert await asyncio.to_thread(self.journal.syncing.wait, WAIT_S)


@pytest.fixture
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    house = House(tmp_path / "journal", getattr(request, "param", FSYNC))
    yield house
    house.journal.gate.set()
    if house.crash.done():
        assert house.crash.exception() is not None
        await house.actor.abandon()
    else:
        await house.actor.stop(empty=True)
        assert list((tmp_path / "journal").iterdir()) == []


async def test_a_reply_leaves_only_after_its_record_is_synced(house: House) -> None:
    house.submit(1)
    await house.until_syncing()
    assert house.left == []
    house.journal.gate.set()
    assert await house.until_left(1) == [1]


async def test_what_piles_up_during_a_sync_is_the_next_batch(house: House) -> None:
    house.submit(1)
    await house.until_syncing()
    house.submit(2, records=3)
    house.submit(3, records=2)
    house.journal.gate.set()
    assert await house.until_left(3) == [1, 2, 3]
    assert house.journal.batches == [1, 5]


async def test_a_reply_without_a_record_waits_for_the_records_before_it(house: House) -> None:
    house.submit(1)
    house.submit(2, records=0)
    await house.until_syncing()
    assert house.left == []
    house.journal.gate.set()
    assert await house.until_left(2) == [1, 2]


@pytest.mark.parametrize("house", [OS], indirect=True)
async def test_at_level_os_a_reply_leaves_when_it_is_written_and_the_sync_follows(house: House) -> None:
    house.submit(1)
    assert await house.until_left(1) == [1]
    assert house.actor.synced_lsn == 0
    house.journal.gate.set()
    await house.actor.synced(1)
    assert house.actor.synced_lsn == 1


@pytest.mark.parametrize("house", [MEMORY], indirect=True)
async def test_at_level_memory_a_reply_leaves_at_once(house: House) -> None:
    house.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert house.left == [1]


async def test_a_backlog_over_its_limit_refuses_new_tasks_until_it_is_written(house: House) -> None:
    house.submit(1)
    await house.until_syncing()
    house.submit(2, records=100)
    await asyncio.sleep(0)
    assert house.admission.refusal is not None
    assert (house.admission.refusal.code, house.admission.refusal.retryable) == ("OVERLOADED", True)
    house.journal.gate.set()
    await house.until_left(2)
    assert house.admission.refusal is None


async def test_after_an_error_of_the_disk_nothing_leaves(house: House) -> None:
    house.journal.error = OSError(5, "Input/output error")
    house.submit(1)
    house.journal.gate.set()
    with pytest.raises(OSError, match="Input/output"):
        await asyncio.wait_for(asyncio.shield(house.crash), WAIT_S)
    house.submit(2)
    await asyncio.sleep(0)
    assert house.left == []


async def test_an_error_of_the_disk_ends_a_stop_and_whoever_waits_for_a_sync(house: House) -> None:
    house.submit(1)
    waiting = asyncio.ensure_future(house.actor.synced(1))
    stopping = asyncio.ensure_future(house.actor.stop(empty=False))
    await asyncio.sleep(0)
    house.journal.error = OSError(28, "No space left on device")
    house.journal.gate.set()
    for each in (waiting, stopping, house.crash):
        with pytest.raises(OSError, match="No space"):
            await asyncio.wait_for(asyncio.shield(each), WAIT_S)
    with pytest.raises(OSError, match="No space"):
        await asyncio.wait_for(house.actor.synced(1), WAIT_S)


@pytest.mark.parametrize("house", [MEMORY], indirect=True)
async def test_a_bug_in_handing_replies_over_is_a_crash(house: House) -> None:
    def broken(replies: list[Reply]) -> None:
        raise ZeroDivisionError

    house.actor._deliver = broken
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    house.submit(1)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(asyncio.shield(house.crash), WAIT_S)


async def test_who_is_refused_for_load_is_told_at_once_and_not_when_the_disk_is_done(house: House) -> None:
    house.submit(1)
    await house.until_syncing()
    house.actor.submit([], [Reply(1, 2, 0, error_of(Overloaded())), Reply(1, 3, 0, error_of(NotFound()))])
    assert await house.until_left(1) == [2]
    house.journal.gate.set()
    assert await house.until_left(3) == [2, 1, 3]


async def test_one_write_that_takes_too_long_refuses_new_tasks_until_it_is_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.submit(1)
    await house.until_syncing()
    house.actor.look()
    assert house.admission.refusal is None
    monkeypatch.setattr(house.actor, "_delay_max_s", -1.0)
    house.actor.look()
    refusal = house.admission.refusal
    assert refusal is not None and (refusal.code, refusal.retryable, refusal.retry_after_ms) == ("OVERLOADED", True, 500)
    house.journal.gate.set()
    await house.until_left(1)
    assert house.admission.refusal is None


async def test_a_new_file_is_begun_when_it_is_asked_for_so_that_the_old_one_can_go(house: House) -> None:
    house.journal.gate.set()
    for seq in (1, 2):
        house.submit(seq)
        await house.until_left(seq)
        house.actor.roll()
        house.actor.roll()
    house.actor.drop(1)
    house.submit(3)
    await house.until_left(3)
    assert [path.name for path in sorted(house.journal.path.iterdir())] == [f"{2:020d}.log", f"{3:020d}.log"]
