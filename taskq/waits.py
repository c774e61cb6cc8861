"""Waits for tasks to end: asked of the broker, which answers when the task is final, or when the time that it was given is over.

Rules:
- A wait with a timeout ends at that time, whether the broker is slow, gone or healthy; only the answer itself always gets ANSWER_S.
- At most WAITS_MAX waits of a connection are with the broker, fewer than it allows.  The others take turns with them, in order, so nothing else that
  the connection does is behind them, and none waits longer than the turns of all.
- A task may not wait for one that needs a slot of its own worker: WaitInTask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from taskq.control import WaitInTask
from taskq.core import messages as m
from taskq.durations import Duration, seconds
from taskq.errors import BrokerUnavailable, ResultTimeout
from taskq.handle import TaskInfo
from taskq.protocol.link import WAITS_MAX
from taskq.worker.context import holding_a_slot

# so many waits may stay with the broker for long; who comes later asks for TURN_S and makes room for the next one
LONG_WAITS_MAX = 4_000
WAIT_S_MAX = 20.0
TURN_S = 1.0
ANSWER_S = 0.5
LATE_S = 0.05
WAITS_IN_TASK = (
    "a task may not wait for task {} ({}): it needs a slot of this worker, and the waiting task holds one, so a few such tasks would wait for "
    "each other for ever; let the task that ends enqueue the next step, or give queue {} a worker of its own"
)

# sends a request; the answer, or BrokerUnavailable after so many seconds
Call = Callable[[Any, float], Awaitable[Any]]


class Waits:
    """Those of one connection.  `answer_s`: how long the broker may be silent beyond the time that it was given."""

    def __init__(self, call: Call, connected: Callable[[], bool], answer_s: float) -> None:
        self._call = call
        self._connected = connected
        self._answer_s = answer_s
        self._turns = asyncio.Semaphore(WAITS_MAX)
        self._asked = 0

    async def final(self, raw: bytes, timeout: Duration | None) -> TaskInfo:
        """The task when it has ended.  Raises ResultTimeout, and what the call raises."""
        until_s = None if timeout is None else time.monotonic() + seconds(timeout, "timeout")
        await self._refuse_own_slot(raw, until_s)
        while True:
            info = await self._turn(raw, until_s)
            if info.is_final:
                return info
            if until_s is not None and time.monotonic() >= until_s:
                raise still(info, timeout)

    async def _turn(self, raw: bytes, until_s: float | None) -> TaskInfo:
        """What is known at the end of one wait."""
        try:
            async with asyncio.timeout(None if until_s is None else left_s(until_s)):
                await self._turns.acquire()
        except TimeoutError:
            return await self.now(raw, ANSWER_S)
        self._asked += 1
        try:
            return await self._ask(raw, until_s, WAIT_S_MAX if self._asked <= LONG_WAITS_MAX else TURN_S)
        finally:
            self._asked -= 1
            self._turns.release()

    async def _ask(self, raw: bytes, until_s: float | None, wait_s: float) -> TaskInfo:
        patience_s = wait_s + self._answer_s
        if until_s is not None:
            wait_s = min(wait_s, left_s(until_s))
            patience_s = max(ANSWER_S, min(patience_s, left_s(until_s) + LATE_S))
        try:
            return TaskInfo.of(await self._call(m.Get(raw, round(wait_s * 1000)), patience_s))
        except BrokerUnavailable:
            if until_s is None or time.monotonic() < until_s or not self._connected():
                raise
            return await self.now(raw, ANSWER_S)  # a broker whose clock goes slower than ours is no broker that is away

    async def now(self, raw: bytes, patience_s: float) -> TaskInfo:
        return TaskInfo.of(await self._call(m.Get(raw), patience_s))

    async def _refuse_own_slot(self, raw: bytes, until_s: float | None) -> None:
        """A task of another worker may be waited for.  What had ended when the run began is only read; a new task is refused though it may have
        ended already, so that a mistake shows at once and not under load."""
        held = holding_a_slot()
        if held is None:
            return
        run, worker = held
        patience_s = self._answer_s if until_s is None else max(ANSWER_S, left_s(until_s))
        info = await self.now(raw, patience_s)
        if info.queue in worker.queues and info.task_type in worker.task_types:
            began_ms = (await self.now(run.id, patience_s)).fields["started_ms"]
            if not info.is_final or info.fields["enqueued_ms"] >= began_ms:
                raise WaitInTask(WAITS_IN_TASK.format(info.id, info.task_type, info.queue))


def left_s(until_s: float) -> float:
    return max(0.0, until_s - time.monotonic())


def still(info: TaskInfo, timeout: Duration | None) -> ResultTimeout:
    """What a wait that was too short tells: why the task has not begun, or what its last attempt ended with."""
    blocker = str(info.fields.get("blocker") or "")
    why = (f": {blocker}" if blocker else "") + (f"; its last error: {info.error.strip().splitlines()[-1]}" if info.error.strip() else "")
    text = f"task {info.id} ({info.task_type}) is still {info.state} after {timeout} s{why}; it goes on"
    return ResultTimeout(text, id=info.id, task_type=info.task_type, state=info.state, blocker=blocker, error=info.error)
