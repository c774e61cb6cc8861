"""The horizon: which timed tasks are in memory.

Of a shard's timed tasks, those up to its horizon, a pair (due, seq), are *near*: in memory, hot, each with a timer.  Those behind it are *far*:
in the store, and known by count.  A far one that the store does not have yet is in memory too, in `Book.far`, until a flush has taken it there.
All are near until there are too many for the memory; then the horizon comes close (`narrow`), and goes on with what is loaded.
"""

from __future__ import annotations

import heapq

from taskq.core import effects as fx
from taskq.core.book import EVERYTHING, Book, Decision
from taskq.core.queue import LOAD_BYTES
from taskq.core.task import CLEAN, TIMED, Task

NEAR_TASKS = 20_000


def page_tasks(books: list[Book]) -> int:
    """How many tasks to load at once: fewer if they are large."""
    queues = [queue for book in books for queue in book.queues.values()]
    payload_bytes, tasks = sum(queue.bytes for queue in queues), sum(queue.length for queue in queues)
    return max(1, min(NEAR_TASKS, LOAD_BYTES * tasks // (payload_bytes + 1)))


def is_crowded(books: list[Book], page: int) -> bool:
    """More pages of tasks are near than there is memory for."""
    budget = books[0].shared.budget
    return budget.bytes_used >= budget.bytes_max and sum(book.near for book in books) > 4 * page


def runs_short(books: list[Book], page: int) -> bool:
    """Some tasks are far, and the next page of them should be loaded, so that none is late."""
    return any(book.horizon != EVERYTHING for book in books) and sum(book.near for book in books) < 2 * page


def narrow(book: Book, horizon: tuple[int, int]) -> None:
    """Timed tasks behind this horizon become far.  No flush and no load is under way."""
    book.horizon = min(book.horizon, horizon)
    kept = []
    leaving = []
    for timer in book.timers:
        task = timer[2]
        if not isinstance(task, Task) or (task.hot and (task.due_ms, task.seq) <= book.horizon):
            kept.append(timer)
        elif task.hot and task.state in TIMED:
            book.leave_timed(task)
            if task.dirty == CLEAN:
                leaving.append(task)
            else:
                book.far[task.id] = task
    book.forget(leaving)
    book.timers, book.dead_timers = kept, 0
    heapq.heapify(kept)


def decide_due_loaded(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """The next far tasks: they are near now, unless memory knows better.  With the last piece the horizon moves, also over those that the store
    did not have."""
    message: fx.DueLoaded = command.message
    for task in message.tasks:
        if task.id not in book.tasks:
            book.adopt(task)
            book.come_near(task)
    if message.horizon is not None:
        book.is_loading_due = False
        book.horizon = max(book.horizon, message.horizon)  # the shards are asked for together, and this one may have had all
        for task in [task for task in book.far.values() if (task.due_ms, task.seq) <= book.horizon]:
            del book.far[task.id]
            book.come_near(task)
    return [], None
