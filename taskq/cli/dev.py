"""`taskq dev`: a broker with HTTP and a worker that follows the code, in one terminal.

Both are children with sessions of their own, so that Ctrl-C reaches this process alone, which then stops the worker first and the broker after
it.  When one of them ends by itself, the other is stopped and `taskq dev` ends too.  They never outlive this process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import attrs
import click

if TYPE_CHECKING:
    import asyncio
    from asyncio.subprocess import Process

MODULES = ("tasks", "app")
DRAIN = "5s"
PROGRAM = "from taskq.cli import {name}; {name}(prog_name='taskq-{name}')"


@attrs.frozen
class DevOptions:
    """What was asked for; the rest comes to the children through the environment."""

    module: str | None
    listen: str | None
    http: str | None
    data: str | None

    def broker_arguments(self) -> list[str]:
        given = {"--listen": self.listen, "--http": self.http, "--data": self.data}
        return [part for flag, value in given.items() if value is not None for part in (flag, value)]


@click.command()
@click.argument("module", required=False)
@click.option("--listen", metavar="HOST:PORT", default=None, help="Address of the broker. [default: 127.0.0.1:7000; TASKQ_LISTEN]")
@click.option("--http", metavar="HOST:PORT", default=None, help="Address of the HTTP API. [default: 127.0.0.1:3000; TASKQ_HTTP]")
@click.option("--data", metavar="PATH", default=None, help="Folder of the broker. [default: ./taskq-data; TASKQ_DATA]")
def dev(module: str | None, listen: str | None, http: str | None, data: str | None) -> NoReturn:
    """Run a broker and a worker that restarts when the code changes.

    MODULE is the module of the tasks (or MODULE:NAME); without it tasks.py or app.py of the working directory is taken. Ctrl-C stops all.
    """
    import asyncio

    options = DevOptions(module or os.environ.get("TASKQ_APP") or guess_module(Path.cwd()), listen, http, data)
    sys.exit(asyncio.run(run(options)))


def guess_module(folder: Path) -> str | None:
    """tasks or app, if there is such a module or package here."""
    return next((name for name in MODULES if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()), None)


async def run(options: DevOptions) -> int:
    """Start both, wait for Ctrl-C or the end of one, stop both; the exit code."""
    import asyncio

    stop = stop_requests()
    broker = await spawn("broker", options.broker_arguments(), stdout=asyncio.subprocess.PIPE)
    children = [broker]
    try:
        ready = await first_line(broker, stop)
        if ready:
            children.insert(0, await spawn("worker", worker_arguments(options, ready["tcp"])))
            print(welcome(options, ready), flush=True)
            await wait_for_end(children, stop)
        return exit_code(children)
    finally:
        await stop_all(children, stop)


async def spawn(name: str, arguments: list[str], stdout: int | None = None) -> Process:
    import asyncio
    from functools import partial

    from taskq.worker.parent import die_with_parent

    environment = {"TASKQ_DRAIN": DRAIN, **os.environ}
    command = [sys.executable, "-P", "-c", PROGRAM.format(name=name), *arguments]
    with_us = partial(die_with_parent, os.getpid())
    return await asyncio.create_subprocess_exec(*command, stdout=stdout, env=environment, start_new_session=True, preexec_fn=with_us)


async def first_line(broker: Process, stop: asyncio.Queue[int]) -> dict[str, str]:
    """The fields of the broker's ready line; nothing when it ended before it was ready, or Ctrl-C came first."""
    import asyncio

    assert broker.stdout is not None
    reading, stopping = asyncio.ensure_future(broker.stdout.readline()), asyncio.ensure_future(stop.get())
    await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    line = reading.result().decode() if reading.done() else ""
    reading.cancel()
    if not line and not stopping.done():
        await broker.wait()
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def worker_arguments(options: DevOptions, address: str) -> list[str]:
    import importlib.util

    arguments = ["--connect", address]
    if options.module is not None:
        arguments += ["--app", options.module]
    if importlib.util.find_spec("watchfiles") is not None:
        return [*arguments, "--reload"]
    print("watchfiles is not installed (pip install 'taskq[dev]'), so a change of the code needs a restart", file=sys.stderr)
    return arguments


def welcome(options: DevOptions, ready: dict[str, str]) -> str:
    http = ready["http"] if "://" in ready["http"] else f"http://{ready['http']}"
    tasks = options.module or "none: no MODULE was given, and there is neither tasks.py nor app.py here"
    return "\n".join(
        (
            "taskq dev",
            f"  broker   {ready['tcp']}            TASKQ_URL={ready['tcp']}",
            f"  HTTP     {http}     {http}/openapi.json lists what there is",
            f"  data     {ready['data']}",
            f"  tasks    {tasks}",
            "Ctrl-C stops all.",
        )
    )


def stop_requests() -> asyncio.Queue[int]:
    """Ctrl-C and SIGTERM, as they come."""
    from taskq.cli.broker import stop_signals

    return stop_signals()


async def wait_for_end(children: list[Process], stop: asyncio.Queue[int]) -> None:
    import asyncio

    waits = [asyncio.ensure_future(stop.get()), *(asyncio.ensure_future(child.wait()) for child in children)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


def exit_code(children: list[Process]) -> int:
    """That of a child which ended by itself, with an error; 0 when we were told to stop."""
    return next((abs(child.returncode) for child in children if child.returncode), 0)


async def stop_all(children: list[Process], stop: asyncio.Queue[int]) -> None:
    """The worker first, so that it can still hand in its results; another Ctrl-C does not wait for running tasks."""
    import asyncio

    for child in children:
        terminate(child)
        while child.returncode is None:
            ended, again = asyncio.ensure_future(child.wait()), asyncio.ensure_future(stop.get())
            await asyncio.wait({ended, again}, return_when=asyncio.FIRST_COMPLETED)
            if again.done():
                terminate(child)
            ended.cancel()
            again.cancel()
            await asyncio.gather(ended, again, return_exceptions=True)


def terminate(child: Process) -> None:
    if child.returncode is None:
        child.terminate()
