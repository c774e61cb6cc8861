"""Enqueue: decide which tasks of a frame are new, and make them.

The frame is refused as a whole if its shape is wrong, task by task if a value is.  Ids are made by clients and are new, so the store is asked
only if the frame may have been sent before, a key is given, or it may know an id (recent.py); the frame is parked meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from taskq.core import messages as m
from taskq.core.book import Book, Decision
from taskq.core.content import Comparison, Content
from taskq.core.effects import Command, FindLoad
from taskq.core.idtime import is_fresh
from taskq.core.messages import ATTEMPTS_MAX, FACTOR_MAX, HORIZON_MS, KEY_CHARS_MAX
from taskq.core.queue import Queue
from taskq.core.records import Admitted, column
from taskq.core.task import DIRTY, PENDING, SCHEDULED, InvariantError, Options, Task, parked
from taskq.errors import Answer, BadRequest, IdConflict, IdTooOld, KeyConflict, PayloadTooLarge, TaskqError, echo, told
from taskq.ids import ID_BYTES, NIL, is_valid, make_id, slot_of_id, slot_of_queue, split

NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
NAME_RULE = "1 to 128 of A-Z a-z 0-9 _ . : -"
TASKS_MAX = 1_000

Known = Mapping[Any, Task]


def _is_retry(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(type(part) in (int, float) for part in value):
        return False
    base_ms, factor, cap_ms = value
    return bool(0 <= base_ms <= HORIZON_MS and 1 <= factor <= FACTOR_MAX and base_ms <= cap_ms <= HORIZON_MS)


# column → (rule, what the message says)
COLUMNS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task_types": (lambda value: NAME.fullmatch(value) is not None, f"must be {NAME_RULE}"),
    "encodings": (lambda value: 0 <= value <= 2, "must be 0 (bytes), 1 (msgpack) or 2 (json)"),
    "priorities": (lambda value: 0 <= value <= 9, "must be 0 (most urgent) to 9"),
    "delays_ms": (lambda value: 0 <= value <= HORIZON_MS, "must be 0 to 366 days"),
    "keys": (lambda value: value is None or 1 <= len(value) <= KEY_CHARS_MAX, f"must be text of 1 to {KEY_CHARS_MAX} characters"),
    "max_attempts": (lambda value: 1 <= value <= ATTEMPTS_MAX, f"must be 1 to {ATTEMPTS_MAX}"),
    "timeouts_ms": (lambda value: 0 <= value <= HORIZON_MS, "must be 0 (none) to 366 days"),
    "retries": (_is_retry, f"must be nil or [base_ms, factor 1 to {FACTOR_MAX}, cap_ms >= base_ms]"),
}


def decide_enqueue(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    message: m.Enqueue = command.message
    refusal = _misshapen(message) or (None if command.resent else book.admission.refusal)
    if refusal is not None:
        return [], error_of(refusal)
    slot = slot_of_queue(message.queue)
    id_ms = book.id_ms
    ids = _made(split(message.ids, ID_BYTES), slot, id_ms, book)
    errors = _bad_values(message, len(ids), book.limits.payload_bytes_max)
    errors.update(_bad_ids(ids, slot))
    doubtful = frozenset(ids) if command.resent else book.shared.recent.doubtful(ids, id_ms)
    if known is None:
        unsure = _unsure(book, command, message, ids, doubtful, errors)
        if unsure is not None:
            return [], unsure
        known = {}
    bringer = command.grant.name if command.grant is not None else ""
    records, reply = _admit(book, message, ids, slot, now_ms, known, errors, doubtful, command.resent, bringer)
    if records and message.queue not in book.queues:
        book.queue(message.queue, bringer)
    return records, reply


def error_of(error: TaskqError) -> m.Error:
    return m.Error(error.code, told(error.message), told(error.field), error.retryable, error.retry_after_ms)


def _misshapen(message: m.Enqueue) -> Answer | None:
    count = len(message.payloads)
    if not 1 <= count <= TASKS_MAX:
        return BadRequest(f"payloads: a frame carries 1 to {TASKS_MAX} tasks, not {count}", field="payloads")
    if len(message.ids) != count * ID_BYTES:
        return BadRequest(f"ids: {count} tasks need {count * ID_BYTES} bytes of ids, not {len(message.ids)}", field="ids")
    if not NAME.fullmatch(message.queue):
        return BadRequest(f"queue: must be {NAME_RULE}", field="queue")
    for name in COLUMNS:
        entries = len(getattr(message, name))
        if entries not in (1, count):
            return BadRequest(f"{name}: needs 1 entry or one for each of the {count} tasks, not {entries}", field=name)
    return None


def _bad_values(message: m.Enqueue, count: int, payload_bytes_max: int) -> dict[int, Answer]:
    errors: dict[int, Answer] = {}
    for name, (is_good, rule) in COLUMNS.items():
        values = getattr(message, name)
        for at, value in enumerate(values):
            if not is_good(value):
                error = BadRequest(f"{name}: {rule}", field=name)
                errors.update(dict.fromkeys(range(count), error) if len(values) == 1 else {at: error})
    if max(map(len, message.payloads)) <= payload_bytes_max:
        return errors
    for at, payload in enumerate(message.payloads):
        if len(payload) > payload_bytes_max:
            errors[at] = PayloadTooLarge(
                f"payload: {len(payload)} bytes, the limit is {payload_bytes_max}; store it elsewhere and enqueue a reference", field="payload"
            )
    return errors


def _made(ids: list[bytes], slot: int, id_ms: int, book: Book) -> list[bytes]:
    return [make_id(id_ms, slot, book.rng) if task_id == NIL else task_id for task_id in ids] if NIL in ids else ids


def _bad_ids(ids: list[bytes], slot: int) -> dict[int, Answer]:
    errors: dict[int, Answer] = {}
    if _are_ours(b"".join(ids), slot):
        return errors
    for at, task_id in enumerate(ids):
        if not is_valid(task_id) or slot_of_id(task_id) != slot:
            errors[at] = BadRequest(f"ids: {task_id.hex()} is no UUIDv8 with slot {slot} of this queue; send 16 zero bytes for a new id", field="id")
    return errors


def _are_ours(block: bytes, slot: int) -> bool:
    """True if all ids are valid and of this slot: nearly always, and told without looking at each."""
    return (
        set(block[6::ID_BYTES]) == {0x80 | slot >> 8}
        and set(block[7::ID_BYTES]) == {slot & 0xFF}
        and all(byte >> 6 == 2 for byte in set(block[8::ID_BYTES]))
    )


def _unsure(
    book: Book, command: Command, message: m.Enqueue, ids: list[bytes], doubtful: Collection[bytes], errors: Collection[int]
) -> FindLoad | None:
    """The question to the store, if memory alone cannot say that these tasks are new."""
    asked = [task_id for task_id in ids if task_id in doubtful] if doubtful else []
    keys = {(message.queue, key) for key in message.keys if key is not None}
    unknown = any(task_id not in book.tasks for task_id in asked) or any(key not in book.keys for key in keys)
    if not unknown or len(errors) == len(ids):
        return None
    message.ids = b"".join(ids)
    asked = [*asked, *(task_id for task_id in ids if task_id in book.tasks)]
    return FindLoad(tuple(dict.fromkeys(asked)), tuple(sorted(keys)), command)


def _admit(
    book: Book,
    message: m.Enqueue,
    ids: list[bytes],
    slot: int,
    now_ms: int,
    known: Known,
    errors: dict[int, Answer],
    doubtful: Collection[bytes],
    resent: bool,
    bringer: str,
) -> Decision:
    count = len(ids)
    if not (errors or known or doubtful) and message.keys == [None] and _are_new(book, ids) and _fits(book, message, bringer):
        return _all_new(book, message, ids, slot, now_ms)
    outcomes, states = bytearray(count), bytearray(count)
    keys = column(message.keys, count)
    delays = column(message.delays_ms, count)
    fresh: dict[Any, int] = {}
    same = Comparison().same
    for at, task_id in enumerate(ids):
        states[at] = SCHEDULED if delays[at] else PENDING
        if at in errors:
            outcomes[at] = m.REFUSED
            continue
        text = keys[at]
        key = (message.queue, text) if text is not None else None
        twin = fresh.get(task_id, fresh.get(key) if key else None)
        task = book.tasks.get(task_id) or known.get(task_id) or (key and (book.keys.get(key) or known.get(key))) or None
        if twin is not None:
            twin_id, state, is_same = ids[twin], states[twin], same(_content(message, twin, count), _content(message, at, count))
        elif task is not None:
            twin_id, state, is_same = task.id, task.state, same(_content_of(task), _content(message, at, count))
        elif task_id in doubtful and _is_gone(book, task_id, resent):
            errors[at], outcomes[at] = IdTooOld(field="id"), m.REFUSED
            continue
        else:
            fresh[task_id] = at
            if key:
                fresh[key] = at
            continue
        if is_same:
            outcomes[at], states[at], ids[at] = m.EXISTS, state, twin_id
        else:
            errors[at], outcomes[at] = (IdConflict(field="id") if twin_id == task_id else _key_conflict(text, twin_id)), m.REFUSED
    chosen = [at for at in range(count) if outcomes[at] == m.CREATED]
    fitting, refusal = _fitting(book, message, chosen, bringer)
    if refusal is not None:
        if not fitting and len(chosen) == count:
            return [], error_of(refusal)
        for at in chosen[len(fitting) :]:
            errors[at], outcomes[at] = refusal, m.REFUSED
        chosen = fitting
    refused = [[at, error.code, error.message, error.field] for at, error in sorted(errors.items())]
    reply = m.Enqueued(b"".join(ids), bytes(outcomes), bytes(states), book.durability, refused)
    return ([_record(book, message, ids, slot, now_ms, chosen)] if chosen else []), reply


def _key_conflict(key: str | None, twin_id: bytes) -> KeyConflict:
    return KeyConflict(f"key {echo(key)}: task {twin_id.hex()} of this queue has it, with other content; use another key", field="key")


def _is_gone(book: Book, task_id: bytes, resent: bool) -> bool:
    """Whether a task with this id, of which nothing is found, was or may have been here and was deleted."""
    if task_id in book.shared.recent:
        return True
    return (resent or not is_fresh(task_id, book.id_ms)) and book.shared.ids.may_be_pruned(task_id, book.id_ms)


def _are_new(book: Book, ids: list[bytes]) -> bool:
    return len(set(ids)) == len(ids) and book.tasks.keys().isdisjoint(ids)


def _fits(book: Book, message: m.Enqueue, bringer: str) -> bool:
    return book.refusal(message.queue, len(message.payloads), sum(map(len, message.payloads)), bringer) is None


def _fitting(book: Book, message: m.Enqueue, chosen: list[int], bringer: str) -> tuple[list[int], Answer | None]:
    """The first of these new tasks, as many as there is room for, and why for no more."""
    total = sum(len(message.payloads[at]) for at in chosen)
    if not chosen or book.refusal(message.queue, len(chosen), total, bringer) is None:
        return chosen, None
    payload_bytes = 0
    for place, at in enumerate(chosen):
        payload_bytes += len(message.payloads[at])
        refusal = book.refusal(message.queue, place + 1, payload_bytes, bringer)
        if refusal is not None:
            return chosen[:place], refusal
    raise InvariantError("all of the tasks fit one by one, but not together")


def _all_new(book: Book, message: m.Enqueue, ids: list[bytes], slot: int, now_ms: int) -> Decision:
    """The common case: nothing is wrong, no key, and no id that was seen before."""
    count = len(ids)
    states = bytes([SCHEDULED if delay else PENDING for delay in column(message.delays_ms, count)])
    reply = m.Enqueued(b"".join(ids), bytes(count), states, book.durability)
    return [_record(book, message, ids, slot, now_ms, range(count))], reply


def _content(message: m.Enqueue, at: int, count: int) -> Content:
    """What two enqueues must have in common to be the same task."""
    return message.queue, column(message.task_types, count)[at], column(message.encodings, count)[at], message.payloads[at]


def _content_of(task: Task) -> Content:
    return task.queue, task.options.task_type, task.options.encoding, task.payload


def _record(book: Book, message: m.Enqueue, ids: list[bytes], slot: int, now_ms: int, chosen: Sequence[int]) -> Admitted:
    count = len(ids)

    def kept(values: Sequence[Any]) -> list[Any]:
        return list(values) if len(values) == 1 or len(chosen) == count else [values[at] for at in chosen]

    payloads = message.payloads if len(chosen) == count else [message.payloads[at] for at in chosen]
    return Admitted(
        payloads=payloads,
        slot=slot,
        queue=message.queue,
        now_ms=now_ms,
        first_seq=book.sequence.take(len(chosen)),
        ids=b"".join(ids if len(chosen) == count else [ids[at] for at in chosen]),
        task_types=kept(message.task_types),
        encodings=kept(message.encodings),
        priorities=kept(message.priorities),
        dues_ms=kept([now_ms + delay if delay else 0 for delay in message.delays_ms]),
        keys=kept(message.keys),
        max_attempts=kept(message.max_attempts),
        timeouts_ms=kept(message.timeouts_ms),
        retries=kept(message.retries),
    )


def evolve_admitted(book: Book, record: Admitted) -> None:
    count = len(record.payloads)
    queue = book.queue(record.queue)
    payload_bytes = sum(map(len, record.payloads))
    queue.bytes += payload_bytes
    book.admission.spend(count, payload_bytes)
    if queue.pace is not None:
        queue.pace.let_in(count)
    tasks = _tasks(record, queue, count)
    book.tasks.update(zip([task.id for task in tasks], tasks, strict=True))
    book.dirty += tasks
    if record.dues_ms == [0]:
        queue.extend(tasks)
    else:
        for task in tasks:
            _line_up(book, queue, task)
    if record.keys != [None]:
        book.keys.update({(queue.name, task.key): task for task in tasks if task.key is not None})
    book.touched[queue.name] = None


def _tasks(record: Admitted, queue: Queue, count: int) -> list[Task]:
    """The new tasks; the store has none of them yet."""
    name, now_ms, first_seq = queue.name, record.now_ms, record.first_seq
    ids, seqs = split(record.ids, ID_BYTES), range(first_seq, first_seq + count)
    options, keys, dues_ms = [queue.shared(option) for option in _options(record)], column(record.keys, count), column(record.dues_ms, count)
    rows = zip(ids, seqs, column(options, count), map(parked, record.payloads), keys, dues_ms, strict=True)
    return [
        Task(task_id, seq, name, option, payload, SCHEDULED if due_ms else PENDING, now_ms, key, seq, due_ms, dirty=DIRTY)
        for task_id, seq, option, payload, key, due_ms in rows
    ]


def _line_up(book: Book, queue: Queue, task: Task) -> None:
    if task.state == SCHEDULED:
        queue.counts[SCHEDULED] += 1
        book.become_timed(task)
    else:
        queue.extend([task])


def _options(record: Admitted) -> list[Options]:
    columns: tuple[list[Any], ...] = (record.task_types, record.encodings, record.priorities, record.max_attempts, record.timeouts_ms, record.retries)
    widest = max(map(len, columns))
    rows = zip(*(column(values, widest) for values in columns), strict=True)
    return [_option(*row) for row in rows]


def _option(task_type: str, encoding: int, priority: int, max_attempts: int, timeout_ms: int, retry: Any) -> Options:
    policy = (int(retry[0]), float(retry[1]), int(retry[2])) if retry else m.DEFAULT_RETRY
    return Options(task_type, encoding, priority, max_attempts, timeout_ms, policy)
