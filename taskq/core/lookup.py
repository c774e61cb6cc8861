"""Get: show one task, at once or when it is final.  What a reader is shown is as durable as the queue's level says, like any reply."""

from __future__ import annotations

from collections import Counter

import attrs

from taskq.core import messages as m
from taskq.core.access import READ
from taskq.core.attempt import lacks_texts, with_texts
from taskq.core.book import Book, Decision
from taskq.core.effects import Command, FindLoad
from taskq.core.enqueue import Known, error_of
from taskq.core.grant import blocker
from taskq.core.task import FINAL, STATES, Task, describe
from taskq.errors import NotFound

WAIT_MS_MAX = 60_000


def decide_get(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    """Who may not read the queue is told what an id that never was is told: neither that the task is there, nor where."""
    message: m.Get = command.message
    task = book.tasks.get(message.id)
    if task is None and known is None:
        return [], FindLoad((message.id,), (), command)
    task = task or (known or {}).get(message.id)
    if task is None or (command.grant is not None and not command.grant.allows(READ, task.queue)):
        return [], error_of(NotFound(f"no task {message.id.hex()}: it never existed, or its retention has passed", field="id"))
    if message.wait_ms and task.state not in FINAL:
        book.wait(message.id, command, now_ms + min(message.wait_ms, WAIT_MS_MAX))
        return [], None
    return [], shown(book, command, task, now_ms, known)


def answer_waiters(book: Book, task: Task, now_ms: int) -> None:
    """The task is final: whoever waits for it is told."""
    for command in book.waiters.pop(task.id, ()):
        book.answer(command, shown(book, command, task, now_ms, None))
        book.dead_timers += 1


def shown(book: Book, command: Command, task: Task, now_ms: int, known: Known | None) -> m.TaskInfo | FindLoad:
    """The task, or the question to the store that has the texts of its attempts."""
    info = describe(task)
    if lacks_texts(task.history):
        if known is None:
            return FindLoad((task.id,), (), command)
        stored = known.get(task.id)
        history = with_texts(task.history, stored.history if stored is not None else ())
        info = describe(attrs.evolve(task, history=history))
    info["blocker"] = blocker(book, task, now_ms)
    return m.TaskInfo([task.payload, task.result], info)


def decide_inspect(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    """The queues of this shard with the number of tasks in each state that is kept by count."""
    rows = []
    workers = _workers(book)
    for queue in book.queues.values():
        if command.grant is not None and not command.grant.allows(READ, queue.name):
            continue
        row: dict[str, object] = {"queue": queue.name}
        row.update({name: queue.counts[state] for state, name in enumerate(STATES) if name not in ("completed", "cancelled", "expired")})
        row["workers"] = workers[queue.name]
        rows.append(row)
    return [], m.Inspected(rows)


def _workers(book: Book) -> Counter[str]:
    """How many connected workers take each queue.  Those with the same subscription share one list of names (followers.py), which is read once."""
    lists = {id(consumer.queues): consumer.queues for consumer in book.consumers.values() if consumer.origin}
    counts = Counter(id(consumer.queues) for consumer in book.consumers.values() if consumer.origin)
    workers: Counter[str] = Counter()
    for which, queues in lists.items():
        for name in queues:
            workers[name] += counts[which]
    return workers
