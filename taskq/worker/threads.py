"""Threads for sync functions: a small pool whose slots can be replaced, since a thread cannot be killed.

A wake-up of a thread costs more than a short function.  So jobs lie in one line, and a thread that has ended one takes the next by itself; at most
one thread is on its way to the line at a time, and before it runs a job it wakes another one if more are waiting: short jobs are run by few threads,
those that wait are soon run by as many as there are.  What ended comes back to the loop in batches, one wake-up for all that ended meanwhile.

A job that is given up (timeout, drain) frees its slot at once; its thread ends by itself whenever the function returns, and its result is dropped.
A job that is still in the line then is never run.

Where the system gives no more threads (a limit of memory or processes), those that there are take all jobs in turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from time import monotonic

from taskq.worker.context import CURRENT, NOTHING, SERVING, Serving
from taskq.worker.copies import Copies
from taskq.worker.job import Job, Outcome, raised, succeeded

RECRUIT_S = 1.0
# job, outcome, the seconds that it ran
Finished = Callable[[Job, Outcome, float], None]


class ThreadPool:
    """As many threads as jobs were ever running at once, less those that were given up.  All methods but `_work` run on the loop.  `given_up`: how
    many of these go on."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        finished: Finished,
        serving: Serving = NOTHING,
        limited: Callable[[int], None] = lambda threads: None,
        copies: Copies | None = None,
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._limited = limited
        self._copies = copies or Copies()
        self._context = copy_context()
        self._context.run(SERVING.set, serving)
        self._jobs: deque[Job] = deque()
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._waking = False
        self._ended: deque[tuple[Job, Outcome, float]] = deque()
        self._lock = threading.Lock()
        self._signalled = False
        self._threads = 0
        self._busy = 0
        self._number = 0
        self.given_up = 0

    def start(self, job: Job) -> None:
        self._busy += 1
        if self._busy > self._threads:
            self._recruit()
        self._jobs.append(job)
        if not self._waking:
            self._wake()

    def _recruit(self) -> None:
        """One more thread, or word of how many there are; without any it is tried again, as nothing else would do the work."""
        try:
            threading.Thread(target=self._work, name=f"taskq-task-{self._number + 1}", daemon=True).start()
        except (RuntimeError, MemoryError):
            self._limited(self._threads + self.given_up)
            if not self._threads:
                self._loop.call_later(RECRUIT_S, self._recruit_first)
            return
        self._threads += 1
        self._number += 1

    def _recruit_first(self) -> None:
        if not self._threads and self._busy:
            self._recruit()

    def _wake(self) -> None:
        """One thread goes to the line.  Two that do this at once wake two, which harms nobody."""
        self._waking = True
        self._wakes.put(True)

    def give_up(self, job: Job) -> bool:
        """Count the job's slot as free although its thread goes on; False if the function has returned meanwhile and its outcome is on the way."""
        with self._lock:
            if job.over:
                return False
            job.over = True
            try:
                self._jobs.remove(job)
            except ValueError:  # a thread has it
                self.given_up += 1
                self._threads -= 1
        self._busy -= 1
        return True

    def close(self) -> None:
        """End the threads that are idle; the others are daemons."""
        for _ in range(self._threads):
            self._wakes.put(False)

    def _work(self) -> None:
        while self._wakes.get():
            self._waking = False
            while self._jobs:
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    break  # another thread was faster
                if self._jobs and not self._waking:
                    self._wake()
                needed = self._run(job)
                del job  # what has ended is not kept while this thread waits
                if not needed:
                    return

    def _run(self, job: Job) -> bool:
        """False if this thread is not needed any more."""
        with self._lock:
            if job.over:
                self.given_up -= 1
                return False
        began_s = monotonic()
        try:
            outcome = self._context.copy().run(call, job, self._copies)
        except BaseException as error:  # raised into this thread from another one
            outcome = raised(job, error)
        work_s = monotonic() - began_s
        with self._lock:
            given_up = job.over
            job.over = True
            self.given_up -= given_up
        if given_up:
            return False
        self._ended.append((job, outcome, work_s))
        if self._signalled:
            return True
        self._signalled = True
        return self._wake_loop()

    def _wake_loop(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            return False  # the loop is closed: the process is ending
        return True

    def _collect(self) -> None:
        self._signalled = False
        while self._ended:
            self._busy -= 1
            self._finished(*self._ended.popleft())


def call(job: Job, copies: Copies | None = None) -> Outcome:
    """Run a sync function, in the caller's thread and context.  A copy of the process that it makes does not come back."""
    CURRENT.set(job)
    definition = job.definition
    try:
        args, kwargs = definition.arguments(job.payload, job.encoding)
        value = definition.function(*args, **kwargs)
    except BaseException as error:
        if copies is not None and copies.copied:
            copies.leave()
        return raised(job, error)
    if copies is not None and copies.copied:
        copies.leave()
    return succeeded(job, value)
