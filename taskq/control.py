"""What a task function may raise to say how its attempt ends, instead of merely failing.

    raise Retry(after="10m")        the attempt failed; try again in ten minutes (without `after`: by the task's own backoff)
    raise Discard("no such user")   the attempt failed and another would too: the task goes to the dead letters now
    raise Snooze("1h")              not now: run it again in an hour, without using up an attempt

They are plain exceptions, so they pass through `except` clauses that name other types and survive pickling between processes.  What they carry
has a default in the class, for subclasses that do not call `super().__init__`.
"""

from __future__ import annotations

from taskq.durations import Duration, milliseconds
from taskq.errors import TaskqError


class Control(Exception):
    """The common parent, so that `except Control: raise` lets all of them pass."""


class Retry(Control):
    """Try again; `after` is a duration, None leaves the delay to the task's retry policy.  Uses up an attempt."""

    after_ms: int | None = None
    reason = "the task asked for a retry"

    def __init__(self, after: Duration | None = None, reason: object = "") -> None:
        super().__init__(after, str(reason))
        self.after_ms = None if after is None else milliseconds(after, "after")
        self.reason = self.args[1] or type(self).reason

    def __str__(self) -> str:
        return self.reason


class Discard(Control):
    """Do not try again: the task fails for good, with this reason."""

    reason = "the task discarded itself"

    def __init__(self, reason: object = "") -> None:
        super().__init__(str(reason) or type(self).reason)
        self.reason = self.args[0]


class Snooze(Control):
    """Run the task again after this duration; the attempt does not count."""

    delay_ms: int | None = None

    def __init__(self, delay: Duration) -> None:
        super().__init__(delay)
        self.delay_ms = milliseconds(delay, "delay")

    def __str__(self) -> str:
        return "snoozed" if self.delay_ms is None else f"snoozed for {self.delay_ms / 1000:g} s"


class ArgumentsError(Discard):
    """The payload does not fit the function's parameters, or cannot be decoded; no retry can change that."""


class WaitInTask(Discard, TaskqError):
    """A task may not wait for a task that needs a slot of its own worker: as soon as all slots wait so, none is left to wait for."""

    code = "WAIT_IN_TASK"
