"""The programs as real processes."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

import taskq

WAIT_S = 20.0
IN_CODE = "from taskq.cli import {0}; {0}(prog_name={0!r})"
SOURCE = Path(taskq.__file__).parents[1]


@attrs.define
class Program:
    """A running program: what it says on each stream is kept, and can be waited for."""

    process: subprocess.Popen[str]
    said: dict[str, list[str]] = attrs.field(factory=lambda: {"stdout": [], "stderr": []})
    _news: queue.Queue[tuple[str, str]] = attrs.field(factory=queue.Queue)

    def __attrs_post_init__(self) -> None:
        for name in self.said:
            threading.Thread(target=self._read, args=(name,), daemon=True).start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            self._news.put((name, line))
        self._news.put((name, ""))

    def wait_for(self, pattern: str, stream: str = "stdout") -> re.Match[str]:
        """The first line that matches, said already or later; AssertionError when the stream ends without one."""
        for line in self.said[stream]:
            if found := re.search(pattern, line):
                return found
        while True:
            name, line = self._news.get(timeout=WAIT_S)
            self.said[name].append(line)
            if name == stream and (found := re.search(pattern, line)):
                return found
            assert line or name != stream, f"ended without {pattern!r}: {self.said}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; the exit code.  All that was said is in `said` then."""
        code = self.process.wait(WAIT_S)
        open_streams = {name for name, lines in self.said.items() if lines[-1:] != [""]}
        while open_streams:
            name, line = self._news.get(timeout=WAIT_S)
            self.said[name].append(line)
            open_streams -= {name} if not line else set()
        return code

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    def discard(self) -> None:
        """Kill it and its session, if it still runs, and let go of its streams."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    @property
    def errors(self) -> str:
        return "".join(self.said["stderr"])


Spawn = Callable[..., Program]
Start = Callable[..., Program]
Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_") or name == "TASKQ_LOOP"}
    return {**inherited, "PYTHONPATH": str(SOURCE), "COLUMNS": "200", "NO_COLOR": "1", "TASKQ_BALLAST_BYTES": "1MiB", **more}


FIELDS = ("tcp", "http", "data", "shards", "durability", "pid")
READY = "^taskq-broker listening " + " ".join(rf"{field}=(?P<{field}>\S+)" for field in FIELDS) + "$"
ON_FREE_PORTS = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
