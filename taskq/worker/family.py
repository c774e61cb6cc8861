"""The processes below a worker's own: the keeper's runner, and what tasks have started and left behind, which Linux hands to the keeper when its
parent ends.

Rules:
- Every dead child is reaped, since nobody else does it where the keeper is process 1 of a container.
- What is there after the end of a runner was started by its tasks, and is killed.  What was there before the keeper is left alone.
- Nothing here needs a thread: a worker that may have no further one is kept as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from taskq.worker.parent import adopt_orphans

log = logging.getLogger("taskq.worker.keeper")

# a process that the kernel does not let die holds up the next runner for so long
SWEEP_S = 5.0
LOOK_S = 0.01
# in stat_of
PARENT, SESSION = 1, 3


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: state, parent, process group, session, …; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()


def children_of(parent_pid: int) -> set[int]:
    """The children of a process that are not reaped yet; none where there is no /proc."""
    with suppress(OSError):
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return {pid for pid in pids if stat_of(pid)[PARENT : PARENT + 1] == [str(parent_pid)]}
    return set()


class Family:
    """The children of this process, whose SIGCHLD it takes; to be made on the running loop."""

    def __init__(self) -> None:
        adopt_orphans()
        self._strangers = children_of(os.getpid())
        self._ends: dict[int, asyncio.Future[int]] = {}
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def start(self, command: Sequence[str], pass_fds: Iterable[int], env: dict[str, str]) -> tuple[int, asyncio.Future[int]]:
        """A child in a session of its own, where the signals of a terminal do not reach it: its pid, and its return code once it has ended.
        Raises OSError."""
        child = subprocess.Popen(command, pass_fds=tuple(pass_fds), env=env, start_new_session=True)
        end = self._ends[child.pid] = asyncio.get_running_loop().create_future()
        child.returncode = 0  # that object waits for nobody
        return child.pid, end

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                self._strangers.discard(pid)
                end = self._ends.pop(pid, None)
                if end is not None and not end.done():
                    end.set_result(os.waitstatus_to_exitcode(status))

    async def sweep(self, runner_pid: int) -> None:
        """Kill what a dead runner has left, and what comes to this process when that dies, until nothing is left."""
        _kill_group(runner_pid)
        end_s = monotonic() + SWEEP_S
        while left := children_of(os.getpid()) - self._strangers:
            if monotonic() > end_s:
                log.error("what tasks have started cannot be killed: processes %s", ", ".join(map(str, sorted(left))))
                return
            for pid in left:
                _signal(pid, signal.SIGKILL)
            await asyncio.sleep(LOOK_S)


def kill_tree(pid: int) -> None:
    """Kill a process that is not reaped yet, and all that it has started: its session, and what is below it in another one.  They are stopped first,
    so that none of them starts another one meanwhile."""
    seen: set[int] = set()
    while found := _tree(pid) - seen:
        for each in found:
            _signal(each, signal.SIGSTOP)
        seen |= found
    for each in {pid, *seen}:
        _signal(each, signal.SIGKILL)
    _kill_group(pid)


def _tree(leader_pid: int) -> set[int]:
    """The pids of a session and of all below; empty where there is no /proc."""
    with suppress(OSError):
        stats = {pid: stat for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if (stat := stat_of(pid))}
        found = {pid for pid, stat in stats.items() if pid == leader_pid or stat[SESSION] == str(leader_pid)}
        while below := {pid for pid, stat in stats.items() if int(stat[PARENT]) in found} - found:
            found |= below
        return found
    return set()


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(OSError):
        os.kill(pid, number)


def _kill_group(leader_pid: int) -> None:
    with suppress(OSError):
        os.killpg(leader_pid, signal.SIGKILL)
