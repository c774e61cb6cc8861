"""The processes of the load bench: started, talked to by lines, looked at from outside, ended with all their children.

What a program says on stdout and stderr is one stream of lines, each with the monotonic time at which it was read.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgpack
import psutil

from taskq.worker.parent import die_with_parent

WAIT_S = 120.0
HERE = Path(__file__).parent
COMPLAINT = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback")
COMPLAINT_LINES = 40  # shown of what was said from the first complaint on, or at the end
Line = tuple[int, str]


class Rate(NamedTuple):
    """An end to end run: the CPU time of each program in µs a task, and the number of fdatasync calls (0: not known)."""

    tasks_per_s: float
    cpu_us: Mapping[str, float]
    syncs: int = 0


def make_payload(size: int) -> dict[str, bytes]:
    """Arguments that are `size` bytes of msgpack; of 0 bytes: none."""
    around = len(msgpack.packb({"data": bytes(size)})) - size
    return {"data": bytes(max(0, size - around))} if size else {}


def last_words(**fields: Any) -> None:
    """What a program has found, for `Program.last_words`."""
    print(json.dumps(fields), flush=True)


class Program:
    """A child in a session of its own.  Leaving it ends it with SIGTERM; RuntimeError if it ended badly or complained while it ran."""

    def __init__(self, command: list[str], environ: Mapping[str, str] | None = None, cwd: Path = HERE) -> None:
        self.name = " ".join(Path(part).name for part in command[:3])
        self.started_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
        self._lines: list[Line] = []
        self._news: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def python(cls, path: str | Path, *arguments: object) -> Program:
        return cls([sys.executable, str(Path(path).resolve()), *map(str, arguments)])

    @classmethod
    def installed(cls, name: str, *arguments: str, environ: Mapping[str, str]) -> Program:
        """`taskq-NAME`, the program that is installed beside this Python."""
        return cls([sys.executable, str(Path(sys.executable).with_name(f"taskq-{name}")), *arguments], environ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        code = self._end()
        said = [line for _, line in self._lines]
        complaint = next((at for at, line in enumerate(said) if COMPLAINT.search(line)), None)
        if kind is None and (code or complaint is not None):
            telling = said[-COMPLAINT_LINES:] if complaint is None else said[complaint : complaint + COMPLAINT_LINES]
            raise RuntimeError(f"{self.name} ended with exit code {code} and said:\n" + "\n".join(telling))

    def _end(self, wait_s: float = WAIT_S) -> int:
        try:
            with suppress(ProcessLookupError):
                self._process.terminate()
            code = self._process.wait(wait_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        return 0 if code == -signal.SIGTERM else code

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            line = (time.monotonic_ns(), text.rstrip("\n"))
            self._lines.append(line)
            self._news.put(line)
        self._news.put(None)

    # ---- by lines

    def wait_for(self, pattern: str, wait_s: float = WAIT_S) -> re.Match[str]:
        return self.wait_for_line(pattern, wait_s)[0]

    def wait_for_line(self, pattern: str, wait_s: float = WAIT_S) -> tuple[re.Match[str], int]:
        """The next line that matches, and when it was read; queue.Empty if there is none for so long, whatever else is said."""
        deadline_s = time.monotonic() + wait_s
        while (line := self._news.get(timeout=max(0.0, deadline_s - time.monotonic()))) is not None:
            if found := re.search(pattern, line[1]):
                return found, line[0]
            if time.monotonic() > deadline_s:
                raise queue.Empty
        raise RuntimeError(f"{self.name} ended without {pattern!r}:\n" + "\n".join(text for _, text in self._lines[-20:]))

    def said(self, pattern: str) -> re.Match[str]:
        """The last line so far that matches."""
        found = [match for _, text in self._lines if (match := re.search(pattern, text))]
        if not found:
            raise RuntimeError(f"{self.name} did not say {pattern!r}:\n" + "\n".join(text for _, text in self._lines[-20:]))
        return found[-1]

    def last_words(self, wait_s: float = WAIT_S) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.wait_for(r"^\{.*\}$", wait_s)[0])
        return found

    def say(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    # ---- from outside

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU time so far, of its children as well."""
        process = psutil.Process(self.pid)
        times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
        return float(sum(each.user + each.system for each in times))

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)
