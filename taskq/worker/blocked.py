"""Names what holds the event loop: a task that computes or waits without `await` holds up all others of its worker.

A thread asks the loop for a sign every LOOK_S, as long as the worker has tasks.  When none has come after BLOCKED_S it looks at what the loop's
thread is doing, and says once which task that is and in which line of its own code it stands.  So nothing is paid for a task, and a loop that waits
in its selector, because the machine is busy, is not blamed.

It reads frames of another thread while that goes on, so it looks at no variables but our own `job`, and keeps none of them.
"""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from types import CodeType, FrameType

from taskq.worker.job import Job

log = logging.getLogger("taskq.worker")

LOOK_S = 0.05
BLOCKED_S = 0.1
# the same task type is named again after so long, at most NAMED_MAX of them are remembered
AGAIN_S = 60.0
NAMED_MAX = 1_000
LINE_CHARS_MAX = 120
OUR_FOLDER = os.path.dirname(os.path.dirname(__file__)) + os.sep
FOREIGN_FOLDERS = (os.path.dirname(os.__file__) + os.sep, OUR_FOLDER, "<frozen")
# where libraries are installed; sysconfig, which knows it exactly, takes time to import
LIBRARIES = ("site-packages", "dist-packages")
REMEDY = "use await with an async library or asyncio.sleep, or write the task with def, or use await asyncio.to_thread(…)"


class LoopWatch:
    """Watches the running loop.  `busy`: whether there are tasks; `steps`: the functions that run one step of a task, whose local `job` says
    which."""

    def __init__(self, busy: Callable[[], bool], steps: frozenset[CodeType]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._busy = busy
        self._steps = steps
        self._needed = threading.Event()
        self._stopped = threading.Event()
        self._turned = threading.Event()
        self._named: dict[str, float] = {}
        self._last, self._last_s = "", 0.0

    def start(self) -> None:
        """Without a thread, which the system may refuse, nobody is named and all goes on."""
        try:
            threading.Thread(target=self._watch, name="taskq-loop-watch", daemon=True).start()
        except RuntimeError as error:
            log.warning("what holds the event loop will not be named: %s", error)

    def wake(self) -> None:
        """There are tasks."""
        if not self._needed.is_set():
            self._needed.set()

    def stop(self) -> None:
        self._stopped.set()
        self._needed.set()

    def culprit(self, within_s: float) -> str:
        """What held the loop in the last seconds, "" if that was not seen."""
        return self._last if monotonic() - self._last_s <= within_s else ""

    def _watch(self) -> None:
        while not self._stopped.is_set():
            if not self._busy():
                self._needed.clear()
                if not self._busy():
                    self._needed.wait()
                continue
            if not self._look():
                return

    def _look(self) -> bool:
        """One sign of the loop; False if it is closed."""
        self._turned.clear()
        try:
            self._loop.call_soon_threadsafe(self._turned.set)
        except RuntimeError:
            return False
        if self._turned.wait(BLOCKED_S):
            self._stopped.wait(LOOK_S)
            return True
        self._blame()
        while not self._turned.wait(LOOK_S) and not self._stopped.is_set():
            if self._last:
                self._last_s = monotonic()
        return True

    def _blame(self) -> None:
        frame = sys._current_frames().get(self._thread_id)
        held = held_by(frame, self._steps) if frame is not None else None
        del frame  # it would keep what its functions know
        if held is None:
            self._last = ""
            return
        who, where, task_type = held
        self._last, self._last_s = f"{who} held the loop at {where}", monotonic()
        if self._last_s >= self._named.get(task_type, 0.0):
            if len(self._named) >= NAMED_MAX:
                self._named.clear()
            self._named[task_type] = self._last_s + AGAIN_S
            log.warning("%s has held the event loop for %.1f s, and with it all other tasks: at %s; %s", who, BLOCKED_S, where, REMEDY)


def held_by(frame: FrameType, steps: frozenset[CodeType]) -> tuple[str, str, str] | None:
    """Which task stands in this frame, where in its own code, and its type; None if it is none."""
    inner: list[FrameType] = []
    for each in _outwards(frame):
        if each.f_code in steps:
            job = each.f_locals.get("job")
            return (job.label, place(inner), job.task_type) if isinstance(job, Job) and inner else None
        inner.append(each)
    return None


def place(frames: list[FrameType]) -> str:
    """`file:line in function: the line`, of the innermost frame that is neither Python's, nor a library's, nor ours; else of the innermost."""
    frame = next((each for each in frames if not _is_foreign(each.f_code.co_filename)), frames[0])
    path, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(path, line).strip()[:LINE_CHARS_MAX]
    return f"{path}:{line} in {frame.f_code.co_name}" + (f": {text}" if text else "")


def _is_foreign(path: str) -> bool:
    return path.startswith(FOREIGN_FOLDERS) or any(f"{os.sep}{name}{os.sep}" in path for name in LIBRARIES)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
