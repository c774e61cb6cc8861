"""What a producer holds of a task after the enqueue: a handle to follow it, and the values that following it gives.

A handle can be used from async code on any loop and from code without one, whichever client made it; it knows its client only through
`Follower`, so this file knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar, Generic, NoReturn, Protocol, TypeVar, cast

import attrs

from taskq import serial
from taskq.core.messages import Payload
from taskq.core.messages import TaskInfo as TaskInfoMessage
from taskq.core.task import FINAL, STATES
from taskq.durations import Duration
from taskq.errors import TaskCancelled, TaskFailed, TaskqError
from taskq.loops import refuse_on_loop

R = TypeVar("R", covariant=True)
T = TypeVar("T")

FINAL_STATES = frozenset(STATES[state] for state in FINAL)


@attrs.frozen
class TaskInfo:
    """A task as the broker describes it.  `fields`: everything by name, as `taskq task ID --json` shows it; times are Unix milliseconds."""

    id: str
    task_type: str
    queue: str
    state: str
    fields: dict[str, Any] = attrs.field(repr=False)
    payload_bytes: Payload = attrs.field(repr=False)
    result_bytes: Payload = attrs.field(repr=False)

    @classmethod
    def of(cls, message: TaskInfoMessage) -> TaskInfo:
        payload, result = message.payloads
        info = message.info
        return cls(info["id"], info["task_type"], info["queue"], info["state"], info, payload, result)

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_STATES

    @property
    def payload(self) -> Any:
        """The decoded payload: a dict of arguments by name, a list of arguments by position, or the only argument."""
        return serial.decode(self.payload_bytes, self.fields["encoding"])

    @property
    def result(self) -> Any:
        """The return value; None unless the task is completed."""
        if self.state != "completed" or not len(self.result_bytes):
            return None
        return serial.decode(self.result_bytes, self.fields["result_encoding"])

    @property
    def error(self) -> str:
        """The text of the last attempt that failed, "" if none did."""
        return next((attempt["error"] for attempt in reversed(self.fields["attempts"]) if attempt["error"]), "")

    @property
    def error_type(self) -> str:
        """What the last attempt that failed ended with: the name of an exception, WorkerCrash if its process died; "" if none did."""
        return next((attempt["error_type"] for attempt in reversed(self.fields["attempts"]) if attempt["error"]), "")

    def outcome(self) -> Any:
        """The result of a completed task; raises TaskFailed or TaskCancelled for one that ended otherwise."""
        if self.state == "completed":
            return self.result
        if self.state == "cancelled":
            raise TaskCancelled(f"task {self.id} ({self.task_type}) was cancelled", id=self.id, task_type=self.task_type, error=self.error)
        text = f"task {self.id} ({self.task_type}) is {self.state}: {self.error or 'no error was reported'}"
        attempts = self.fields["attempts_used"]
        raise TaskFailed(text, id=self.id, task_type=self.task_type, error=self.error, error_type=self.error_type, attempts=attempts)


class Follower(Protocol):
    """What a handle needs of its client."""

    async def get(self, task: Any, timeout: Duration | None = None) -> TaskInfo: ...

    async def result(self, task: Any, timeout: Duration | None = None) -> Any: ...

    async def cancel(self, task: Any, timeout: Duration | None = None) -> str: ...

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop, wait on the caller's."""
        ...

    def blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop, block the caller's thread."""
        ...


class TaskHandle(Generic[R]):
    """An enqueued task.  `created` is False when it existed already; `durability` is the level that was reached: fsync, os or memory.

    `timeout`: how long `result` waits for the task, for ever if None; how long the other calls try, None: the client's deadline (10 s).
    The methods that end in `_sync` block; they are for code without an event loop."""

    __slots__ = ("_client", "created", "durability", "raw")

    def __init__(self, client: Follower, raw: bytes, created: bool = True, durability: str = "") -> None:
        self._client = client
        self.raw = raw
        self.created = created
        self.durability = durability

    @property
    def id(self) -> str:
        """32 hex digits."""
        return self.raw.hex()

    def __repr__(self) -> str:
        return f"TaskHandle({self.id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and other.raw == self.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TaskHandle belongs to its client and cannot be pickled; hand on handle.id, and ask with client.result(id)")

    async def result(self, timeout: Duration | None = None) -> R:
        """The return value, as soon as the task is completed.  Raises TaskFailed, TaskCancelled, ResultTimeout, NotFound, BrokerUnavailable."""
        return cast(R, await self._client.elsewhere(self._client.result(self.raw, timeout)))

    async def info(self, timeout: Duration | None = None) -> TaskInfo:
        """All that the broker knows about the task."""
        return await self._client.elsewhere(self._client.get(self.raw, timeout))

    async def state(self, timeout: Duration | None = None) -> str:
        """pending, running, completed, …"""
        return (await self.info(timeout)).state

    async def cancel(self, timeout: Duration | None = None) -> str:
        """`cancelled`, `requested` (it runs and was asked to stop) or `already_final`."""
        return await self._client.elsewhere(self._client.cancel(self.raw, timeout))

    def result_sync(self, timeout: Duration | None = None) -> R:
        refuse_on_loop("handle.result(…)")
        return cast(R, self._client.blocking(self._client.result(self.raw, timeout)))

    def info_sync(self, timeout: Duration | None = None) -> TaskInfo:
        refuse_on_loop("handle.info()")
        return self._client.blocking(self._client.get(self.raw, timeout))

    def state_sync(self, timeout: Duration | None = None) -> str:
        refuse_on_loop("handle.state()")
        return self.info_sync(timeout).state

    def cancel_sync(self, timeout: Duration | None = None) -> str:
        refuse_on_loop("handle.cancel()")
        return self._client.blocking(self._client.cancel(self.raw, timeout))


class EnqueueError(TaskqError):
    """Some tasks of an enqueue_many were not enqueued.  The others were, and stay: `handles` has one entry for each item, None where `errors`
    (item number → error) says why."""

    code: ClassVar[str] = "PARTLY_REFUSED"

    def __init__(self, handles: list[TaskHandle[Any] | None], errors: dict[int, TaskqError]) -> None:
        index, first = next(iter(errors.items()))
        done = len(handles) - len(errors)
        text = f"{len(errors)} of {len(handles)} tasks were not enqueued ({done} were); the first is item {index}: {first}"
        super().__init__(text, field=first.field)
        self.handles = handles
        self.errors = errors
