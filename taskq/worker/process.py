"""Child processes for CPU-bound functions: one child, one task, one pipe, so that a crash charges only the task that caused it.

Children are started anew (never forked from a process with threads and a loop), when they are needed, import the app themselves, and are used
again.  A timeout or a cancel kills the child.  A child that dies under a task fails that attempt: error type WorkerCrash, with signal or exit
code; it counts as an attempt and follows the task's retry policy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

import attrs
import msgpack

from taskq.core.messages import RETRY
from taskq.worker.child import BROKEN, LENGTH, READY, ChildStart, pack_job, unpack_outcome
from taskq.worker.job import NONE, Job, Outcome
from taskq.worker.logs import BY_DEFAULT, Logging
from taskq.worker.parent import cause_of_death
from taskq.worker.registry import Verdict

log = logging.getLogger("taskq.worker")


class Child(asyncio.Protocol):
    """One child process and its pipe; `job` is what it runs."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.job: Job | None = None
        self.broken = ""

    async def spawn(self, app: str, queues: list[str], logging: Logging) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self.broken = f"the process could not be started: {error}"
            self._pool.child_gone(self)
            return
        with theirs:
            start = ChildStart(app, theirs.fileno(), os.getpid(), queues, logging)
            command = [sys.executable, "-P", "-m", "taskq.worker.child", json.dumps(attrs.asdict(start))]
            try:
                self._popen = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            except OSError as error:
                self.broken = f"the process could not be started: {error}"
        if self.job is not None and self.job.ending != NONE:
            self.kill()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        if self._pool.closing:
            self.close()

    def send(self, job: Job) -> None:
        """Hand over the job that was given to this child; its time begins now."""
        assert self._transport is not None
        self._pool.begin(job)
        self._transport.write(pack_job(job))

    def kill(self) -> None:
        if self._popen is not None:
            self._popen.kill()

    def close(self) -> None:
        """An idle child ends when its pipe is closed."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                return
            fields = msgpack.unpackb(bytes(buffer[LENGTH.size : end]))
            del buffer[:end]
            self._received(fields)

    def _received(self, fields: list[object]) -> None:
        if fields[0] == BROKEN:
            self.broken = str(fields[1])
        elif fields[0] == READY:
            self.ready = True
            self._pool.child_ready(self)
        else:
            self._pool.child_done(self, unpack_outcome(fields))

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.child_gone(self)

    async def cause(self) -> str:
        """Wait for the end of the process, whose pipe is closed, and tell the cause."""
        if self._popen is None:
            return "never started"
        if self.ready and self.job is not None and self.job.ending == NONE:
            await asyncio.get_running_loop().run_in_executor(None, _reap, self._popen)
        else:
            self._popen.kill()
            await asyncio.get_running_loop().run_in_executor(None, self._popen.wait)
        return cause_of_death(self._popen.returncode)


def _reap(popen: subprocess.Popen[bytes]) -> None:
    """A process that closed its pipe but lives on cannot be used: it gets a second to end by itself."""
    try:
        popen.wait(1.0)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


class ProcessPool:
    """At most `size` children.  `begin` is called when a job really starts, `finished` when it is over, `failed` with a bug in here.  `queues`: those
    of the worker."""

    def __init__(
        self,
        app: str,
        size: int,
        begin: Callable[[Job], None],
        finished: Callable[[Job, Outcome], None],
        failed: Callable[[BaseException], None],
        queues: Sequence[str] = (),
        logging: Logging = BY_DEFAULT,
    ) -> None:
        self._app = app
        self._queues = list(queues)
        self._logging = logging
        self._size = size
        self.begin = begin
        self._finished = finished
        self._failed = failed
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._backlog: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = False

    def start(self, job: Job) -> None:
        self._backlog.append(job)
        self._next()

    def stop(self, job: Job) -> None:
        """End the job: a waiting one is just over, a running one takes its child along."""
        if job in self._backlog:
            self._backlog.remove(job)
            self._finished(job, Verdict(RETRY, 0, "Cancelled", "ended before it was started"))
            return
        for child in self._children:
            if child.job is job:
                child.kill()

    async def close(self) -> None:
        """End all children; those that run something are killed."""
        self.closing = True
        for child in list(self._children):
            (child.kill if child.job else child.close)()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        while self._children:
            await asyncio.sleep(0.01)

    def child_ready(self, child: Child) -> None:
        if child.job is not None:
            child.send(child.job)

    def child_done(self, child: Child, outcome: Outcome) -> None:
        job, child.job = child.job, None
        self._idle.append(child)
        if job is not None:
            job.told = isinstance(outcome, Verdict)  # by the child
            self._finished(job, outcome)
        self._next()

    def child_gone(self, child: Child) -> None:
        if child in self._idle:
            self._idle.remove(child)
        self._do(self._bury(child))

    def _next(self) -> None:
        """Give waiting jobs to idle children, starting new ones while there may be more."""
        while self._backlog and not self.closing:
            if self._idle:
                child = self._idle.pop()
                child.job = self._backlog.popleft()
                child.send(child.job)
            elif len(self._children) < self._size:
                child = Child(self)
                child.job = self._backlog.popleft()
                self._children.add(child)
                self._do(child.spawn(self._app, self._queues, self._logging))
            else:
                return

    async def _bury(self, child: Child) -> None:
        try:
            cause = await child.cause()
        finally:
            self._children.discard(child)
        job, child.job = child.job, None
        if job is not None:
            if job.ending == NONE:
                log.warning("%s: its process died: %s", job.label, cause)
            self._finished(job, _crash(child, cause))
        self._next()

    def _do(self, coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """What goes wrong here leaves a job without an end: nothing can be trusted."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)


def _crash(child: Child, cause: str) -> Verdict:
    text = f"the process could not import the app:\n{child.broken}" if child.broken else f"the process of the task died: {cause}"
    return Verdict(RETRY, 0, "WorkerCrash", text)
