"""Tasks that were there when two workers died run alone, so that the third crash, which makes a dead letter, is their own.

A crash is charged to all that ran in the dead worker.  After two of them a task waits apart (`Queue.apart`) for a worker session without any
lease.  Is there none, a session is kept for it: it gets nothing new until it has finished what it runs.  At most half of a queue's sessions
are kept or busy in this way, so that the others go on with everything else.

`Book.alone` has, by session, the task that it is kept for or runs alone.  It is no state of its own: an entry counts as long as `_counts` finds
it true, and a restart makes anew what the running tasks tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from taskq.core.book import Book
from taskq.core.consumer import Consumer
from taskq.core.queue import Queue
from taskq.core.task import PENDING, RUNNING, Task


def forget(book: Book) -> None:
    """Take out what is over."""
    for session, task in list(book.alone.items()):
        if not _counts(book, session, task):
            del book.alone[session]


def _counts(book: Book, session: bytes, task: Task) -> bool:
    """A session runs its task, or is there and may get it."""
    if task.state == RUNNING:
        return task.session == session
    consumer = book.consumers.get(session)
    return task.state == PENDING and consumer is not None and consumer.deadline_ms > book.steady_ms and consumer.follows(task.queue)


def match_alone(book: Book, queue: Queue) -> Iterator[tuple[Consumer, Task]]:
    """Who gets which task now; the caller grants it before it asks for the next.  The sessions with the fewest leases come first."""
    sessions = book.followers.sessions(queue.name)
    sessions.sort(key=lambda consumer: book.leases_of(consumer.session))
    most = max(1, len(sessions) // 2)
    taken = sum(consumer.session in book.alone for consumer in sessions)
    kept = {id(task): session for session, task in book.alone.items()}
    unable: set[str] = set()
    for task in [task for task in queue.apart.tasks if task.hot]:
        keeps = kept.get(id(task))
        if task.options.task_type in unable or (keeps is None and taken >= most):
            continue
        chosen = next((consumer for consumer in sessions if _is_able(book, consumer, task)), None)
        if chosen is None:
            unable.add(task.options.task_type)
            continue
        taken += keeps is None
        if not book.leases_of(chosen.session):
            book.alone.pop(keeps or b"", None)
            sessions.remove(chosen)
            yield chosen, task
        elif keeps is None:
            sessions.remove(chosen)
            book.alone[chosen.session] = task


def _is_able(book: Book, consumer: Consumer, task: Task) -> bool:
    if task.options.task_type not in consumer.task_types or consumer.deadline_ms <= book.steady_ms:
        return False
    return book.alone.get(consumer.session, task) is task and (consumer.room > 0 or book.leases_of(consumer.session) > 0)
