"""The runner as a process: `python -m taskq.worker.launch '{…}'`, started by the keeper, with a pipe to it and the shared page.

It dies with its keeper, imports the app, and leaves with an exit code: 0 after an orderly stop.  Only here are loop, garbage collector and
signals set up, since here the process belongs to the worker.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import attrs

from taskq.trust import CA_VARIABLE
from taskq.worker.loading import AppLike, NoApp, explain, load_app
from taskq.worker.page import Page
from taskq.worker.parent import die_with_parent, leave_to_parent
from taskq.worker.runner import Runner
from taskq.worker.settings import EXIT_FATAL, GC_THRESHOLDS, WorkerConfig, log_to_stderr


class KeeperLine(asyncio.Protocol):
    """The pipe to the keeper: JSON objects, one a line.  A runner whose keeper is gone ends at once."""

    def __init__(self, stop: Callable[[int], None]) -> None:
        self._stop = stop
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._stop(json.loads(line)["stop"])

    def connection_lost(self, error: Exception | None) -> None:
        os._exit(1)


@attrs.frozen
class RunnerStart:
    """What a runner is told on its command line."""

    config: str
    pipe_fd: int
    page_fd: int
    keeper_pid: int


async def _work(config: WorkerConfig, app: AppLike, page: Page, pipe: socket.socket) -> int:
    runner = Runner(config, app, page, lambda fields: pipe.sendall(line(fields)))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, runner.signalled)
    # the loop reads a duplicate, so that it never writes what is sent here
    await loop.create_unix_connection(lambda: KeeperLine(runner.stop), sock=pipe.dup())
    return await runner.run()


def line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _load(config: WorkerConfig, pipe: socket.socket) -> AppLike:
    """The app; an app that cannot be imported is told to the keeper, and the process ends."""
    if config.app is None:
        return NoApp()
    try:
        return load_app(config.app)
    except BaseException as error:
        text = explain(error)
    pipe.sendall(line({"fatal": f"the app {config.app} cannot be imported:\n{text}"}))
    return _leave(EXIT_FATAL)


def _tune_memory() -> None:
    """This process belongs to the worker: what was imported stays, and collections are rarer than by default."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _leave(code: int) -> NoReturn:
    """End now: exit handlers run, threads of tasks that are still busy are not waited for."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> NoReturn:
    start = RunnerStart(**json.loads(sys.argv[1]))
    die_with_parent(start.keeper_pid)
    leave_to_parent(signal.SIGINT)
    for fd in (start.pipe_fd, start.page_fd):
        os.set_inheritable(fd, False)
    log_to_stderr()
    config = attrs.evolve(WorkerConfig.load(start.config), token=os.environ.get("TASKQ_TOKEN", ""))
    pipe = socket.socket(fileno=start.pipe_fd)
    os.environ.setdefault("TASKQ_URL", config.connect)  # what tasks enqueue goes to the broker that they came from
    if config.tls_ca:
        os.environ.setdefault(CA_VARIABLE, config.tls_ca)
    app = _load(config, pipe)
    _tune_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as loop:
        code = loop.get_loop().run_until_complete(_work(config, app, Page(start.page_fd), pipe))
        _leave(code)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
