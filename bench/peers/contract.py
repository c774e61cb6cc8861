"""What a peer is: a row with a server to start, a client program to run, the settings that were found best, and those that were tried.

A client program is written in the peer's own language, runs in the peer's own environment and understands two commands:

    CLIENT work                       its worker, until SIGTERM.  A task takes {"to": "user@example.com", "n": i} and marks that it runs.
    CLIENT produce MODE FIRST TASKS   says `ready`, waits for a line on stdin, enqueues the tasks FIRST … FIRST + TASKS - 1, and prints one JSON
                                      object, in nanoseconds of the monotonic clock that all processes of a machine share:
        one_by_one                    {"started_ns", "ended_ns"}: one after the other, each waits for its acknowledgement
        bulk                          the same, in the fastest way that the peer's library has, all acknowledged
        low_load                      {"sent_ns": […]}: one task every 10 ms, when each call was made
        round_trips                   {"us": […]}: one task after the other, each with its result

What it is told by the environment:

    BENCH_PORT      of the server, on 127.0.0.1
    BENCH_SETTINGS  a JSON object, `Peer.settings` with what `--set` changed
    BENCH_MARKS     a file in shared memory.  The first thing that a task does is to append one byte to it: that is how finished tasks are counted
                    from outside, by its size, for all peers alike
    BENCH_STAMPS    1: append 16 bytes instead, n and the monotonic time in nanoseconds (native int64), and give n as the result
    BENCH_RESULTS   1: results are wanted (those of `round_trips`, and the worker beside it)
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import attrs
from children import Program

HERE = Path(__file__).parent
CLIENTS = HERE / "clients"
END_S = 10.0
LOOK_S = 0.002
SAID_LINES = 4
COMPLAINT = re.compile(r"\w*(?:Error|Exception)\b.*:|\b(?:ERROR|FATAL|CRITICAL)\b|\(\w+Error\)")


class PeerTrouble(Exception):
    """Why a peer has no figure: it cannot be installed, did not start, ended, or was cut."""


class Running(Protocol):
    """A program of ours or of the load bench."""

    @property
    def pid(self) -> int: ...


class Child(Program):
    """A peer's program: it may say what it likes and end as it likes, but not while it is needed, and it is gone in the end."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._end(END_S)
        except subprocess.TimeoutExpired:  # killed meanwhile
            self._end(END_S)

    def check(self) -> None:
        """PeerTrouble if it has ended."""
        if (code := self._process.poll()) is not None:
            self._reader.join(END_S)
            raise PeerTrouble(f"{self.name} ended with exit code {code}{self.said()}")

    def said(self) -> str:
        """What a reader needs of what it said: complaints, or else the last lines."""
        lines = [line for _, line in self._lines if line.strip()]
        complaints = list(dict.fromkeys(line for line in lines if COMPLAINT.search(line)))
        return "".join(f"\n      | {line.strip()[:200]}" for line in complaints[:SAID_LINES] or lines[-SAID_LINES:])


@attrs.frozen
class Server:
    """A running server: what its memory is counted by, and where its files are (None: it has none)."""

    port: int
    programs: tuple[Running, ...] = ()
    data: Path | None = None


@attrs.frozen
class Context:
    """Where a server is started: `folder` is empty, on the disk to measure, and removed afterwards."""

    folder: Path
    tasks: int
    limit_s: float
    settings: Mapping[str, Any]


@attrs.frozen
class Tried:
    """One setting: the values that were tried, which was kept, and what was seen.

    Where `seen` has pairs, they are drain / end to end in tasks a second, each the mean of two small runs (300 to 2,000 tasks) that took turns on a
    machine busy with other work: they choose between settings, and say nothing else.
    """

    setting: str
    values: str
    kept: str
    seen: str = ""


@attrs.frozen
class Rough:
    """Tasks a second on 2 cores, only to say beforehand how long a run takes."""

    one_by_one: int
    bulk: int
    drain: int
    end_to_end: int


@attrs.frozen
class Peer:
    """A row.  `needs`: rows of `install.NEEDS`.  `tasks_max`: what it finishes in minutes.  `without`: figures that it cannot have, and why."""

    name: str
    title: str
    durability: str
    serve: Callable[[Context], AbstractContextManager[Server]]
    client: tuple[str, ...]
    needs: tuple[str, ...]
    versions: tuple[str, ...]
    rough: Rough
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    tried: tuple[Tried, ...] = ()
    tasks_max: int | None = None
    without: Mapping[str, str] = attrs.field(factory=dict)
    environ: Callable[[], Mapping[str, str]] = dict

    def tasks(self, depth: int) -> int:
        return min(depth, self.tasks_max or depth)


def until(done: Callable[[], bool], what: Callable[[], str], children: tuple[Child, ...], limit_s: float) -> int:
    """The monotonic time at which it was done.  PeerTrouble when a child has ended, or after the limit."""
    deadline_s = time.monotonic() + limit_s
    while not done():
        for child in children:
            child.check()
        if time.monotonic() > deadline_s:
            raise PeerTrouble(f"cut after {limit_s:,.0f} s: {what()}" + "".join(child.said() for child in children))
        time.sleep(LOOK_S)
    return time.monotonic_ns()


def size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return 0
