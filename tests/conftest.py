"""Which event loops the tests run on (the standard library's; what carries bytes, `actors` and `e2e`, on uvloop as well), and the programs as
real processes, each of which is ended, whatever happens."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from programs import IN_CODE, WAIT_S, Program, Run, Spawn, Start, environment

# a run in the background ignores these, and so would every program that a test starts
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)

ON_BOTH_LOOPS = frozenset({"actors", "e2e"})
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS if item.path.parent.name in ON_BOTH_LOOPS else {"asyncio": asyncio.new_event_loop}


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start a command in the test's own folder and in a session of its own."""
    programs: list[Program] = []

    def spawn(command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> Program:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=tmp_path,
            env=environment() if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(Program(process))
        return programs[-1]

    yield spawn
    for program in programs:
        program.discard()


@pytest.fixture
def start(spawn: Spawn) -> Start:
    """Start `broker`, `worker` or `main` with these arguments."""
    return lambda name, *arguments, **environ: spawn([sys.executable, "-c", IN_CODE.format(name), *arguments], environment(**environ))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program to its end."""

    def run(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", IN_CODE.format(name), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(**environ), capture_output=True, text=True, timeout=WAIT_S, check=False)

    return run
