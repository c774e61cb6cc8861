"""One delivered task on its way through the worker: what was delivered, how it runs, how it ended.

An *outcome* is the bytes of a result, a Verdict (the attempt failed) or a Handback.  An *ending* says that the worker, not the function,
ended the attempt, and decides what is reported then.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import CORO_CREATED, getcoroutinestate
from types import CoroutineType
from typing import Any, TypeAlias

import attrs

from taskq.control import Snooze
from taskq.core.messages import DISCARD, RETRY, Payload
from taskq.foreign import is_one_of, shortened
from taskq.worker.failure import ERROR_BYTES_MAX, delay_of, error_text, type_name
from taskq.worker.logs import tell_failure
from taskq.worker.misfit import misfit
from taskq.worker.registry import TaskDefinition, Verdict

# what a function raises that got arguments of another type than it says
OF_ARGUMENTS = (TypeError, ValueError, AttributeError)
# endings
NONE, TIMED_OUT, CANCELLED, LOST, DRAINED = range(5)
# msgpack's null
NULL = b"\xc0"


@attrs.frozen
class Handback:
    """Give the task back, uncharged: at once, or to be run again after `delay_ms`."""

    delay_ms: int = 0


Outcome: TypeAlias = bytes | Verdict | Handback
HANDBACK = Handback()


@attrs.define(eq=False)
class Job:
    """`stop` ends the attempt while it runs, as far as its pool can; `started_s` and `deadline_s` are monotonic seconds, 0: not started, none.
    `max_attempts` 0, `retry` None: not told by the broker.  `told`: its failure is in the log."""

    id: bytes
    token: bytes
    queue: str
    definition: TaskDefinition
    payload: Payload
    encoding: int
    attempt: int
    timeout_ms: int
    pool: str
    max_attempts: int = 0
    retry: tuple[int, float, int] | None = None
    started_s: float = 0.0
    deadline_s: float = 0.0
    ending: int = NONE
    over: bool = False
    told: bool = False
    stop: Callable[[], None] | None = None

    @property
    def task_type(self) -> str:
        return self.definition.name

    @property
    def label(self) -> str:
        """The task in a log line."""
        return f"task {self.id.hex()} ({self.definition.name}, attempt {self.attempt})"

    def begin(self, now_s: float) -> None:
        self.started_s = now_s
        if self.timeout_ms:
            self.deadline_s = now_s + self.timeout_ms / 1000


def succeeded(job: Job, value: Any) -> Outcome:
    """The outcome of a call that returned.  Never raises: a result that cannot be sent fails the attempt for good, as the next one could not
    be sent either."""
    if value is None:
        return NULL
    try:
        return job.definition.result(value)
    except TypeError as error:
        close_unawaited(value)
        return _failed(job, Verdict(DISCARD, 0, "TypeError", shortened(str(error), ERROR_BYTES_MAX)), error)
    except MemoryError as error:
        return raised(job, error)
    except BaseException as error:
        return _failed(job, Verdict(DISCARD, 0, type_name(error), error_text(error)), error)


def close_unawaited(value: Any) -> None:
    """That a coroutine was not awaited is said once, by the error."""
    if is_one_of(value, (CoroutineType,)) and getcoroutinestate(value) == CORO_CREATED:
        value.close()


def raised(job: Job, error: BaseException) -> Outcome:
    """The outcome of a call that raised.  Never raises, whatever the exception is like."""
    if not is_one_of(error, (Snooze,)):
        verdict = job.definition.disposition(error)
        hint = misfit(job.definition, job.payload, job.encoding) if is_one_of(error, OF_ARGUMENTS) else ""
        return _failed(job, verdict._replace(error=f"{verdict.error}; {hint}") if hint else verdict, error)
    delay_ms = delay_of(error, "delay_ms")
    if delay_ms is None:
        text = "the Snooze has no delay, so the attempt failed; an __init__ of its own must call super().__init__(delay)"
        return _failed(job, Verdict(RETRY, 0, type_name(error), text), error)
    return Handback(max(1, delay_ms))


def _failed(job: Job, verdict: Verdict, error: BaseException) -> Verdict:
    """Said here, where the exception still is.  What ends because the worker ended it is no failure of the task."""
    if job.ending == NONE:
        tell_failure(job, verdict, error)
    return verdict


def timed_out(job: Job) -> Outcome:
    return job.definition.disposition(TimeoutError(f"the attempt ran longer than its timeout of {job.timeout_ms / 1000:g} s"))


def settle(job: Job, outcome: Outcome) -> Outcome | None:
    """What to report, in view of how the attempt was ended; None: nothing, the lease is lost.  A result counts even if it came after a cancel."""
    if job.ending == NONE:
        return outcome
    if job.ending == TIMED_OUT:
        return timed_out(job)
    if job.ending == LOST:
        return None
    return outcome if isinstance(outcome, bytes) else HANDBACK
