"""A task, its states and the transitions between them.

Everything that can happen to a task's state is in `NEXT`; a transition that is not there is a bug and raises, it is never an `else`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from taskq.core.attempt import HISTORY_MAX, Attempt, History
from taskq.core.messages import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RETRY, MSGPACK, Payload

SCHEDULED, WAITING, PENDING, RUNNING, RETRYING, COMPLETED, FAILED, CANCELLED, EXPIRED = range(9)
STATES = ("scheduled", "waiting", "pending", "running", "retrying", "completed", "failed", "cancelled", "expired")
FINAL = frozenset({COMPLETED, FAILED, CANCELLED, EXPIRED})
TIMED = frozenset({SCHEDULED, RETRYING})

NEXT: dict[int, frozenset[int]] = {
    SCHEDULED: frozenset({PENDING, CANCELLED, EXPIRED}),
    WAITING: frozenset({PENDING, CANCELLED, FAILED}),
    PENDING: frozenset({RUNNING, CANCELLED, EXPIRED}),
    RUNNING: frozenset({COMPLETED, FAILED, RETRYING, PENDING, SCHEDULED, CANCELLED}),
    RETRYING: frozenset({PENDING, CANCELLED, EXPIRED}),
    COMPLETED: frozenset(),
    FAILED: frozenset({PENDING}),
    CANCELLED: frozenset({PENDING}),
    EXPIRED: frozenset(),
}

CRASHES_MAX = 3
# a task with so many crashes runs alone: the next one would make it a dead letter, and must be its own
CRASHES_ALONE = CRASHES_MAX - 1
COPY_BYTES_MAX = 1_024
# the row in the store is as the task is; is behind; is behind, and a flush will make it
CLEAN, DIRTY, TAKEN = range(3)


class InvariantError(AssertionError):
    """The state machine was asked for something that cannot be: a bug, the process stops."""


@attrs.frozen
class Options:
    """What a task was enqueued with beside its payload; one object is shared by all tasks of a frame that have the same."""

    task_type: str
    encoding: int = MSGPACK
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = 0
    retry: tuple[int, float, int] = DEFAULT_RETRY


@attrs.define(eq=False)
class Task:
    """One task in memory.  `seq` is its row key, rising in commit order over the whole broker; `position` is its place in the line, a new one
    each time it becomes pending.  `token` is 0 unless it runs.  `hot`: it waits in memory, in a line or with a timer.
    `stored`: the store has a row of it; `dirty`: how far that row is behind."""

    id: bytes
    seq: int
    queue: str
    options: Options
    payload: Payload
    state: int
    enqueued_ms: int
    key: str | None = None
    position: int = 0
    due_ms: int = 0
    attempts: int = 0
    crashes: int = 0
    interruptions: int = 0
    cancel_requested: bool = False
    token: int = 0
    session: bytes = b""
    worker: str = ""
    delivery: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    result: Payload = b""
    result_encoding: int = MSGPACK
    last_token: int = 0
    history: History = ()
    stored: bool = False
    dirty: int = CLEAN
    hot: bool = False

    def move(self, state: int) -> None:
        """Change the state, by the table."""
        if state not in NEXT[self.state]:
            raise InvariantError(f"task {self.id.hex()}: {STATES[self.state]} → {STATES[state]} is not a transition")
        self.state = state

    def close_attempt(self, now_ms: int, outcome: str, error_type: str = "", error: str = "") -> None:
        """End the current run: remember it in the history (the newest 20 are kept) and drop the lease."""
        attempt = Attempt(self.attempts + 1, self.worker, self.started_ms, now_ms, outcome, error_type, error)
        self.history = (*self.history[-(HISTORY_MAX - 1) :], attempt)
        self.drop_lease()

    def excuse(self, cause: str) -> None:
        """The newest crash with this cause was an interruption: its worker came back."""
        self.crashes -= 1
        self.interruptions += 1
        crashed = ((attempt.error == cause, at) for at, attempt in enumerate(self.history) if attempt.outcome == "crashed")
        _, at = max(crashed, default=(False, None))
        if at is not None:
            self.history = (*self.history[:at], attrs.evolve(self.history[at], outcome="interrupted"), *self.history[at + 1 :])

    def drop_lease(self) -> None:
        self.last_token = self.token
        self.token = 0
        self.session = b""
        self.delivery = 0


def move_all(tasks: Iterable[Task], before: int, state: int) -> None:
    """Change the state of tasks that are all in the same one, by the table."""
    for task in tasks:
        if task.state != before:
            raise InvariantError(f"task {task.id.hex()}: is {STATES[task.state]}, not {STATES[before]}")
        task.state = state
    if state not in NEXT[before]:
        raise InvariantError(f"{STATES[before]} → {STATES[state]} is not a transition")


def parked(payload: Payload) -> Payload:
    """The bytes as they stay in memory: small ones are copied, since a view costs more than they do and pins all that came with it; large
    ones stay views of what was received."""
    return payload if type(payload) is bytes or len(payload) > COPY_BYTES_MAX else bytes(payload)


def describe(task: Task) -> dict[str, Any]:
    """The task's fields by name, as TaskInfo, HTTP and the command line show them.  Times are Unix milliseconds, 0 if not reached.  Its history
    has all its texts."""
    options = task.options
    return {
        "id": task.id.hex(),
        "task_type": options.task_type,
        "queue": task.queue,
        "state": STATES[task.state],
        "priority": options.priority,
        "key": task.key,
        "encoding": options.encoding,
        "result_encoding": task.result_encoding,
        "max_attempts": options.max_attempts,
        "timeout_ms": options.timeout_ms,
        "retry": list(options.retry),
        "enqueued_ms": task.enqueued_ms,
        "due_ms": task.due_ms if task.state in TIMED else 0,
        "started_ms": task.started_ms,
        "finished_ms": task.finished_ms,
        "attempts_used": task.attempts,
        "crashes": task.crashes,
        "interruptions": task.interruptions,
        "cancel_requested": task.cancel_requested,
        "worker": task.worker if task.state == RUNNING else "",
        "attempts": [attrs.asdict(attempt) for attempt in attempts(task)],
    }


def attempts(task: Task) -> History:
    """The runs so far.  A success is not kept as an attempt of its own: it stands in the task's fields."""
    if task.state == COMPLETED:
        return (*task.history, Attempt(task.attempts, task.worker, task.started_ms, task.finished_ms, "completed"))
    if task.state == RUNNING:
        return (*task.history, Attempt(task.attempts + 1, task.worker, task.started_ms, 0, "running"))
    return task.history
