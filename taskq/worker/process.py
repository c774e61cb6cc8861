"""Child processes for CPU-bound functions: one child, one task, one pipe, so that a crash charges only the task that caused it.

Rules:
- Children are started anew (never forked from a process with threads and a loop), when they are needed, with what the worker itself was given at its
  start (`origin.py`); they import the app themselves, and are used again.
- A timeout or a cancel kills the child and all that its task has started; so does its end with what it has left.
- A child that dies under a task fails that attempt: error type WorkerCrash, with signal or exit code; it counts as an attempt and follows the task's
  retry policy.  So does a child whose answer is about another task: nothing that it says is believed.
- Where there can be no further process now, there are fewer; a task that gets none at all is given back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import closing, nullcontext
from time import monotonic
from typing import Any, cast

import attrs
import msgpack

from taskq.core.messages import RETRY
from taskq.worker.child import BROKEN, LENGTH, READY, ChildStart, is_about, pack_job, unpack_outcome
from taskq.worker.family import kill_tree
from taskq.worker.job import NONE, Handback, Job, Outcome
from taskq.worker.logs import BY_DEFAULT, Logging
from taskq.worker.origin import Origin
from taskq.worker.parent import cause_of_death
from taskq.worker.registry import Verdict

log = logging.getLogger("taskq.worker")

OWN_END_S = 1.0
LOOK_S = 0.005
# after a process could not be started
AGAIN_S = 5.0


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

    async def spawn(self, origin: Origin | None, app: str, queues: list[str], logging: Logging) -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            self._pool.child_refused(self, error)
            return
        with theirs:
            try:
                with nullcontext(origin) if origin is not None else closing(Origin.here()) as given:
                    start = ChildStart(app, theirs.fileno(), os.getpid(), queues, given.blocked, given.ignored, logging)
                    arguments = ["-P", "-m", "taskq.worker.child", json.dumps(attrs.asdict(start))]
                    self._popen = given.start(arguments, [theirs.fileno()])
            except OSError as error:
                ours.close()
                self._pool.child_refused(self, error)
                return
        if self.job is not None and self.job.ending != NONE:
            self.kill()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)
        if self._pool.closing:
            self.close()

    @property
    def fd(self) -> int | None:
        """The number of the pipe."""
        return None if self._transport is None else self._transport.get_extra_info("socket").fileno()

    def send(self, job: Job) -> None:
        """Hand over the job that was given to this child; its time begins now."""
        assert self._transport is not None
        self._pool.begin(job)
        self._transport.write(pack_job(job))

    def kill(self) -> None:
        """With all that its task has started.  Once it is reaped its number may be another's."""
        if self._popen is not None and self._popen.returncode is None:
            kill_tree(self._popen.pid)

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

    def _received(self, fields: list[Any]) -> None:
        if fields[0] == BROKEN:
            self.broken = str(fields[1])
        elif fields[0] == READY and not self.ready:
            self.ready = True
            self._pool.child_ready(self)
        elif is_about(fields, self.job):
            self._pool.child_done(self, unpack_outcome(fields))
        else:
            log.error("a process of the pool answered for a task that it did not have; it is killed")
            self.kill()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.child_gone(self)

    async def cause(self) -> str:
        """Wait for the end of the process, whose pipe is closed, and tell the cause.  One that closed its pipe but lives on cannot be used: it gets a
        second to end by itself."""
        popen = self._popen
        if popen is None:
            return "never started"
        own_end = self.ready and self.job is not None and self.job.ending == NONE
        end_s = monotonic() + (OWN_END_S if own_end else 0.0)
        while os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if monotonic() >= end_s:
                self.kill()
            await asyncio.sleep(LOOK_S)
        self.kill()
        return cause_of_death(popen.wait())


class ProcessPool:
    """At most `size` children.  `begin` is called when a job really starts, `finished` when it is over, `failed` with a bug in here.  `queues`: those
    of the worker; `origin`: with what children begin, None for what this process has when they do."""

    def __init__(
        self,
        app: str,
        size: int,
        begin: Callable[[Job], None],
        finished: Callable[[Job, Outcome], None],
        failed: Callable[[BaseException], None],
        queues: Sequence[str] = (),
        logging: Logging = BY_DEFAULT,
        origin: Origin | None = None,
    ) -> None:
        self._app = app
        self._origin = origin
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
        self._short = self._told = False
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
            await asyncio.sleep(LOOK_S)

    def files(self) -> Iterable[int]:
        """The numbers of the pipes to the children."""
        return [child.fd for child in self._children if child.fd is not None]

    def child_refused(self, child: Child, error: OSError) -> None:
        """There can be no further process now.  Who has one goes on; who has none gives the task back."""
        self._children.discard(child)
        job, child.job = child.job, None
        others = len(self._children)
        if not self._told:
            self._told = True
            log.warning("no further process can be started: %s; %d of %d are there, more are tried every %g s", error, others, self._size, AGAIN_S)
        if not self._short:
            self._short = True
            asyncio.get_running_loop().call_later(AGAIN_S, self._try_again)
        if job is None:
            return
        if others and job.ending == NONE:
            self._backlog.appendleft(job)
        else:
            self._finished(job, Handback(round(AGAIN_S * 1000)))

    def _try_again(self) -> None:
        self._short = False
        self._next()

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
            elif len(self._children) < self._size and not (self._short and self._children):
                child = Child(self)
                child.job = self._backlog.popleft()
                self._children.add(child)
                self._do(child.spawn(self._origin, self._app, self._queues, self._logging))
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

    def _do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.Task(coroutine, loop=asyncio.get_running_loop())  # not by a task factory that a task may have set
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
