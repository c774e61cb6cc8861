"""Cancel: a task that does not run is cancelled at once; a running one is asked to stop.

Whatever its worker reports but success then makes it cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from struct import pack

from taskq.core import access
from taskq.core import messages as m
from taskq.core.book import Book, Decision
from taskq.core.effects import Command, FindLoad, Reply
from taskq.core.enqueue import TASKS_MAX, Known, error_of
from taskq.core.lookup import answer_waiters
from taskq.core.records import CancelAsked, Dropped
from taskq.core.report import by_slot
from taskq.core.task import CANCELLED, FINAL, RUNNING, TIMED, Task
from taskq.errors import Answer, BadRequest
from taskq.ids import ID_BYTES, slot_of_id, split


def decide_cancel(book: Book, command: Command, now_ms: int, known: Known | None) -> Decision:
    misshapen = refusal(command.message)
    if misshapen is not None:
        return [], error_of(misshapen)
    ids = split(command.message.ids, ID_BYTES)
    if known is None and any(task_id not in book.tasks for task_id in ids):
        return [], FindLoad(tuple(ids), (), command)
    tasks = [book.tasks.get(task_id) or (known or {}).get(task_id) for task_id in ids]
    if command.grant is not None and (refused := access.refusal(command.grant, command.message, [task.queue for task in tasks if task is not None])):
        return [], error_of(refused)
    idle = {task.id: task for task in tasks if task is not None and task.state not in FINAL and task.state != RUNNING}
    running = {task.id: task for task in tasks if task is not None and task.state == RUNNING}
    for task in idle.values():
        book.adopt(task)
    records: list[object] = [Dropped(slot_of_id(block), now_ms, block) for block in _blocks(idle)]
    records += [CancelAsked(slot_of_id(block), block) for block in _blocks(running)]
    return records, m.Cancelled(bytes(_outcome(task) for task in tasks))


def refusal(message: m.Cancel) -> Answer | None:
    """Why nothing of this request is done, if it is not."""
    if 1 <= len(message.ids) // ID_BYTES <= TASKS_MAX and not len(message.ids) % ID_BYTES:
        return None
    return BadRequest(f"ids: send 1 to {TASKS_MAX} ids of {ID_BYTES} bytes", field="ids")


def _blocks(tasks: Mapping[bytes, Task]) -> list[bytes]:
    """The ids of each slot as one block."""
    return [b"".join([task.id for _, task in rows]) for rows in by_slot(enumerate(tasks.values()))]


def _outcome(task: Task | None) -> int:
    if task is None:
        return m.CANCEL_NOT_FOUND
    if task.state in FINAL:
        return m.CANCEL_ALREADY_FINAL
    return m.CANCEL_REQUESTED if task.state == RUNNING else m.CANCEL_DONE


def evolve_dropped(book: Book, record: Dropped) -> None:
    for task_id in split(record.ids, ID_BYTES):
        task = book.tasks[task_id]
        book.touch(task)
        if task.state in TIMED:
            book.dead_timers += task.hot
            book.leave_timed(task)
        book.queue(task.queue).move(task, CANCELLED)
        task.finished_ms = record.now_ms
        answer_waiters(book, task, record.now_ms)


def evolve_cancel_asked(book: Book, record: CancelAsked) -> None:
    for task_id in split(record.ids, ID_BYTES):
        task = book.tasks[task_id]
        book.touch(task)
        task.cancel_requested = True
        consumer = book.consumers.get(task.session)
        if consumer is not None and consumer.origin:
            book.effects.replies.append(Reply(consumer.origin, 0, 0, m.Revoke(pack(">Q", task.token))))
