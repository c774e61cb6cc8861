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


def decide_tick(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """Nothing to decide: the turn itself looks at the time."""
    return [], None


def promote(book: Book, now_ms: int) -> Iterator[Promoted]:
    """Timed tasks that are due become pending, in the order they came due; waits that are over are answered."""
    due: dict[bytes, Task] = {}
    timers = book.timers
    while timers and timers[0][0] <= now_ms and len(due) < PROMOTE_TASKS:
        due_ms, _, what = heapq.heappop(timers)
        if isinstance(what, fx.Command):
            _end_wait(book, what, now_ms)
        elif what.state in TIMED and what.due_ms == due_ms:
            due[what.id] = what
    for slot, ids in groupby(sorted(due, key=slot_of_id), key=slot_of_id):
        block = b"".join(ids)
        yield Promoted(slot, block, book.sequence.take(len(block) // ID_BYTES))


def _end_wait(book: Book, command: fx.Command, now_ms: int) -> None:
    task_id = command.message.id
    waiting = book.waiters.get(task_id, [])
    if any(other is command for other in waiting):
        book.waiters[task_id] = [other for other in waiting if other is not command]
        if not book.waiters[task_id]:
            del book.waiters[task_id]
        again = fx.Command(command.origin, command.seq, m.Get(task_id), command.part)
        book.answer(again, decide_get(book, again, now_ms, None)[1])


def evolve_promoted(book: Book, record: Promoted) -> None:
    for at, task_id in enumerate(split(record.ids, ID_BYTES)):
        task = book.tasks[task_id]
        book.touch(task)
        task.position = record.first_position + at
        task.due_ms = 0
        book.queue(task.queue).move(task, PENDING)
        book.touched[task.queue] = None
