"""Processes that depend on their parent: they die with it, and a death has a cause that can be told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int) -> None:
    """Linux: let the kernel kill this process when its parent dies, also if the parent is already gone.  Elsewhere the closed pipe must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def adopt_orphans() -> None:
    """Linux: processes below this one whose parents end become children of this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def leave_to_parent(*numbers: signal.Signals) -> None:
    """Signals that a terminal or a service manager sends to the whole group: the parent decides what they mean.  A handler that does nothing,
    not SIG_IGN, which programs that a task starts would inherit."""
    for number in numbers:
        signal.signal(number, _nothing)


def _nothing(number: int, frame: object) -> None:
    """See leave_to_parent."""


def cause_of_death(returncode: int) -> str:
    """`SIGKILL`, `exit code 3`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
