"""Where delivered tasks wait and run: one FIFO, a bound on how many run at once, and the three pools behind it.

    put([Job]) ─► waiting ─► carrier ─┬─ async: first step at once, the rest as the carrier's own Task (see steps.py)
                                      ├─ thread ─► ThreadPool
                                      └─ process ─► ProcessPool        every end ─► report(job, outcome)

Rules: a job is reported once, or never when its lease is lost: then `freed` is told that there is room again.  A carrier gives the loop back after
TURN_S.  No Task of ours is made by the loop's task factory, which a task may have replaced.  Timeouts are kept by the loop; what keeps the loop or
the GIL from running is the keeper's to end, told by the shared page.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context
from functools import partial
from sys import getrefcount
from time import monotonic
from typing import Any

import attrs

from taskq.worker.context import CURRENT, NOTHING, SERVING, Serving
from taskq.worker.copies import Copies
from taskq.worker.job import DRAINED, HANDBACK, LOST, NULL, TIMED_OUT, Job, Outcome, raised, settle, succeeded, timed_out
from taskq.worker.logs import BY_DEFAULT, Logging
from taskq.worker.origin import Origin
from taskq.worker.page import STEP, THREADS, Page
from taskq.worker.process import ProcessPool
from taskq.worker.settings import GRACE_S, PREFETCH_MAX, PREFETCH_S
from taskq.worker.steps import Rest
from taskq.worker.threads import ThreadPool, call

log = logging.getLogger("taskq.worker")

TURN_S = 0.002
# the share of the newest run in the measured work
WEIGHT = 0.1
# what waits for a slot longer than this is given back, so that another worker can have it
PATIENCE_S = 1.0

Report = Callable[[Job, Outcome], None]


class Workbench:
    """See the module.  `failed` is told of a bug in here, after which nothing can be trusted."""

    def __init__(
        self,
        app: str,
        concurrency: int,
        page: Page,
        report: Report,
        failed: Callable[[BaseException], None],
        freed: Callable[[], None] = lambda: None,
        serving: Serving = NOTHING,
        logging: Logging = BY_DEFAULT,
        copies: Copies | None = None,
        origin: Origin | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._concurrency = concurrency
        self._page = page
        self._report = report
        self._failed = failed
        self._freed = freed
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._carrying = False
        self._work_s = PREFETCH_S
        self._started_s = monotonic()
        self._jobs: dict[bytes, Job] = {}
        self._timers: dict[Job, asyncio.TimerHandle] = {}
        self._thread_limits_ns: dict[Job, int] = {}
        self._serving = attrs.evolve(serving, runs=self._jobs)
        self._copies = copies or Copies()
        self._threads = ThreadPool(self._loop, self._thread_over, self._serving, self._limit, self._copies)
        children = min(concurrency, os.cpu_count() or 1)
        self._processes = ProcessPool(app, children, self._begin_timed, self._over, failed, serving.queues, logging, origin)
        self._start: dict[str, Callable[[Job], None]] = {"thread": self._start_thread, "process": self._start_process}

    # ---- the outside

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def idle(self) -> bool:
        return not self._jobs

    @property
    def room(self) -> int:
        """How many more tasks to take: free slots, and as many more as are done in PREFETCH_S by the measure of the recent ones."""
        prefetch = min(PREFETCH_MAX, int(PREFETCH_S / max(self._work_s, 1e-6)))
        return max(0, self._concurrency + prefetch - len(self._jobs))

    @property
    def window(self) -> int:
        return self.room + len(self._jobs)

    def put(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._jobs[job.token] = job
            self._waiting.append(job)
        self._wake()

    def end(self, token: bytes, ending: int) -> None:
        """End the attempt under this token as far as its pool can; it is reported when it is over, by `settle`.  Unknown tokens are over already."""
        job = self._jobs.get(token)
        if job is None or (job.ending and ending != LOST):
            return
        job.ending = ending
        if not job.started_s and job.stop is None:
            self._jobs.pop(token)
            self._tell(job, HANDBACK)
        else:
            self._stop(job)
            if ending == LOST and job.pool == "thread":
                self._free_thread(job)

    def hand_back_waiting(self) -> None:
        """Give back what was not started."""
        for job in list(self._waiting):
            self.end(job.token, DRAINED)
        self._waiting.clear()

    def relieve(self) -> None:
        """To be called now and then: when long tasks took all slots behind a measure of short ones, give back what was fetched ahead."""
        if self._waiting and self._running >= self._concurrency and monotonic() - self._started_s > PATIENCE_S:
            self._work_s = max(self._work_s, PATIENCE_S)
            self.hand_back_waiting()

    def hand_back_all(self) -> None:
        """The drain time is over: end what still runs.  A thread is left alone and its task given back."""
        self.hand_back_waiting()
        for job in list(self._jobs.values()):
            self.end(job.token, DRAINED)
            if job.pool == "thread" and self._threads.give_up(job):
                log.warning("%s: given back while its thread goes on until the process ends", job.label)
                self._thread_over(job, HANDBACK)

    def files(self) -> Iterable[int]:
        """The numbers of the pipes to the children."""
        return self._processes.files()

    async def close(self) -> None:
        self._threads.close()
        await self._processes.close()

    # ---- starting

    def _wake(self) -> None:
        if not self._carrying and self._waiting and self._running < self._concurrency:
            self._carrying = True
            asyncio.Task(self._carry(), loop=self._loop).add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

    async def _carry(self) -> None:
        """Start one job after the other.  The first async one that has to wait keeps this Task, and the next carrier goes on."""
        if self._copies.copied:
            self._copies.leave()
        task: Any = asyncio.current_task()
        references = getrefcount(task)
        SERVING.set(self._serving)
        waiting, start = self._waiting, self._start
        self._started_s = monotonic()
        until = self._started_s + TURN_S
        while waiting and self._running < self._concurrency:
            job = waiting.popleft()
            if job.ending:
                continue
            self._running += 1
            if job.pool != "async":
                start[job.pool](job)
                continue
            rest = self._first_step(job)
            if rest is not None:
                self._carrying = False
                self._wake()
                await self._remaining_steps(job, rest, task)
                return
            if task.cancelling() or getrefcount(task) != references or job.started_s > until:
                break
        self._carrying = False
        self._wake()

    def _first_step(self, job: Job) -> Rest | None:
        """Run the job to its end if it does not wait; else what remains of it."""
        definition = job.definition
        started_s = monotonic()
        job.begin(started_s)
        CURRENT.set(job)
        context = copy_context()
        if job.timeout_ms:
            self._enter_step(job)
        coroutine: Any = None
        try:
            if not definition.is_async:
                outcome = context.run(call, job, self._copies)
            else:
                args, kwargs = definition.arguments(job.payload, job.encoding)
                coroutine = definition.function(*args, **kwargs)
                yielded = context.run(coroutine.send, None)
                return Rest(coroutine, context, yielded, partial(self._enter_step, job), self._leave_step)
        except StopIteration as stop:
            outcome = NULL if stop.value is None else succeeded(job, stop.value)
        except BaseException as error:
            if self._copies.copied:
                self._copies.leave()
            outcome = raised(job, error)
        finally:
            if job.timeout_ms or self._copies.copied:
                self._leave_step()
        self._finish(job, outcome, monotonic() - started_s)
        return None

    async def _remaining_steps(self, job: Job, rest: Rest, task: asyncio.Task[None]) -> None:
        """From here on the Task is the job's own: it can be cancelled, and takes no other job."""
        job.stop = partial(_cancel, job, task)
        if job.timeout_ms:
            self._set_timer(job)
        if job.ending:
            self._stop(job)
        try:
            outcome = succeeded(job, await rest)
        except BaseException as error:
            outcome = raised(job, error)
        if not job.over:
            self._over(job, outcome)

    def _enter_step(self, job: Job) -> None:
        if self._copies.copied:
            self._copies.leave()
        if job.deadline_s:
            self._page.cells[STEP] = int((job.deadline_s + GRACE_S) * 1e9)

    def _leave_step(self) -> None:
        if self._copies.copied:
            self._copies.leave()
        self._page.cells[STEP] = 0

    def _start_thread(self, job: Job) -> None:
        job.begin(monotonic())
        job.stop = _cooperate
        if job.timeout_ms:
            self._set_timer(job)
            self._thread_limits_ns[job] = int((job.deadline_s + GRACE_S) * 1e9)
            self._page.cells[THREADS] = min(self._thread_limits_ns.values())
        self._threads.start(job)

    def _start_process(self, job: Job) -> None:
        job.stop = partial(self._processes.stop, job)
        self._processes.start(job)

    def _begin_timed(self, job: Job) -> None:
        """A child takes the job now."""
        job.begin(monotonic())
        if job.timeout_ms:
            self._set_timer(job)

    def _limit(self, threads: int) -> None:
        """The system gives no more threads: as many slots as there are, until the worker starts anew."""
        if 0 < threads < self._concurrency:
            text = "no more than %d threads can be started here, so as many tasks run at once, not %d; a limit of memory or processes is the reason"
            log.warning(text, threads, self._concurrency)
            self._concurrency = threads

    # ---- timeouts

    def _set_timer(self, job: Job) -> None:
        self._timers[job] = self._loop.call_later(max(0.0, job.deadline_s - monotonic()), self._time_out, job)

    def _cancel_timer(self, job: Job) -> None:
        timer = self._timers.pop(job, None)
        if timer is not None:
            timer.cancel()

    def _time_out(self, job: Job) -> None:
        """A thread that was told to end and does not is over at its timeout all the same; the other pools have been stopped."""
        if job.pool == "thread":
            self._time_out_thread(job)
        elif not job.ending:
            job.ending = TIMED_OUT
            log.warning("%s: timed out after %g s", job.label, job.timeout_ms / 1000)
            self._stop(job)

    def _time_out_thread(self, job: Job) -> None:
        ending, job.ending = job.ending, job.ending or TIMED_OUT
        if self._threads.give_up(job):
            text = "%s: timed out after %g s; its thread cannot be killed and goes on, a new one takes its place"
            log.warning(text, job.label, job.timeout_ms / 1000)
            self._thread_over(job, timed_out(job))
        else:
            job.ending = ending  # the function has returned in time to be counted

    def _stop(self, job: Job) -> None:
        """End a run as far as its pool can.  An async function gets GRACE_S for it."""
        if job.stop is None:
            return
        if job.pool == "async":
            self._cancel_timer(job)
            self._timers[job] = self._loop.call_later(GRACE_S, self._abandon, job)
        job.stop()

    def _free_thread(self, job: Job) -> None:
        """Nobody waits for this run any more, and the slot should not either, however long it goes on."""
        if self._threads.given_up < self._concurrency and self._threads.give_up(job):
            log.warning("%s: its thread cannot be killed and goes on, a new one takes its place", job.label)
            self._thread_over(job, HANDBACK)

    def _abandon(self, job: Job) -> None:
        """An async function swallows its cancellation: the attempt is over, and it goes on unseen."""
        if not job.over:
            log.error("%s: did not end within %g s of being cancelled; its slot is used again, its code goes on", job.label, GRACE_S)
            self._over(job, timed_out(job))

    # ---- ending

    def _thread_over(self, job: Job, outcome: Outcome, work_s: float | None = None) -> None:
        """`work_s`: what it took in its thread; the time in the line before it says nothing about the work."""
        if self._thread_limits_ns.pop(job, 0):
            self._page.cells[THREADS] = min(self._thread_limits_ns.values(), default=0)
        self._over(job, outcome, work_s)

    def _over(self, job: Job, outcome: Outcome, work_s: float | None = None) -> None:
        job.over = True
        self._cancel_timer(job)
        if work_s is None:
            work_s = monotonic() - job.started_s if job.started_s else self._work_s
        self._finish(job, outcome, work_s)
        self._wake()

    def _finish(self, job: Job, outcome: Outcome, work_s: float) -> None:
        self._running -= 1
        self._work_s += WEIGHT * (work_s - self._work_s)
        self._jobs.pop(job.token, None)
        if job.ending:
            self._tell(job, outcome)
        else:
            job.stop = None
            self._report(job, outcome)

    def _tell(self, job: Job, outcome: Outcome) -> None:
        """Report a job that was ended from outside."""
        job.stop = None
        settled = settle(job, outcome)
        if settled is None:
            self._freed()
        else:
            self._report(job, settled)


def _cancel(job: Job, task: asyncio.Task[None]) -> None:
    task.cancel()


def _cooperate() -> None:
    """A thread looks at `current_task().cancelled` by itself."""


# the functions in which a task's code runs on the loop
STEPS = frozenset({Workbench._first_step.__code__, Workbench._remaining_steps.__code__})
