"""The programs as real processes; each is ended, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from programs import IN_CODE, ON_FREE_PORTS, READY, WAIT_S, Program, Run, Start, environment


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `broker`, `worker` or `main` with these arguments, in the test's own folder and in a session of its own."""
    programs: list[Program] = []

    def start(name: str, *arguments: str, **environ: str) -> Program:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_CODE.format(name), *arguments],
            cwd=tmp_path,
            env=environment(**environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(Program(process))
        return programs[-1]

    yield start
    for program in programs:
        with suppress(ProcessLookupError):
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.wait()
        for stream in (program.process.stdout, program.process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program to its end."""

    def run(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", IN_CODE.format(name), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(**environ), capture_output=True, text=True, timeout=WAIT_S, check=False)

    return run


@pytest.fixture
def broker(start: Start) -> dict[str, str]:
    """A broker that runs; the fields of its line."""
    return start("broker", *ON_FREE_PORTS).wait_for(READY).groupdict()
