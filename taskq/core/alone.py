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
from taskq.core.followers import Followers
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
    return task.state == PENDING and consumer is not None and consumer.deadline_ms > book.steady_ms and task.queue in consumer.queues


def match_alone(book: Book, queue: Queue, followers: Followers) -> Iterator[tuple[Consumer, Task]]:
    """Who gets which task now; the caller grants it before it asks for the next."""
    waiting = [consumer for consumer, _ in followers.waiting.values()]
    taken = sum(consumer.session in book.alone for consumer in waiting)
    most = max(1, len(waiting) // 2)
    unable: set[str] = set()
    for task in [task for task in queue.apart.tasks if task.hot]:
        kept = next((session for session, other in book.alone.items() if other is task), None)
        if task.options.task_type in unable or (kept is None and taken >= most):
            continue
        able = [consumer for consumer in waiting if _is_able(book, consumer, task)]
        if not able:
            unable.add(task.options.task_type)
            continue
        chosen = min(able, key=lambda consumer: book.leases_of(consumer.session))
        taken += kept is None
        if not book.leases_of(chosen.session):
            book.alone.pop(kept or b"", None)
            followers.to_the_end(chosen)
            yield chosen, task
        elif kept is None:
            book.alone[chosen.session] = task


def _is_able(book: Book, consumer: Consumer, task: Task) -> bool:
    if task.options.task_type not in consumer.task_types or consumer.deadline_ms <= book.steady_ms:
        return False
    return book.alone.get(consumer.session, task) is task and (consumer.room > 0 or book.leases_of(consumer.session) > 0)
