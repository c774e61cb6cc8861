"""The runner as a process: `python -m taskq.worker.launch '{…}'`, started by the keeper, with a pipe to it and the shared page.

It dies with its keeper and imports the app.  It says on the pipe that it ends in order; every other end is a death, whatever its exit code.  Only
here are loop, garbage collector and signals set up, since here the process belongs to the worker.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import attrs

from taskq.trust import CA_VARIABLE
from taskq.worker.copies import Copies
from taskq.worker.failure import type_name
from taskq.worker.line import Line, line
from taskq.worker.loading import AppLike, NoApp, explain, load_app
from taskq.worker.origin import Origin
from taskq.worker.page import Page
from taskq.worker.parent import die_with_parent, leave_to_parent
from taskq.worker.runner import Runner
from taskq.worker.settings import DRAIN, EXIT_DIED, EXIT_FATAL, GC_THRESHOLDS, WorkerConfig

log = logging.getLogger("taskq.worker")


@attrs.frozen
class RunnerStart:
    """What a runner is told on its command line."""

    config: str
    pipe_fd: int
    page_fd: int
    keeper_pid: int


async def _work(config: WorkerConfig, app: AppLike, page: Page, pipe: socket.socket, copies: Copies, origin: Origin) -> int:
    runner = Runner(config, app, page, lambda fields: pipe.sendall(line(fields)), copies, origin)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, runner.stop, DRAIN)
    # the loop reads a duplicate, so that it never writes what is sent here; a runner whose keeper is gone ends at once
    ears = pipe.dup()

    def become_a_copy() -> None:
        page.part()
        loop.call_soon(copies.leave)  # what has forked in a callback of the loop comes back to it

    copies.keep_from(lambda: [pipe.fileno(), ears.fileno(), page.fd, *runner.files()], become_a_copy)
    await loop.create_unix_connection(lambda: Line(lambda fields: runner.stop(fields["stop"]), lambda: os._exit(1)), sock=ears)
    return await runner.run()


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
    leave_to_parent(signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    for fd in (start.pipe_fd, start.page_fd):
        os.set_inheritable(fd, False)
    config = attrs.evolve(WorkerConfig.load(start.config), token=os.environ.get("TASKQ_TOKEN", ""))
    pipe = socket.socket(fileno=start.pipe_fd)
    os.environ.setdefault("TASKQ_URL", config.connect)  # what tasks enqueue goes to the broker that they came from
    if config.tls_ca:
        os.environ.setdefault(CA_VARIABLE, config.tls_ca)
    origin, copies, page = Origin.here(), Copies(), Page(start.page_fd)
    copies.keep_from(lambda: [pipe.fileno(), page.fd], page.part)
    copies.guard()
    config.logging.start()
    app = _load(config, pipe)
    config.logging.settle()
    _tune_memory()
    with asyncio.Runner(loop_factory=loop_factory()) as loop:
        try:
            code = loop.get_loop().run_until_complete(_work(config, app, page, pipe, copies, origin))
        except BaseException as error:
            _break_off(error, pipe)
        if code == 0:
            pipe.sendall(line({"in_order": True}))
        _leave(code)


def _break_off(error: BaseException, pipe: socket.socket) -> NoReturn:
    """What a callback or a background task of the app has raised (`sys.exit()`) ended the loop under all that runs: a crash."""
    what = f"{type_name(error)} was raised in a callback or a background task of the event loop"
    log.critical("%s; the runner ends", what, exc_info=error)
    with suppress(OSError):
        pipe.sendall(line({"last_words": what}))
    _leave(EXIT_DIED)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    main()
