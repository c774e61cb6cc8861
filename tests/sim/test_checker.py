"""The checker is checked: each of these bugs, planted into the real code, is found within a few seeds, and by what it breaks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from sim import broker
from sim.disk import SimStore
from sim.history import Violation
from sim.world import simulate

from taskq.actors.journal import JournalActor
from taskq.actors.store import StoreActor
from taskq.core import effects as fx
from taskq.core import enqueue, grant, lease, report, shard, timer
from taskq.core.book import Book
from taskq.core.effects import FindLoad
from taskq.core.queue import Queue
from taskq.core.records import Ended
from taskq.core.session import Requests
from taskq.core.task import FINAL, PENDING, RUNNING
from taskq.ids import ID_BYTES, split
from taskq.storage.memory import MemoryJournal
from taskq.storage.rows import batch_of, size_names

SEEDS = 60

pytestmark = pytest.mark.timeout(300)

Patch = pytest.MonkeyPatch


def reply_before_sync(patch: Patch) -> None:
    """Answers leave as soon as their records are on the way."""

    def release(self: Any) -> None:
        leaving = [reply for _, replies in self._replies for reply in replies]
        self._replies.clear()
        if leaving:
            self._deliver(leaving)

    patch.setattr(JournalActor, "_release", release)


def flush_beyond_the_sync(patch: Patch) -> None:
    """The store does not wait for the journal."""

    async def synced(self: Any, lsn: int) -> None:
        return

    patch.setattr(JournalActor, "synced", synced)


def flush_claims_later_records(patch: Patch) -> None:
    """The LSN of a flush is taken after the wait, the rows before it."""

    async def flush(self: Any) -> None:
        taken = [(actor, actor.shard.take_dirty()) for actor in self._shards]
        tasks = [task for _, dirty in taken for task in dirty]
        if not tasks and self._journal.last_lsn == self.flushed_lsn:
            return
        sizes = {name: size for actor in self._shards for name, size in actor.shard.take_sizes().items()}
        batch = batch_of(tasks, {"next_seq": self._shared.sequence.following, **size_names(sizes)})
        await self._journal.synced(self._journal.last_lsn)
        batch.meta["applied_lsn"] = self.flushed_lsn = lsn = self._journal.synced_lsn
        await self._store.commit(batch)
        for actor, dirty in taken:
            actor.tell(fx.Command(0, 0, fx.Flushed(dirty)))
        self._journal.drop(lsn)

    patch.setattr(StoreActor, "_flush", flush)


def no_check_of_tokens(patch: Patch) -> None:
    """Whoever reports on a running task is believed."""

    def check_tokens(book: Book, command: fx.Command, known: Any) -> Any:
        ids = split(command.message.ids, ID_BYTES)
        good = [(at, task) for at, task_id in enumerate(ids) if (task := book.tasks.get(task_id)) is not None and task.state == RUNNING]
        outcomes = bytearray(b"\1" * len(ids))
        for at, _ in good:
            outcomes[at] = 0
        return good, outcomes

    patch.setattr(report, "_check_tokens", check_tokens)


def lsn_from_the_journal_alone(patch: Patch) -> None:
    """The next LSN follows the journal's end, not what the store has applied."""
    recover, start = broker.recover, MemoryJournal.start
    patch.setattr(MemoryJournal, "start", lambda self, epoch, next_lsn: start(self, epoch, self.end_lsn + 1))

    async def recovered(store: Any, files: Any) -> Any:
        found = await recover(store, files)
        return attrs.evolve(found, next_lsn=files.end_lsn + 1)

    patch.setattr(broker, "recover", recovered)


def keys_are_not_looked_up(patch: Patch) -> None:
    """A key that is not in memory counts as new."""
    unsure = enqueue._unsure

    def without_keys(*args: Any) -> FindLoad | None:
        load = unsure(*args)
        return attrs.evolve(load, keys=()) if load is not None and load.ids else None

    patch.setattr(enqueue, "_unsure", without_keys)


def cold_while_dirty(patch: Patch) -> None:
    """A task leaves memory though it changed after the flush took it."""

    def flushed(book: Book, command: fx.Command, now_ms: int, known: object) -> Any:
        for task in command.message.tasks:
            if task.state in FINAL or (task.state == PENDING and not task.hot):
                book.tasks.pop(task.id, None)
                book.keys.pop((task.queue, task.key or ""), None)
        return [], None

    patch.setitem(shard.DECIDE, fx.Flushed, flushed)


