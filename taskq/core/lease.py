"""Leases: they live as long as the worker session is heard of, never by how long a task takes.

A session that is not heard of until its deadline loses its leases in two steps: it is suspected in one pass and lost in a later one, so that
whatever waited in the sockets of a broker that was stopped is read first.  A gap in the passes themselves moves all deadlines by the gap.

What is charged for it: a crash, if somebody says that the process died, or if nobody was heard of until the deadline.  A worker whose connection was
cut and that comes back later did not die, so the crash becomes an interruption then; one that stood still until its leases ended gets no such grace.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from struct import pack

from taskq.core.book import Book, Decision
from taskq.core.consumer import Consumer
from taskq.core.effects import Command, FindLoad, Known, Over
from taskq.core.enqueue import Known as FoundTasks
from taskq.core.messages import Ok
from taskq.core.records import Ended
from taskq.core.report import EXCUSED, End, by_slot, ended
from taskq.core.task import CANCELLED, CRASHES_MAX, FAILED, FINAL, PENDING, Task
from taskq.ids import ID_BYTES, split

PASS_MS = 500
GAP_MS = 1_000
SILENT = "worker lost: nothing was heard of it"
CUT = "worker lost: its connection ended and it did not come back"


def decide_held(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    """Free what the session does not hold, and say what it does: a token is given up iff it was received and is not listed."""
    message = command.message
    held = book.held.get(message.session, {})
    listed = {int.from_bytes(token, "big") for token in message.tokens}
    given_up = [task for token, task in held.items() if token not in listed and (message.resumed or task.delivery <= message.received)]
    kept = [task for token, task in held.items() if token in listed]
    reply = Known([pack(">Q", task.token) for task in kept], [pack(">Q", task.token) for task in kept if task.cancel_requested])
    return list(_records(given_up, "undelivered", "", now_ms)), reply


def decide_returned(book: Book, command: Command, now_ms: int, known: FoundTasks | None) -> Decision:
    """They were interrupted and not killed.  What has become final meanwhile stays as it is."""
    ids = split(command.message.ids, ID_BYTES)
    if known is None and any(task_id not in book.tasks for task_id in ids):
        return [], FindLoad(tuple(ids), (), command)
    found = [book.tasks.get(task_id) or (known or {}).get(task_id) for task_id in ids]
    tasks = [task for task in found if task is not None and task.state not in FINAL and task.crashes]
    for task in tasks:
        book.adopt_far(task)
    slots = by_slot(enumerate(tasks))
    return [ended([(task, (EXCUSED, task.state, task.due_ms), ("", CUT)) for _, task in rows], now_ms) for rows in slots], None


def decide_over(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    """The session is over: with a cause, its runs crashed; without, they are handed back."""
    message: Over = command.message
    tasks = list(book.held.get(message.session, {}).values())
    confirmed = book.received_of(message.session)
    started = [task for task in tasks if task.delivery <= confirmed]
    unseen = [task for task in tasks if task.delivery > confirmed]
    outcome = "crashed" if message.cause else "interrupted"
    return [*_records(started, outcome, message.cause, now_ms), *_records(unseen, "undelivered", "", now_ms)], Ok()


def expire(book: Book, now_ms: int) -> Iterator[Ended]:
    """One pass over the sessions that hold leases here; at most every PASS_MS of the steady clock."""
    steady_ms = book.steady_ms
    if not book.held:
        book.pass_ms = 0
        return
    if steady_ms < book.pass_ms + PASS_MS:
        return
    if book.pass_ms and steady_ms - book.pass_ms > PASS_MS + GAP_MS:
        book.suspects.clear()
        book.gap_until_ms = steady_ms + book.limits.lease_ms
    book.pass_ms = steady_ms
    for session in list(book.held):
        consumer = book.consumers.get(session)
        if consumer is not None and (consumer.deadline_ms > steady_ms or steady_ms < book.gap_until_ms):
            book.suspects.discard(session)
            if steady_ms >= book.gap_until_ms:
                yield from _take_back_unconfirmed(book, session, now_ms)
        elif session in book.suspects:
            book.suspects.discard(session)
            yield from _lose(book, session, consumer, now_ms)
        else:
            book.suspects.add(session)


def _note(book: Book, session: bytes, taken: int) -> None:
    """So many deliveries end without a word of the worker."""
    consumer = book.consumers.get(session)
    if consumer is not None:
        consumer.taken_back += taken


def _lose(book: Book, session: bytes, consumer: Consumer | None, now_ms: int) -> Iterator[Ended]:
    """Nobody was heard of until the deadline.  Whom a cut has taken away is remembered with what is charged: it may come back."""
    cause = "" if consumer is None or consumer.restored else CUT if consumer.cut else SILENT
    _note(book, session, len(book.held[session]))
    for record in decide_over(book, Command(0, 0, Over(session, cause)), now_ms, None)[0]:
        if consumer is not None and consumer.cut:
            consumer.charged += [
                task_id for task_id, outcome in zip(split(record.ids, ID_BYTES), record.outcomes, strict=True) if outcome == "crashed"
            ]
        yield record


def _take_back_unconfirmed(book: Book, session: bytes, now_ms: int) -> Iterator[Ended]:
    """Deliveries that the worker has not confirmed in the time of a lease never reached it."""
    limit_ms = now_ms - book.limits.lease_ms
    confirmed = book.received_of(session)
    unconfirmed = takewhile(lambda task: task.delivery > confirmed, reversed(book.held[session].values()))  # deliveries rise
    lost = [task for task in unconfirmed if task.started_ms <= limit_ms][::-1]
    _note(book, session, len(lost))
    yield from _records(lost, "undelivered", "", now_ms)


def _records(tasks: list[Task], outcome: str, cause: str, now_ms: int) -> Iterator[Ended]:
    """One record a slot."""
    for rows in by_slot(enumerate(tasks)):
        yield ended([(task, _end(task, outcome), ("WorkerLost" if cause else "", cause)) for _, task in rows], now_ms)


def _end(task: Task, outcome: str) -> End:
    if task.cancel_requested:
        return "cancelled", CANCELLED, 0
    if outcome == "crashed" and task.crashes + 1 >= CRASHES_MAX:
        return outcome, FAILED, 0
    return outcome, PENDING, 0
