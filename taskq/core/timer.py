"""Timers: scheduled and retrying tasks come due, waits for a result end."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import groupby

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.book import Book, Decision
from taskq.core.lookup import decide_get
from taskq.core.records import Promoted
from taskq.core.task import PENDING, TIMED, Task
from taskq.ids import ID_BYTES, slot_of_id, split

PROMOTE_TASKS = 1_000
DEAD_TIMERS = 1_000


def decide_tick(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """Nothing to decide: the turn itself looks at the time."""
    return [], None


def promote(book: Book, now_ms: int) -> Iterator[Promoted]:
    """Timed tasks that are due become pending, in the order they came due; waits that are over are answered."""
    _drop_dead(book)
    due: dict[bytes, Task] = {}
    timers = book.timers
    while timers and timers[0][0] <= now_ms and len(due) < PROMOTE_TASKS:
        due_ms, _, what = timers[0]
        if isinstance(what, Task) and what.hot and (due_ms, what.seq) > book.horizon:
            break  # it was loaded in a piece that is not the last, and others may come before it
        heapq.heappop(timers)
        if not _is_live(book, due_ms, what):
            book.dead_timers = max(0, book.dead_timers - 1)
        elif isinstance(what, fx.Command):
            _end_wait(book, what, now_ms)
        else:
            due[what.id] = what
    for slot, ids in groupby(sorted(due, key=slot_of_id), key=slot_of_id):
        block = b"".join(ids)
        yield Promoted(slot, block, book.sequence.take(len(block) // ID_BYTES))


def _is_live(book: Book, due_ms: int, what: Task | fx.Command) -> bool:
    """False for a task that went another way meanwhile, and for a wait that was answered."""
    if isinstance(what, fx.Command):
        return any(other is what for other in book.waiters.get(what.message.id, ()))
    return what.hot and what.state in TIMED and what.due_ms == due_ms


def _drop_dead(book: Book) -> None:
    """Once most timers are dead they are thrown out, since each keeps its task or its request in memory until it would have come due."""
    if book.dead_timers > DEAD_TIMERS and 2 * book.dead_timers > len(book.timers):
        book.timers = [timer for timer in book.timers if _is_live(book, timer[0], timer[2])]
        heapq.heapify(book.timers)
        book.dead_timers = 0


def _end_wait(book: Book, command: fx.Command, now_ms: int) -> None:
    task_id = command.message.id
    book.waiters[task_id] = [other for other in book.waiters[task_id] if other is not command]
    if not book.waiters[task_id]:
        del book.waiters[task_id]
    again = fx.Command(command.origin, command.seq, m.Get(task_id), command.part, False, command.session, command.grant)
    book.answer(again, decide_get(book, again, now_ms, None)[1])


def evolve_promoted(book: Book, record: Promoted) -> None:
    for at, task_id in enumerate(split(record.ids, ID_BYTES)):
        task = book.tasks[task_id]
        book.touch(task)
        book.leave_timed(task)
        task.position = record.first_position + at
        task.due_ms = 0
        book.queue(task.queue).move(task, PENDING)
        book.touched[task.queue] = None
