"""The keeper: the parent process of a worker.  It runs no user code; it starts the runner, renews its leases, ends what hangs, tells its death.

    keeper ── own connection: Keepalive, Died ──────────────► broker
       │ pipe: session ↑, stop ↓     page: received, hard deadlines
    runner ── connection: deliveries, reports, heartbeats ──► broker

Rules:
- A runner that exists and is not stopped is renewed, whatever holds its loop or its GIL; up to the deliveries that it says it has received.
- A runner that does not say that it ends in order has died, whatever its exit code.  A death that was not asked for is told to the broker at once,
  with its cause; what the runner has left behind is killed; it is started again, after a pause that grows.  So is one that could not be started.
- A runner that has to be killed while it stops takes no blame for its tasks: they are given back uncharged.
- SIGTERM and SIGINT drain, and the second of them stops at once; SIGHUP drains, unless it was ignored at the start (nohup); SIGQUIT stops at once.
- What no restart can cure (an app that cannot be imported, a refused subscription) ends the worker with that error; with --reload it waits for
  a change of the code.
- A bug in here ends the worker at once, with exit code 70, and gives its tasks back uncharged: a runner that nobody guards must not go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from time import monotonic, monotonic_ns
from typing import Any

import attrs

from taskq.connection import Address, Channel, Untrusted, hello
from taskq.core import messages as m
from taskq.errors import BrokerUnavailable, TaskqError
from taskq.printable import printable_lines
from taskq.protocol.link import Closed, Event
from taskq.worker import reload
from taskq.worker.family import Family, stat_of
from taskq.worker.line import Line
from taskq.worker.page import Page
from taskq.worker.parent import cause_of_death
from taskq.worker.settings import (
    AT_ONCE,
    DRAIN,
    EXIT_BUG,
    EXIT_DIED,
    EXIT_FATAL,
    RESTART_MAX_S,
    RESTART_MIN_S,
    STEADY_S,
    STOP_GRACE_S,
    WorkerConfig,
)

log = logging.getLogger("taskq.worker.keeper")

WATCH_S = 0.5
HEARTBEAT_MS = 5_000
DIED_S = 10.0
FAREWELL_S = 2.0
# what the runner said last is read before its pipe is closed
LAST_WORDS_S = 1.0
MISSED_MAX = 3
STOPPED = "Tt"
NOT_RUNNING = ("", "T", "t", "Z", "X", "x")


def state_of(pid: int) -> str:
    """The letter of its state, "" if there is none."""
    return "".join(stat_of(pid)[:1])


def runs(pid: int) -> bool:
    """Whether the process exists and is neither stopped nor dead.  False where there is no /proc: there the runner renews itself."""
    return state_of(pid) not in NOT_RUNNING


@attrs.define(eq=False)
class Child:
    """A runner and what it said.  `received`: its deliveries, once it is dead.  `fatal`: why no runner can work; `killed`: why the keeper
    has killed it; `silent`: it has closed its pipe."""

    pid: int
    end: asyncio.Future[int]
    line: Line
    page: Page
    started_s: float
    silent: asyncio.Event
    session: bytes = b""
    secret: bytes = b""
    heartbeat_ms: int = HEARTBEAT_MS
    received: int = 0
    fatal: str = ""
    killed: str = ""
    last_words: str = ""
    in_order: bool = False

    def kill(self, why: str) -> None:
        self.killed = why
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self, level: int) -> None:
        self.line.say({"stop": level})


class Keeper:
    """See the module.  One after the other, it keeps runners."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._address = Address.parse(config.connect)
        self._child: Child | None = None
        self._level = 0
        self._code = 0
        self._restarting = False
        self._stopping = asyncio.Event()
        self._code_changed = asyncio.Event()
        self._missed = 0
        self._farewells: set[asyncio.Task[None]] = set()
        self._family = Family()
        self._channel = self._connect()

    def _connect(self) -> Channel:
        greeting = hello("keeper", self._config.name)
        channel = Channel(self._address, greeting, self._on_event, token=self._config.token, ca=self._config.tls_ca)
        channel.start()
        return channel

    def _on_event(self, event: Event | Untrusted) -> None:
        if isinstance(event, Closed):
            log.warning("the broker ended the keeper's connection: %s", event.error)

    # ---- life

    async def run(self) -> int:
        """Keep a runner until told to stop; the exit code."""
        self._take_signals(asyncio.get_running_loop())
        watch = self._guard(self._watch_code()) if self._config.reload else None
        try:
            return await self._keep()
        finally:
            if watch is not None:
                watch.cancel()
            if self._farewells:
                await asyncio.wait(self._farewells, timeout=FAREWELL_S)
            await self._channel.stop(bye=False)

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGQUIT, self._stop, AT_ONCE)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._stop, DRAIN)

    async def _keep(self) -> int:
        pause_s = RESTART_MIN_S
        while True:
            self._code_changed.clear()
            child = await self._spawn()
            steady = await self._live_with(child) if child is not None else False
            restart, self._restarting = self._restarting, False
            if child is not None and child.fatal:
                if not self._config.reload or self._level:
                    return EXIT_FATAL
                await self._code_or_stop()
            if self._level or (child is not None and child.in_order and not restart):
                return self._code
            if child is not None and (child.in_order or child.fatal or restart):
                continue
            pause_s = RESTART_MIN_S if steady else min(RESTART_MAX_S, pause_s * 2)
            log.warning("the runner is started again in %g s", pause_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            if self._level:
                return self._code

    def _signalled(self) -> None:
        """The first signal drains, the second stops at once."""
        self._stop(min(AT_ONCE, self._level + 1))

    def _stop(self, level: int) -> None:
        if level > self._level:
            self._level = level
            self._stopping.set()
            log.info("stopping" if level == DRAIN else "stopping at once")
            self._ask_to_stop(level)

    def _guard(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._guard_over)
        return task

    def _guard_over(self, guard: asyncio.Task[None]) -> None:
        if guard.cancelled() or guard.exception() is None:
            return
        log.critical("bug in the keeper, the worker ends", exc_info=guard.exception())
        self._code, self._level = EXIT_BUG, AT_ONCE
        self._stopping.set()
        if self._child is not None:
            self._child.kill("stopping")

    def _ask_to_stop(self, level: int) -> None:
        child = self._child
        if child is not None:
            child.stop(level)
            grace_s = STOP_GRACE_S + (self._config.drain_s if level == DRAIN else 0.0)
            asyncio.get_running_loop().call_later(grace_s, self._enforce_stop, child)

    def _enforce_stop(self, child: Child) -> None:
        if child is self._child:
            log.error("the runner did not end in time and is killed; its tasks are given back")
            child.kill("stopping")

    # ---- one runner

    async def _spawn(self) -> Child | None:
        """A runner, or None if there can be none now."""
        with ExitStack() as undo:
            try:
                ours, theirs = socket.socketpair()
                undo.callback(ours.close)
                with theirs:
                    page = Page()
                    undo.callback(page.close)
                    pid, end = self._launch(theirs.fileno(), page.fd)
            except OSError as error:
                log.error("the runner cannot be started: %s", error)
                return None
            undo.pop_all()
        silent = asyncio.Event()
        line = Line(self._told, silent.set)
        self._child = child = Child(pid, end, line, page, monotonic(), silent)
        await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
        if self._level:
            self._ask_to_stop(self._level)
        return child

    def _launch(self, pipe_fd: int, page_fd: int) -> tuple[int, asyncio.Future[int]]:
        start = {"config": self._config.dump(), "pipe_fd": pipe_fd, "page_fd": page_fd, "keeper_pid": os.getpid()}
        command = [sys.executable, "-P", "-m", "taskq.worker.launch", json.dumps(start)]
        return self._family.start(command, (pipe_fd, page_fd), {**os.environ, "TASKQ_TOKEN": self._config.token})

    def _told(self, fields: dict[str, Any]) -> None:
        child = self._child
        if child is None:
            return
        if "fatal" in fields:
            child.fatal = fields["fatal"]
            with suppress(OSError):  # nobody reads what is said there any more
                print(f"taskq-worker: {printable_lines(child.fatal)}", file=sys.stderr, flush=True)
        elif "session" in fields:
            child.session, child.secret = bytes.fromhex(fields["session"]), bytes.fromhex(fields["secret"])
            child.heartbeat_ms = fields["heartbeat_ms"]
        else:
            child.in_order = fields.get("in_order", False)
            child.last_words = fields.get("last_words", "")

    async def _live_with(self, child: Child) -> bool:
        """Guard the runner until it ends; whether it has worked for long."""
        guards = [self._guard(self._renew(child)), self._guard(self._enforce_deadlines(child))]
        code = await child.end
        for guard in guards:
            guard.cancel()
        await asyncio.gather(*guards, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(child.silent.wait(), LAST_WORDS_S)
        self._child = None
        child.line.close()
        child.received = child.page.received
        child.page.close()
        child.in_order = child.in_order and code == 0
        if not child.in_order and not child.fatal:
            self._tell_death(child, code)
        await self._family.sweep(child.pid)
        return monotonic() - child.started_s > STEADY_S

    async def _renew(self, child: Child) -> None:
        while True:
            await asyncio.sleep(child.heartbeat_ms / 1000 if child.session else WATCH_S)
            if child.session and runs(child.pid):
                await self._keepalive(child)

    async def _keepalive(self, child: Child) -> None:
        message = m.Keepalive(child.session, child.secret, child.page.received)
        try:
            await self._channel.call(message, child.heartbeat_ms / 1000)
            self._missed = 0
        except BrokerUnavailable:
            self._missed += 1
            if self._missed >= MISSED_MAX:
                self._missed = 0
                await self._channel.stop(bye=False)
                self._channel = self._connect()
        except TaskqError as error:
            log.debug("the broker did not renew the leases: %s", error)

    async def _enforce_deadlines(self, child: Child) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            if child.page.overdue(monotonic_ns()) and state_of(child.pid) not in STOPPED:
                log.error("a task holds the runner beyond its timeout; the runner is killed")
                child.kill("a task held the worker beyond its timeout")
                return

    def _tell_death(self, child: Child, code: int) -> None:
        """A runner that was killed because it should stop is nobody's fault: an empty cause gives its tasks back uncharged."""
        cause = cause_of_death(code)
        if child.killed == "stopping" or (child.killed and (self._restarting or self._level)):
            cause = ""
        elif child.killed or child.last_words:
            cause = f"{cause}: {child.killed or child.last_words}"
        if self._level and cause:
            self._code = EXIT_DIED
        log.warning("the runner died: %s", cause or "killed while it was stopping")
        if child.session:
            task = asyncio.get_running_loop().create_task(self._send_death(child, cause))
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _send_death(self, child: Child, cause: str) -> None:
        """What the runner had received is told first: only that can have crashed it, the rest goes back as undelivered."""
        try:
            await self._channel.call(m.Keepalive(child.session, child.secret, child.received), DIED_S)
            await self._channel.call(m.Died(child.session, child.secret, cause), DIED_S)
        except TaskqError as error:
            log.warning("the broker could not be told of the runner's death: %s", error)

    # ---- reload

    async def _watch_code(self) -> None:
        async for path in reload.changes(self._config.app):
            log.info("%s has changed; the runner is restarted", path)
            self._code_changed.set()
            if self._child is not None and not self._level:
                self._restarting = True
                self._ask_to_stop(DRAIN)

    async def _code_or_stop(self) -> None:
        """Wait for a change of the code, or for a signal."""
        waits = [asyncio.ensure_future(self._code_changed.wait()), asyncio.ensure_future(self._stopping.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def main(config: WorkerConfig) -> int:
    """`taskq-worker`: run until stopped; the exit code.  Raises ConfigError for settings that cannot work."""
    if config.reload:
        reload.check()
    config.logging.settle()
    return asyncio.run(_main(config))


async def _main(config: WorkerConfig) -> int:
    return await Keeper(config).run()
