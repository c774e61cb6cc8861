"""Reports of a worker on its runs: ack, fail, release.  Only the current token counts, and only from the session that it was given to; anything
else changes nothing and is told LEASE_LOST.

The worker says what happened, the policy of the task decides what comes next.  No clock decides about a report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from struct import unpack
from typing import Any

from taskq.core import messages as m
from taskq.core.attempt import ERROR_BYTES_MAX, ERROR_TYPE_BYTES_MAX, cut
from taskq.core.book import Book, Decision
from taskq.core.effects import Command, FindLoad
from taskq.core.enqueue import TASKS_MAX, Known, error_of
from taskq.core.lookup import answer_waiters
from taskq.core.messages import HORIZON_MS
from taskq.core.records import Completed, Ended, column
from taskq.core.retry import backoff_ms
from taskq.core.task import CANCELLED, COMPLETED, CRASHES_ALONE, FAILED, PENDING, RETRYING, SCHEDULED, TIMED, Task, parked
from taskq.errors import Answer, BadRequest, PayloadTooLarge
from taskq.ids import ID_BYTES, TOKEN_BYTES, of_one_slot, slot_of_id, split

# a text that counts for all tasks of a report is kept with each of them: no more in all than a frame of single texts could bring
REPORT_TEXT_BYTES_MAX = 4 << 20
# the final states that a report can have brought about
BROUGHT: dict[type, frozenset[int]] = {
    m.Ack: frozenset({COMPLETED}),
    m.Fail: frozenset({FAILED, CANCELLED}),
    m.Release: frozenset({CANCELLED}),
}
QUEUE = attrgetter("queue")
NO_LEASES: dict[int, Task] = {}
# the columns of each report
COLUMNS: dict[type, tuple[str, ...]] = {
    m.Ack: ("encodings",),
    m.Fail: ("dispositions", "delays_ms", "error_types", "errors"),
    m.Release: ("delays_ms",),
}
# the outcome that takes back what was said of a run before: its crash was an interruption
EXCUSED = "excused"
# what a run that ended without a result is counted as
COUNTERS = {"failed": "attempts", "crashed": "crashes", "interrupted": "interruptions"}

# how a run ends: outcome, state, due (0 if not timed)
End = tuple[str, int, int]


def decide_ack(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    message: m.Ack = command.message
    refused = refusal(message, book.limits.payload_bytes_max)
    if refused is not None:
        return [], error_of(refused)
    checked = _check_tokens(book, command, known)
    if isinstance(checked, FindLoad):
        return [], checked
    tasks, outcomes = checked
    reply = m.Reported(bytes(outcomes))
    if len(tasks) == len(outcomes) and of_one_slot(message.ids):
        return [Completed(message.payloads, slot_of_id(message.ids), now_ms, message.ids, message.encodings)], reply
    encodings = column(message.encodings, len(outcomes))
    return [_completed(message.payloads, encodings, rows, now_ms) for rows in by_slot(tasks)], reply


def _completed(payloads: list[m.Payload], encodings: Sequence[int], rows: list[tuple[int, Task]], now_ms: int) -> Completed:
    """The record for these tasks of one slot, each with its place in the report."""
    ids = b"".join([task.id for _, task in rows])
    return Completed([payloads[at] for at, _ in rows], slot_of_id(ids), now_ms, ids, [encodings[at] for at, _ in rows])


def by_slot(tasks: Iterable[tuple[int, Task]]) -> list[list[tuple[int, Task]]]:
    """Tasks, each with its place in a request, as the records need them: those of each slot in a list."""
    slots: dict[int, list[tuple[int, Task]]] = {}
    for row in tasks:
        slots.setdefault(slot_of_id(row[1].id), []).append(row)
    return list(slots.values())


def decide_fail(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    message: m.Fail = command.message
    refused = refusal(message, book.limits.payload_bytes_max)
    if refused is not None:
        return [], error_of(refused)
    count = len(message.tokens) // TOKEN_BYTES
    dispositions, delays_ms = column(message.dispositions, count), column(message.delays_ms, count)
    types = column(message.error_types, count)
    errors = column(_bounded(message), count)

    def end(task: Task, at: int) -> End:
        if task.cancel_requested:
            return "cancelled", CANCELLED, 0
        if dispositions[at] == m.DISCARD or task.attempts + 1 >= task.options.max_attempts:
            return "failed", FAILED, 0
        after = dispositions[at] == m.RETRY_AFTER
        delay_ms = min(delays_ms[at], HORIZON_MS) if after else backoff_ms(task.options.retry, task.attempts + 1, book.rng)
        return "failed", RETRYING, now_ms + delay_ms

    return _end(book, command, now_ms, known, end, lambda at: (types[at], errors[at]))


def decide_release(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    message: m.Release = command.message
    refused = refusal(message, book.limits.payload_bytes_max)
    if refused is not None:
        return [], error_of(refused)
    delays_ms = column(message.delays_ms, len(message.tokens) // TOKEN_BYTES)

    def end(task: Task, at: int) -> End:
        if task.cancel_requested:
            return "cancelled", CANCELLED, 0
        if delays_ms[at]:
            return "snoozed", SCHEDULED, now_ms + min(delays_ms[at], HORIZON_MS)
        return "interrupted", PENDING, 0

    return _end(book, command, now_ms, known, end, lambda at: ("", ""))


def _end(
    book: Book,
    command: Command,
    now_ms: int,
    known: Known | None,
    end: Callable[[Task, int], End],
    error: Callable[[int], tuple[str, str]],
) -> Decision:
    checked = _check_tokens(book, command, known)
    if isinstance(checked, FindLoad):
        return [], checked
    tasks, outcomes = checked
    records = [ended([(task, end(task, at), error(at)) for at, task in rows], now_ms) for rows in by_slot(tasks)]
    return records, m.Reported(bytes(outcomes))


def _bounded(message: m.Fail) -> list[str]:
    """The texts of a report.  One that counts for all its tasks is the shorter the more tasks there are."""
    if len(message.errors) > 1:
        return message.errors
    return [cut(text, REPORT_TEXT_BYTES_MAX * ID_BYTES // len(message.ids)) for text in message.errors]


def ended(rows: list[tuple[Task, End, tuple[str, str]]], now_ms: int) -> Ended:
    """The record for runs of one slot that end without a result.  What is the same for all of them is in it once."""
    ids = b"".join(task.id for task, _, _ in rows)
    return Ended(
        slot=slot_of_id(ids),
        now_ms=now_ms,
        ids=ids,
        outcomes=[end[0] for _, end, _ in rows],
        states=[end[1] for _, end, _ in rows],
        dues_ms=[end[2] for _, end, _ in rows],
        error_types=_texts([error[0] for _, _, error in rows], ERROR_TYPE_BYTES_MAX),
        errors=_texts([error[1] for _, _, error in rows], ERROR_BYTES_MAX),
    )


def _texts(texts: list[str], bytes_max: int) -> list[str]:
    """The column of these texts, each cut where it is too long."""
    if texts.count(texts[0]) == len(texts):
        texts = texts[:1]
    return [cut(text, bytes_max) for text in texts]


def refusal(message: m.Ack | m.Fail | m.Release, payload_bytes_max: int) -> Answer | None:
    """Why nothing of this report is done, if it is not."""
    if isinstance(message, m.Ack):
        return _misshapen(message, len(message.payloads)) or _too_large(message, payload_bytes_max)
    return _misshapen(message, len(message.tokens) // TOKEN_BYTES)


def _misshapen(message: Any, count: int) -> Answer | None:
    columns = COLUMNS[type(message)]
    if not 1 <= count <= TASKS_MAX or len(message.ids) != count * ID_BYTES or len(message.tokens) != count * TOKEN_BYTES:
        return BadRequest(f"tokens: send one 8-byte token and one 16-byte id for each of 1 to {TASKS_MAX} tasks", field="tokens")
    for name in columns:
        values = getattr(message, name)
        if len(values) not in (1, count):
            return BadRequest(f"{name}: needs 1 entry or one for each of the {count} tasks, not {len(values)}", field=name)
    if len(set(unpack(f">{count}Q", message.tokens))) != count:
        return BadRequest("tokens: a token stands twice in the frame", field="tokens")
    if max(getattr(message, "encodings", (0,))) > m.JSON or max(getattr(message, "dispositions", (0,))) > m.RETRY_AFTER:
        return BadRequest("encodings and dispositions: must be 0, 1 or 2", field=columns[0])
    return None


def _too_large(message: m.Ack, payload_bytes_max: int) -> Answer | None:
    if max(map(len, message.payloads)) <= payload_bytes_max:
        return None
    return PayloadTooLarge(f"payloads: a result is over {payload_bytes_max} bytes; store it elsewhere and return a reference", field="payloads")


def _check_tokens(book: Book, command: Command, known: Known | None) -> tuple[list[tuple[int, Task]], bytearray] | FindLoad:
    """The tasks whose token is current and this session's own, with their index, and the outcome of each.  A report that is sent again finds its
    own final state."""
    message = command.message
    ids = split(message.ids, ID_BYTES)
    if command.resent and known is None and any(task_id not in book.tasks for task_id in ids):
        return FindLoad(tuple(ids), (), command)
    outcomes = bytearray(len(ids))
    good: list[tuple[int, Task]] = []
    get, lease = book.tasks.get, book.held.get(command.session, NO_LEASES).get
    for at, (task_id, token) in enumerate(zip(ids, book.unpack_tokens(message.tokens, len(ids)), strict=True)):
        task = lease(token)
        if task is not None and task.id == task_id:
            good.append((at, task))
            continue
        task = get(task_id) or (known.get(task_id) if known else None)
        done_before = command.resent and task is not None and task.state in BROUGHT[type(message)] and task.last_token == token != 0
        outcomes[at] = m.REPORT_OK if done_before else m.REPORT_LEASE_LOST
    return good, outcomes


def evolve_completed(book: Book, record: Completed) -> None:
    ids = split(record.ids, ID_BYTES)
    tasks = [book.tasks[task_id] for task_id in ids]
    book.touch_all(tasks)
    for name, group in groupby(tasks, QUEUE):
        book.queue(name).complete(list(group))
    book.let_go(tasks)
    now_ms = record.now_ms
    for task, result, encoding in zip(tasks, record.payloads, column(record.encodings, len(ids)), strict=True):
        task.attempts += 1
        task.finished_ms = now_ms
        task.result = parked(result)
        task.result_encoding = encoding
    if not book.waiters.keys().isdisjoint(ids):
        for task in tasks:
            answer_waiters(book, task, now_ms)


def evolve_ended(book: Book, record: Ended) -> None:
    ids = split(record.ids, ID_BYTES)
    error_types, errors = column(record.error_types, len(ids)), column(record.errors, len(ids))
    rows = zip(ids, record.outcomes, record.states, record.dues_ms, error_types, errors, strict=True)
    for task_id, outcome, state, due_ms, error_type, error in rows:
        task = book.tasks[task_id]
        book.touch(task)
        if outcome == EXCUSED:
            _excuse(book, task, error)
            continue
        book.held_drop(task)
        task.close_attempt(record.now_ms, outcome, error_type, error)
        counter = COUNTERS.get(outcome)
        if counter:
            setattr(task, counter, getattr(task, counter) + 1)
        task.due_ms = due_ms
        book.queue(task.queue).move(task, state)
        if state in TIMED:
            book.become_timed(task)
        elif state == PENDING:
            book.touched[task.queue] = None
        else:
            task.finished_ms = record.now_ms
            answer_waiters(book, task, record.now_ms)


def _excuse(book: Book, task: Task, cause: str) -> None:
    """Nobody is kept for it any more, unless it still has to run alone."""
    book.queue(task.queue).excuse(task, cause)
    if task.state == PENDING and task.crashes < CRASHES_ALONE:
        for session in [session for session, kept in book.alone.items() if kept is task]:
            del book.alone[session]
        book.touched[task.queue] = None
