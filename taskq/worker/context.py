"""What a task function can learn about its own run: `taskq.current_task()`, in async, thread and process tasks alike; and what is known of its
worker, so that a run cannot wait for the slot that it holds itself."""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextvars import ContextVar
from typing import Protocol

import attrs


class Run(Protocol):
    """What a pool knows about a run; a Job is one."""

    id: bytes
    token: bytes
    queue: str
    attempt: int
    deadline_s: float
    ending: int

    @property
    def task_type(self) -> str: ...


@attrs.frozen
class Serving:
    """What a worker takes, and the tokens of the runs that hold its slots now."""

    queues: Sequence[str] = ()
    task_types: Container[str] = ()
    runs: Container[bytes] = ()


NOTHING = Serving()
CURRENT: ContextVar[Run] = ContextVar("taskq_current_run")
SERVING: ContextVar[Serving] = ContextVar("taskq_serving", default=NOTHING)


def holding_a_slot() -> tuple[Run, Serving] | None:
    """The run that the caller is part of, and its worker; None outside of a run, and when that run holds no slot any more."""
    run, worker = CURRENT.get(None), SERVING.get()
    return (run, worker) if run is not None and run.token in worker.runs else None


class TaskContext:
    """The run that the caller is part of.

    `fence` rises with every lease that is ever given out, so a store that keeps the highest fence it saw can refuse a run that was replaced.
    """

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def id(self) -> str:
        """The task's id, 32 hex digits."""
        return self._run.id.hex()

    @property
    def task_type(self) -> str:
        return self._run.task_type

    @property
    def queue(self) -> str:
        return self._run.queue

    @property
    def attempt(self) -> int:
        """Counted from 1."""
        return self._run.attempt

    @property
    def fence(self) -> int:
        return int.from_bytes(self._run.token, "big")

    @property
    def deadline(self) -> float | None:
        """When the attempt times out, on the clock of `time.monotonic()`, or None."""
        return self._run.deadline_s or None

    @property
    def cancelled(self) -> bool:
        """The attempt is to end: cancelled, timed out, or its lease is lost.  A sync function in a thread should look at it now and then."""
        return self._run.ending != 0

    def __repr__(self) -> str:
        return f"TaskContext(id={self.id!r}, task_type={self.task_type!r}, queue={self.queue!r}, attempt={self.attempt})"


def current_task() -> TaskContext:
    """The task that this code runs for; LookupError outside of one."""
    try:
        return TaskContext(CURRENT.get())
    except LookupError:
        raise LookupError("current_task() was called outside of a running task") from None
