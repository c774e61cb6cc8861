"""The real programs, as child processes: a broker and a worker, each in a session of its own, so that a signal reaches all of it and only it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs

import taskq
from taskq.worker.parent import die_with_parent

START_S = 30.0
STOP_S = 45.0
HERE = Path(__file__).parent
IN_CODE = "from taskq.cli import {0}; {0}(prog_name='taskq-{0}')"


@attrs.define
class Program:
    """A child; `log` is where its stderr goes."""

    process: Process
    log: Path

    @classmethod
    async def start(cls, name: str, arguments: list[str], log: Path, environ: Mapping[str, str]) -> Program:
        """`taskq-NAME` with these arguments, in the folder of the demo's tasks."""
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command(name),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=PIPE,
                stderr=stderr,
                cwd=HERE,
                env=environ,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        return cls(process, log)

    async def first_line(self) -> str:
        """Its first line on stdout; RuntimeError when it ends without one."""
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            line = (await self.process.stdout.readline()).decode().strip()
        if not line:
            raise RuntimeError(f"the program ended before it was ready; see {self.log.name} above")
        return line

    async def kill(self) -> None:
        """kill -9, the whole family."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self._ended()

    async def stop(self) -> int:
        """SIGTERM and wait; the exit code.  What does not end in time is killed."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await self._ended()
        finally:
            if self.process.returncode is None:
                await self.kill()

    async def _ended(self) -> int:
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


def command(name: str) -> list[str]:
    """The installed program beside this Python, else the same from the source tree."""
    installed = Path(sys.executable).with_name(f"taskq-{name}")
    return [str(installed)] if installed.exists() else [sys.executable, "-c", IN_CODE.format(name)]


def environment(**more: str) -> dict[str, str]:
    """Ours, without settings for other brokers, and with taskq and the demo importable."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_") or name == "TASKQ_LOOP"}
    places = [str(Path(taskq.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(places), **more}
