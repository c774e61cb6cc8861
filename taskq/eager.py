"""Enqueue without a broker: the task runs at once, where it is enqueued, and its handle has the outcome.  For tests without an event loop, or
without the wish to wait.

What stays as it is: arguments and results are checked and become what arrives on a worker, exceptions follow `retry_on`, `Retry`, `Discard` and
`max_attempts`, keys make an enqueue idempotent, `current_task()` works, a task that failed raises at its handle.  What does not exist here: time.
Delays, backoff and snoozes are over at once, a sync function has no timeout, and every pool is the caller's thread.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterator
from contextvars import copy_context
from typing import Any, TypeVar

from taskq import ids
from taskq.batch import Encoded
from taskq.core import messages as m
from taskq.core.content import Comparison
from taskq.core.task import COMPLETED, FAILED, FINAL, PENDING, RETRYING, RUNNING, SCHEDULED, Task, describe
from taskq.core.task import Options as TaskOptions
from taskq.durations import Duration
from taskq.errors import IdConflict, KeyConflict, NotFound
from taskq.handle import TaskHandle, TaskInfo
from taskq.loops import refuse_on_loop
from taskq.options import Options, check_id
from taskq.worker.context import CURRENT
from taskq.worker.job import TIMED_OUT, Handback, Job, Outcome, raised, settle, succeeded
from taskq.worker.loading import AppLike
from taskq.worker.registry import Verdict
from taskq.worker.threads import call

T = TypeVar("T")

SNOOZES_MAX = 100


class EagerClients:
    """The `Clients` of an App whose tasks run at once."""

    url = "nowhere: tasks run where they are enqueued"

    def __init__(self, app: AppLike) -> None:
        self._client = EagerClient(app)

    def client(self) -> EagerClient:
        return self._client

    def blocking_client(self) -> EagerBlockingClient:
        refuse_on_loop("task.enqueue(…)")
        return EagerBlockingClient(self._client)

    def submit_many_sync(self, task_type: str, items: list[Encoded], options: Options) -> list[TaskHandle[Any]]:
        client = self.blocking_client()
        return [client.submit(task_type, item, options) for item in items]

    async def close(self) -> None:
        """There is nothing to close."""

    def close_sync(self) -> None:
        """There is nothing to close."""


class EagerClient:
    """Runs what is submitted, and remembers how it ended."""

    def __init__(self, app: AppLike) -> None:
        self._app = app
        self._tasks: dict[bytes, Task] = {}
        self._keys: dict[tuple[str, str], Task] = {}
        self._rng = random.Random()

    async def submit(self, task_type: str, item: Encoded, options: Options) -> TaskHandle[Any]:
        task, created = self.admit(task_type, item, options)
        for job in self.jobs(task) if created else ():
            self.settle(task, job, await (asyncio.create_task(awaited(job)) if job.definition.is_async else asyncio.to_thread(call, job)))
        return self.handle(task, created)

    async def submit_many(self, task_type: str, items: list[Encoded], options: Options) -> list[TaskHandle[Any]]:
        return [await self.submit(task_type, item, options) for item in items]

    def handle(self, task: Task, created: bool) -> TaskHandle[Any]:
        return TaskHandle(self, task.id, created, "memory")

    def admit(self, task_type: str, item: Encoded, options: Options) -> tuple[Task, bool]:
        """The task, and whether it is a new one."""
        payload, encoding = item
        known = self._tasks.get(options.id or b"") or self._keys.get((options.queue, options.key or ""))
        if known is not None:
            its = known.queue, known.options.task_type, known.options.encoding, known.payload
            if Comparison().same(its, (options.queue, task_type, encoding, payload)):
                return known, False
            if known.id == options.id:
                raise IdConflict(field="id")
            raise KeyConflict(f"key {options.key!r}: task {known.id.hex()} has it, with other content; use another key", field="key")
        policy = TaskOptions(task_type, encoding, options.priority, options.max_attempts, options.timeout_ms, options.retry or m.DEFAULT_RETRY)
        now_ms = time.time_ns() // 1_000_000
        task_id = options.id or ids.make_id(now_ms, ids.slot_of_queue(options.queue), self._rng)
        task = self._tasks[task_id] = Task(task_id, len(self._tasks), options.queue, policy, payload, PENDING, now_ms, options.key)
        if options.key is not None:
            self._keys[options.queue, options.key] = task
        return task, True

    def jobs(self, task: Task) -> Iterator[Job]:
        """One attempt after the other, until the task has ended; each is to be settled before the next."""
        definition, options = self._app.tasks[task.options.task_type], task.options
        for number in range(SNOOZES_MAX + options.max_attempts):
            if task.state in FINAL:
                return
            task.state, task.started_ms, task.worker = RUNNING, time.time_ns() // 1_000_000, "eager"
            timeout_ms = options.timeout_ms or definition.timeout_ms
            token = (number + 1).to_bytes(ids.TOKEN_BYTES, "big")
            about = (definition, task.payload, options.encoding, task.attempts + 1, timeout_ms, "thread", options.max_attempts, options.retry)
            yield Job(task.id, token, task.queue, *about)
        if task.state not in FINAL:
            raise RuntimeError(f"task {task.id.hex()} ({options.task_type}) was snoozed {SNOOZES_MAX} times; eager tasks do not wait")

    def settle(self, task: Task, job: Job, outcome: Outcome) -> None:
        now_ms = time.time_ns() // 1_000_000
        if isinstance(outcome, Handback):
            task.close_attempt(now_ms, "snoozed")
            task.state = SCHEDULED
            return
        if isinstance(outcome, Verdict):
            task.close_attempt(now_ms, "failed", outcome.error_type, outcome.error)
        task.attempts += 1
        if isinstance(outcome, bytes):
            task.state, task.result, task.finished_ms = COMPLETED, outcome, now_ms
        elif outcome.disposition == m.DISCARD or task.attempts >= task.options.max_attempts:
            task.state, task.finished_ms = FAILED, now_ms
        else:
            task.state = RETRYING

    # ---- what a handle asks

    async def get(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        found = self._tasks.get(task.raw if isinstance(task, TaskHandle) else check_id(task))
        if found is None:
            raise NotFound
        return TaskInfo.of(m.TaskInfo([found.payload, found.result], {**describe(found), "blocker": ""}))

    async def wait(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        return await self.get(task)

    async def result(self, task: Any, timeout: Duration | None = None) -> Any:
        return (await self.get(task)).outcome()

    async def cancel(self, task: Any, timeout: Duration | None = None) -> str:
        await self.get(task)
        return "already_final"

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        return await work

    def blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """None of these waits for anything."""
        try:
            work.send(None)
        except StopIteration as stop:
            found: T = stop.value
            return found
        raise AssertionError("an eager client has nothing to wait for")


class EagerBlockingClient:
    """The same for code without an event loop."""

    def __init__(self, client: EagerClient) -> None:
        self._client = client

    def submit(self, task_type: str, item: Encoded, options: Options) -> TaskHandle[Any]:
        task, created = self._client.admit(task_type, item, options)
        for job in self._client.jobs(task) if created else ():
            self._client.settle(task, job, asyncio.run(awaited(job)) if job.definition.is_async else copy_context().run(call, job))
        return self._client.handle(task, created)


async def awaited(job: Job) -> Outcome:
    """Run an async function, with the timeout of its attempt."""
    CURRENT.set(job)
    try:
        args, kwargs = job.definition.arguments(job.payload, job.encoding)
        async with asyncio.timeout(job.timeout_ms / 1000 or None) as limit:
            value = await job.definition.function(*args, **kwargs)
    except TimeoutError as error:
        if limit.expired():
            job.ending = TIMED_OUT
        outcome = settle(job, raised(job, error))
        assert outcome is not None
        return outcome
    except Exception as error:
        return raised(job, error)
    return succeeded(job, value)