def too_early(patch: Patch) -> None:
    """Timers go off half a second before they are due."""
    patch.setattr(shard, "PASSES", (lambda book, now_ms: timer.promote(book, now_ms + 500), lease.expire, grant.match))


def tokens_begin_anew(patch: Patch) -> None:
    """A start does not go on with higher tokens."""
    shared = broker.SimNode._shared

    def begin(self: Any, recovered: Any) -> Any:
        made = shared(self, recovered)
        made.tokens.following = 1
        return made

    patch.setattr(broker.SimNode, "_shared", begin)


def cancel_is_forgotten_at_expiry(patch: Patch) -> None:
    """A run that was asked to stop and lost its worker runs again."""
    patch.setattr(lease, "_end", lambda task, outcome: (outcome, PENDING, 0))


def priorities_are_ignored(patch: Patch) -> None:
    """Lines are served in the order in which they came up."""
    patch.setattr(Queue, "ready", lambda self, task_types: [line for line in self.lines.values() if line.waiting and line.task_type in task_types])


def gap_is_ignored(patch: Patch) -> None:
    """A clock that jumped, or a broker that was stopped, costs every worker its leases."""
    patch.setattr(lease, "GAP_MS", 1 << 60)


def resent_is_ignored(patch: Patch) -> None:
    """What may have been sent before is taken for new."""
    ask = Requests.ask
    patch.setattr(Requests, "ask", lambda self, seq, message, resent=False, *who: ask(self, seq, message, False, *who))


def back_of_the_line(patch: Patch) -> None:
    """A task that is handed back goes behind those that came later."""
    patch.setattr("taskq.core.queue.Line.give_back", lambda self, task: self.add(task))


def a_result_is_lost(patch: Patch) -> None:
    """A completion changes the task, and its row stays as it was."""
    completed = report.evolve_completed

    def evolve(book: Book, record: Any) -> None:
        kept, book.touch = book.touch, lambda task: None
        completed(book, record)
        book.touch = kept

    patch.setitem(shard.EVOLVE, report.Completed, evolve)


def leases_end_twice(patch: Patch) -> None:
    """What a dead worker held is given out again and stays in its hands."""

    def evolve(book: Book, record: Ended) -> None:
        tokens = {task_id: (book.tasks[task_id].token, book.tasks[task_id].session) for task_id in split(record.ids, ID_BYTES)}
        report.evolve_ended(book, record)
        for task_id, (token, session) in tokens.items():
            book.tasks[task_id].token, book.tasks[task_id].session = token, session

    patch.setitem(shard.EVOLVE, Ended, evolve)


def a_flush_is_told_too_soon(patch: Patch) -> None:
    """The shards hear of a flush before it is committed."""
    commit = SimStore.commit

    async def late(self: Any, batch: Any) -> None:
        await asyncio.sleep(0)
        asyncio.get_running_loop().create_task(commit(self, batch))

    patch.setattr(SimStore, "commit", late)


# the bug, and what it must be found by
PLANTED: dict[Callable[[Patch], None], str] = {
    reply_before_sync: "acknowledged and is lost|and it is|does not exist",
    flush_beyond_the_sync: "the journal is synced up to",
    flush_claims_later_records: "has no row|in the store|the broker crashed",
    no_check_of_tokens: "was accepted, but the run is",
    lsn_from_the_journal_alone: "LSN",
    keys_are_not_looked_up: "key .* was enqueued twice",
    cold_while_dirty: "contradicts itself|a grant of|the broker crashed|KeyError|not found|for ever|records say|twice",
    too_early: "before it was due",
    tokens_begin_anew: "does not rise",
    cancel_is_forgotten_at_expiry: "was asked to stop, its run ended",
    priorities_are_ignored: "was granted before",
    gap_is_ignored: "expired, but worker .* is well",
    resent_is_ignored: "was enqueued twice|told LEASE_LOST",
    back_of_the_line: "contradicts itself|was granted before",
    a_result_is_lost: "records say|in the store",
    leases_end_twice: "contradicts itself",
    a_flush_is_told_too_soon: "in the store|has no row|records say",
}


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[Patch], None], patch: Patch) -> None:
    plant(patch)
    for seed in range(SEEDS):
        try:
            simulate(seed)
        except Violation as violation:
            told = str(violation).rpartition("\n")[2]
            assert told.startswith(f"seed {seed}: ")
            assert re.search(PLANTED[plant], told), told
            return
    pytest.fail(f"{plant.__doc__} Not found in {SEEDS} seeds.")
