"""The keeper: the parent process of a worker.  It runs no user code; it starts the runner, renews its leases, ends what hangs, tells its death.

    keeper ── own connection: Keepalive, Died ──────────────► broker
       │ pipe: session ↑, stop ↓     page: received, hard deadlines
    runner ── connection: deliveries, reports, heartbeats ──► broker

Rules:
- A runner that exists and is not stopped is renewed, whatever holds its loop or its GIL; up to the deliveries that it says it has received.
- A death that was not asked for is told to the broker at once, with its cause, and the runner is started again, after a pause that grows.
- A runner that has to be killed while it stops takes no blame for its tasks: they are given back uncharged.
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
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, cast

import attrs

from taskq.connection import Address, Channel, Untrusted, hello
from taskq.core import messages as m
from taskq.errors import BrokerUnavailable, TaskqError
from taskq.printable import printable_lines
from taskq.protocol.link import Closed, Event
from taskq.worker import reload
from taskq.worker.page import Page
from taskq.worker.parent import cause_of_death
from taskq.worker.settings import EXIT_BUG, EXIT_FATAL, RESTART_MAX_S, RESTART_MIN_S, STEADY_S, STOP_GRACE_S, WorkerConfig, log_to_stderr

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
    """The letter in /proc/PID/stat, "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def runs(pid: int) -> bool:
    """Whether the process exists and is neither stopped nor dead.  False where there is no /proc: there the runner renews itself."""
    return state_of(pid) not in NOT_RUNNING


class RunnerLine(asyncio.Protocol):
    """The pipe to the runner."""

    def __init__(self, told: Callable[[dict[str, Any]], None]) -> None:
        self._told = told
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for text in lines:
            self._told(json.loads(text))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()

    def stop(self, level: int) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(json.dumps({"stop": level}).encode() + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@attrs.define
class Child:
    """A runner and what it said.  `received`: its deliveries, once it is dead.  `fatal`: why no runner can work; `killed`: why the keeper
    has killed it."""

    process: asyncio.subprocess.Process
    line: RunnerLine
    page: Page
    started_s: float
    session: bytes = b""
    secret: bytes = b""
    heartbeat_ms: int = HEARTBEAT_MS
    received: int = 0
    fatal: str = ""
    killed: str = ""

    def kill(self, why: str) -> None:
        self.killed = why
        with suppress(ProcessLookupError):
            self.process.kill()


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
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        watch = self._guard(self._watch_code()) if self._config.reload else None
        try:
            return await self._keep()
        finally:
            if watch is not None:
                watch.cancel()
            if self._farewells:
                await asyncio.wait(self._farewells, timeout=FAREWELL_S)
            await self._channel.stop(bye=False)

    async def _keep(self) -> int:
        pause_s = RESTART_MIN_S
        while True:
            self._code_changed.clear()
            child = await self._spawn()
            code = await self._live_with(child)
            restart, self._restarting = self._restarting, False
            if child.fatal:
                if not self._config.reload or self._level:
                    return EXIT_FATAL
                await self._code_or_stop()
            elif code != 0:
                self._tell_death(child, code, restart)
            if self._level or (code == 0 and not restart):
                return self._code
            if code == 0 or child.fatal or restart:
                continue
            pause_s = RESTART_MIN_S if monotonic() - child.started_s > STEADY_S else min(RESTART_MAX_S, pause_s * 2)
            log.warning("the runner is started again in %g s", pause_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            if self._level:
                return self._code

    def _signalled(self) -> None:
        """The first signal drains, the second stops at once."""
        self._level = min(2, self._level + 1)
        self._stopping.set()
        log.info("stopping" if self._level == 1 else "stopping at once")
        self._ask_to_stop(self._level)

    def _guard(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._guard_over)
        return task

    def _guard_over(self, guard: asyncio.Task[None]) -> None:
        if guard.cancelled() or guard.exception() is None:
            return
        log.critical("bug in the keeper, the worker ends", exc_info=guard.exception())
        self._code, self._level = EXIT_BUG, 2
        self._stopping.set()
        if self._child is not None:
            self._child.kill("stopping")

    def _ask_to_stop(self, level: int) -> None:
        child = self._child
        if child is not None:
            child.line.stop(level)
            grace_s = STOP_GRACE_S + (self._config.drain_s if level == 1 else 0.0)
            asyncio.get_running_loop().call_later(grace_s, self._enforce_stop, child)

    def _enforce_stop(self, child: Child) -> None:
        if child is self._child:
            log.error("the runner did not end in time and is killed; its tasks are given back")
            child.kill("stopping")

    # ---- one runner

    async def _spawn(self) -> Child:
        ours, theirs = socket.socketpair()
        page = Page()
        with theirs:
            start = {"config": self._config.dump(), "pipe_fd": theirs.fileno(), "page_fd": page.fd, "keeper_pid": os.getpid()}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "taskq.worker.launch",
                json.dumps(start),
                pass_fds=[theirs.fileno(), page.fd],
                env={**os.environ, "TASKQ_TOKEN": self._config.token},
            )
        line = RunnerLine(self._told)
        self._child = child = Child(process, line, page, monotonic())
        await asyncio.get_running_loop().create_unix_connection(lambda: line, sock=ours)
        if self._level:
            self._ask_to_stop(self._level)
        return child

    def _told(self, fields: dict[str, Any]) -> None:
        child = self._child
        if child is None:
            return
        if "fatal" in fields:
            child.fatal = fields["fatal"]
            print(f"taskq-worker: {printable_lines(child.fatal)}", file=sys.stderr, flush=True)
        else:
            child.session, child.secret = bytes.fromhex(fields["session"]), bytes.fromhex(fields["secret"])
            child.heartbeat_ms = fields["heartbeat_ms"]

    async def _live_with(self, child: Child) -> int:
        """Guard the runner until it ends; its return code."""
        guards = [self._guard(self._renew(child)), self._guard(self._enforce_deadlines(child))]
        code = await child.process.wait()
        for guard in guards:
            guard.cancel()
        await asyncio.gather(*guards, return_exceptions=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(child.line.closed.wait(), LAST_WORDS_S)
        self._child = None
        child.line.close()
        child.received = child.page.received
        child.page.close()
        return code

    async def _renew(self, child: Child) -> None:
        while True:
            await asyncio.sleep(child.heartbeat_ms / 1000 if child.session else WATCH_S)
            if child.session and runs(child.process.pid):
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
            if child.page.overdue(monotonic_ns()) and state_of(child.process.pid) not in STOPPED:
                log.error("a task holds the runner beyond its timeout; the runner is killed")
                child.kill("a task held the worker beyond its timeout")
                return

    def _tell_death(self, child: Child, code: int, restarting: bool) -> None:
        """A runner that was killed because it should stop is nobody's fault: an empty cause gives its tasks back uncharged."""
        cause = cause_of_death(code)
        if child.killed == "stopping" or (child.killed and (restarting or self._level)):
            cause = ""
        elif child.killed:
            cause = f"{cause}: {child.killed}"
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
                self._ask_to_stop(1)

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
    log_to_stderr()
    return asyncio.run(_main(config))


async def _main(config: WorkerConfig) -> int:
    return await Keeper(config).run()
