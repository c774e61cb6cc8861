"""The checker is checked: each of these bugs, planted into the real code, is found within a few seeds, and by what it breaks."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from sim import broker
from sim.clients import Producer
from sim.disk import SimStore
from sim.history import History, Model, Violation
from sim.world import World, simulate

from taskq.actors.journal import JournalActor
from taskq.actors.store import StoreActor
from taskq.core import effects as fx
from taskq.core import enqueue, grant, lease, report, shard, timer
from taskq.core import messages as m
from taskq.core.book import Book
from taskq.core.effects import FindLoad
from taskq.core.followers import Crew
from taskq.core.idtime import IdTime
from taskq.core.line import Line
from taskq.core.queue import Queue
from taskq.core.records import Ended
from taskq.core.requests import Requests
from taskq.core.task import FAILED, FINAL, PENDING, RUNNING
from taskq.ids import ID_BYTES, split
from taskq.storage import journal
from taskq.storage.journal import FileJournal
from taskq.storage.rows import batch_of, size_names

SEEDS = 120

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
            actor.tell(fx.Command(0, 0, fx.Flushed(dirty, actor.shard.flushes)))
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
    recover, start = broker.recover, FileJournal.start
    patch.setattr(FileJournal, "start", lambda self, epoch, next_lsn: start(self, epoch, self.end_lsn + 1))

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
    """Lines are served in the order of their positions alone."""
    place = Line.place.fget  # type: ignore[attr-defined]
    patch.setattr(Line, "place", property(lambda self: (0, *place(self)[1:])))


def the_lowest_shard_goes_first(patch: Patch) -> None:
    """No shard stands back for another one that has tasks of a queue that is preferred."""
    patch.setattr(Crew, "ahead", lambda self, place: None)


def leases_by_the_time_of_day(patch: Patch) -> None:
    """A clock that is set ahead costs every worker its leases."""
    turn = shard.Shard.turn
    patch.setattr(shard.Shard, "turn", lambda self, commands, now_ms, steady_ms: turn(self, commands, now_ms))
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


def a_session_extends_what_it_does_not_list(patch: Patch) -> None:
    """A sign of life keeps all leases of the session, those of deliveries that never arrived too."""
    held = shard.DECIDE[fx.Held]

    def decide(book: Book, command: fx.Command, now_ms: int, known: object) -> Any:
        tokens = frozenset(token.to_bytes(8, "big") for token in book.held.get(command.message.session, {}))
        return held(book, attrs.evolve(command, message=attrs.evolve(command.message, tokens=command.message.tokens | tokens)), now_ms, known)

    patch.setitem(shard.DECIDE, fx.Held, decide)
    patch.setattr(lease, "_take_back_unconfirmed", lambda book, session, now_ms: ())


def a_failed_sync_is_tried_again(patch: Patch) -> None:
    """After an error of fdatasync the next one succeeds, and is believed."""

    def sync_data(fd: int) -> int:
        try:
            journal.os.fdatasync(fd)
        except OSError:
            journal.os.fdatasync(fd)
        return 0

    patch.setattr(journal, "_data_sync", sync_data)


def pruned_ids_are_forgotten(patch: Patch) -> None:
    """An id that is older than all that is kept counts as new."""
    patch.setattr(IdTime, "may_be_pruned", lambda self, task_id, now_ms: False)


def one_known_task_spoils_its_frame(patch: Patch) -> None:
    """If one task of a frame exists, the others are acknowledged and not recorded."""
    decide = enqueue.decide_enqueue

    def careless(*args: Any) -> Any:
        records, reply = decide(*args)
        return ([], reply) if m.EXISTS in getattr(reply, "outcomes", b"") else (records, reply)

    patch.setitem(shard.DECIDE, m.Enqueue, careless)


def a_dead_letter_is_counted_twice(patch: Patch) -> None:
    """Each dead letter adds two to the count of its queue."""
    move = Queue.move

    def twice(self: Queue, task: Any, state: int) -> None:
        move(self, task, state)
        self.counts[state] += state == FAILED

    patch.setattr(Queue, "move", twice)


def the_reaper_does_not_look_at_tokens(patch: Patch) -> None:
    """What a session has handed back is ended with it all the same, whoever has it by then."""
    patch.setattr(Book, "held_drop", lambda self, task: None)


def torn_batches_are_believed(patch: Patch) -> None:
    """The checksum of a batch is not looked at."""

    class Any32:
        size, pack = journal._CRC.size, journal._CRC.pack

        def unpack_from(self, data: bytes, at: int) -> tuple[Any]:
            return (_EqualsAll(),) if at == journal._BATCH.size else journal_crc.unpack_from(data, at)

    journal_crc = journal._CRC
    patch.setattr(journal, "_CRC", Any32())


class _EqualsAll:
    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def the_folder_is_not_synced(patch: Patch) -> None:
    """A new segment is written to before its name is safe."""
    sync = journal.sync_path
    patch.setattr(journal, "sync_path", lambda path: None if path.is_folder else sync(path))


def no_room_is_no_error(patch: Patch) -> None:
    """What does not fit on the disk is left out."""
    write = journal._write_all

    def lenient(fd: int, buffers: list[Any]) -> int:
        try:
            return write(fd, list(buffers))
        except OSError:
            return sum(map(len, buffers))

    patch.setattr(journal, "_write_all", lenient)


def an_answer_is_lost(patch: Patch) -> None:
    """Every tenth answer of a shard to an enqueue goes nowhere, and the connection stays."""
    answered, count = Requests.answered, itertools.count()

    def forgetful(self: Requests, seq: int, part: int, answer: Any) -> Any:
        whole = answered(self, seq, part, answer)
        return None if type(whole) is m.Enqueued and next(count) % 10 == 9 else whole

    patch.setattr(Requests, "answered", forgetful)


def an_attempt_is_free(patch: Patch) -> None:
    """A failed run does not use up an attempt."""
    evolve = shard.EVOLVE[Ended]

    def generous(book: Book, record: Ended) -> None:
        before = {task_id: book.tasks[task_id].attempts for task_id in split(record.ids, ID_BYTES)}
        evolve(book, record)
        for task_id, attempts in before.items():
            book.tasks[task_id].attempts = attempts

    patch.setitem(shard.EVOLVE, Ended, generous)


# the bug, and what it must be found by
PLANTED: dict[Callable[[Patch], None], str] = {
    reply_before_sync: "acknowledged and is lost|and it is|does not exist",
    flush_beyond_the_sync: "the journal is synced up to",
    flush_claims_later_records: "has no row|in the store|the broker crashed",
    no_check_of_tokens: "was accepted, but the run is",
    lsn_from_the_journal_alone: "LSN",
    keys_are_not_looked_up: "key .* was enqueued twice",
    cold_while_dirty: "contradicts itself|a grant of|a cancel of|the broker crashed|KeyError|not found|for ever|records say|twice",
    too_early: "before it was due",
    tokens_begin_anew: "does not rise",
    cancel_is_forgotten_at_expiry: "was asked to stop, its run ended",
    priorities_are_ignored: "was granted before",
    the_lowest_shard_goes_first: "is preferred and was passed over",
    leases_by_the_time_of_day: "expired, but worker .* is well",
    resent_is_ignored: "was enqueued twice|told LEASE_LOST|does not come back",
    back_of_the_line: "contradicts itself|was granted before",
    a_result_is_lost: "records say|in the store",
    leases_end_twice: "contradicts itself",
    a_flush_is_told_too_soon: "synced up to|in the store|has no row|records say",
    a_session_extends_what_it_does_not_list: "is running for ever",
    a_failed_sync_is_tried_again: "the journal is synced up to|acknowledged and is lost|and it is",
    pruned_ids_are_forgotten: "was enqueued twice",
    one_known_task_spoils_its_frame: "was acknowledged and does not exist",
    a_dead_letter_is_counted_twice: "counts .* failed tasks",
    the_reaper_does_not_look_at_tokens: "the end .* of task|contradicts itself",
    torn_batches_are_believed: "recovery has found LSN|the broker crashed",
    the_folder_is_not_synced: "the journal is synced up to|acknowledged and is lost|and it is|the broker crashed",
    no_room_is_no_error: "the journal is synced up to|acknowledged and is lost|and it is|the broker crashed",
    an_answer_is_lost: "is never answered|was never told",
    an_attempt_is_free: "attempts|as attempt",
}

# the twelve of research on what such checkers must find; what this version has no feature for is replaced by the nearest thing that it has
TWELVE = {
    "ack before commit": reply_before_sync,
    "no token test": no_check_of_tokens,
    "reuse of seq after restart": tokens_begin_anew,
    "extend by session": a_session_extends_what_it_does_not_list,
    "go on after a commit error": a_failed_sync_is_tried_again,
    "skip tombstone": pruned_ids_are_forgotten,
    "wall-clock lease": leases_by_the_time_of_day,
    "batch abort": one_known_task_spoils_its_frame,
    "dedup outside of the transaction": keys_are_not_looked_up,
    "cancel ignored on expiry": cancel_is_forgotten_at_expiry,
    "double dependency count": a_dead_letter_is_counted_twice,  # until there are dependencies
    "reaper without token": the_reaper_does_not_look_at_tokens,
}

# each invariant: where it is checked, and a planted bug that shows that it is
INVARIANTS: dict[str, tuple[tuple[Callable[..., Any], ...], Callable[[Patch], None]]] = {
    "I1 acknowledged is never lost": ((History._check_promises, History.not_found), reply_before_sync),
    "I2 no task that nobody sent": ((Model._admitted, History.deliver, History.check_store), one_known_task_spoils_its_frame),
    "I3 completed once": ((Model._completed, History.reported), no_check_of_tokens),
    "I4 no grant after the end": ((Model._granted, Model._expect), cold_while_dirty),
    "I5 tokens rise, one is valid": ((Model._granted, History.deliver, History.reported), tokens_begin_anew),
    "I6 attempts are exact": ((Model._ended, History.deliver, History._check_row), an_attempt_is_free),
    "I7 recovered is a prefix of the log": ((Model.cut, World._recovered, History.check_store), torn_batches_are_believed),
    "I8 order": ((Model._check_order,), priorities_are_ignored),  # of a line; ordering keys are a feature to come
    "I9 counts": ((History.check_shards, Model.counts), a_dead_letter_is_counted_twice),
    "I10 indexes agree with the tasks": ((Book.check, History.check_shards), leases_end_twice),
    "I11 all ends once all is healed": ((History.check_end, World._come_to_rest), a_session_extends_what_it_does_not_list),
    "I12 one answer each": ((Producer.on_event, World._come_to_rest), an_answer_is_lost),
}


def test_each_of_the_twelve_and_each_invariant_has_a_bug_that_shows_it() -> None:
    assert len(TWELVE) == 12 and set(TWELVE.values()) <= set(PLANTED)
    assert [name.split()[0] for name in INVARIANTS] == [f"I{number}" for number in range(1, 13)]
    assert {bug for _, bug in INVARIANTS.values()} <= set(PLANTED)


# what few seeds show: with which one it was last found, so that the others are seldom needed
RARE: dict[Callable[[Patch], None], tuple[int, ...]] = {
    flush_claims_later_records: (5,),
    cold_while_dirty: (17,),
    cancel_is_forgotten_at_expiry: (4,),
    a_session_extends_what_it_does_not_list: (21,),
    a_failed_sync_is_tried_again: (37,),
    one_known_task_spoils_its_frame: (110,),
    torn_batches_are_believed: (110,),
}


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Callable[[Patch], None], patch: Patch) -> None:
    plant(patch)
    for seed in (*RARE.get(plant, ()), *range(SEEDS)):
        try:
            simulate(seed)
        except Violation as violation:
            told = str(violation).rpartition("\n")[2]
            assert told.startswith(f"seed {seed}: ")
            assert re.search(PLANTED[plant], told), told
            return
    pytest.fail(f"{plant.__doc__} Not found in {SEEDS} seeds.")
