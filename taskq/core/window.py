"""The hot window: which tasks are in memory.  Cold means clean: a task leaves memory only after the flush with its last record was committed."""

from __future__ import annotations

from itertools import chain

from taskq.core import effects as fx
from taskq.core.attempt import lean
from taskq.core.book import Book, Decision
from taskq.core.line import Line
from taskq.core.task import CLEAN, FAILED, FINAL, PENDING, TIMED

# the states in which a task may be cold
COLD = TIMED | {PENDING}
# a line that takes less than this is left alone when memory is short
SPILL_BYTES = 64 << 10


def decide_line_loaded(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """The next cold tasks of a line: they become hot unless memory knows better."""
    load = command.message.load
    queue = book.queue(load.queue)
    line = queue.line(load.priority, load.task_type)
    line.loading = command.message.more
    for row in command.message.tasks:
        task = book.tasks.get(row.id, row)
        if task.state == PENDING and not task.hot and task.position == row.position > line.passed:
            book.adopt(task)
            queue.load(line, task)
        else:
            line.passed = max(line.passed, row.position)
    book.touched[load.queue] = None
    return [], None


def spill(book: Book) -> None:
    """Give memory back: of each line that takes more than a little only the first task stays, and what stands before one that may come back to it.
    No flush is under way."""
    outside = _last_outside(book)
    for queue in book.queues.values():
        for line in list(queue.lines.values()):
            if line.hot_bytes > SPILL_BYTES:
                book.forget(queue.spill(line, outside.get(line, 0)))


def _last_outside(book: Book) -> dict[Line, int]:
    """Of each line the last position of a task that runs or waits apart: it comes back to the hot ones, all of which stand before the cold ones."""
    found: dict[Line, int] = {}
    running = (task for held in book.held.values() for task in held.values())
    apart = (task for queue in book.queues.values() for task in queue.apart.live())
    for task in chain(running, apart):
        line = book.queue(task.queue).line_of(task)
        found[line] = max(found.get(line, 0), task.position)
    return found


def decide_forgotten(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """Dead letters are kept by count."""
    message: fx.Forgotten = command.message
    book.queue(message.queue).counts[FAILED] -= message.tasks
    book.forget_queues([message.queue])
    return [], None


def decide_flushed(book: Book, command: fx.Command, now_ms: int, known: object) -> Decision:
    """The store has these tasks: the final and the cold ones leave memory, unless they changed meanwhile:
    then they are dirty, or with a newer flush that is not committed yet.  Of those that stay it has the texts of their errors."""
    message: fx.Flushed = command.message
    newer = book.end_flush(message.flush)
    leaving = []
    for task in message.tasks:
        if task.dirty != CLEAN or task in newer:
            continue
        if task.state in FINAL or (task.state in COLD and not task.hot):
            leaving.append(task)
        elif task.history:
            task.history = lean(task.history)
    book.forget(leaving)
    book.forget_queues({task.queue for task in message.tasks})
    return [], None
