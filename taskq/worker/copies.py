"""What a fork makes of a process of the worker: a *copy*, which belongs to the task that forked, and is no part of the worker.

    fork ─► before: no signal comes in between ─┬─► in the parent: as it was
                                                └─► in the copy: default signals, /dev/null in place of our files, `copied`

Rules:
- A copy can neither speak for the worker nor be heard by it.  The numbers of our files stay taken, so that nothing else gets them.
- A copy that comes back from the function of its task, or waits on our loop, ends there: like a program that ends, with its exit code.
- What is started with exec needs none of this: none of our files is inheritable.
- A task that does not fork pays for one look at `copied`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

# those that the processes of a worker take or ignore, and SIGCHLD, which its loop may take
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


class Copies:
    """`copied`: this process is a copy.  Nothing is guarded before `guard`: what runs inside of somebody else's process leaves it alone."""

    def __init__(self) -> None:
        self.copied = False
        self._files: Callable[[], Iterable[int]] = tuple
        self._become: Callable[[], None] = _nothing
        self._masks = threading.local()

    def guard(self) -> None:
        """From here on for ever, so once in a process."""
        os.register_at_fork(before=self._hold_signals, after_in_parent=self._release_signals, after_in_child=self._be_copied)

    def keep_from(self, files: Callable[[], Iterable[int]], become: Callable[[], None]) -> None:
        """`files`: the numbers that a copy must not have; `become` is called in the copy."""
        self._files, self._become = files, become

    def leave(self) -> NoReturn:
        """End this copy, which the exception that is being handled, if there is one, would have ended."""
        try:
            code = _exit_code(sys.exc_info()[1])
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
        except BaseException:
            code = 1
        os._exit(code)

    # ---- around a fork

    def _hold_signals(self) -> None:
        self._masks.old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def _release_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._masks.old)

    def _be_copied(self) -> None:
        self.copied = True
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            _blind(self._files())
            self._become()
        finally:
            if signal.SIGINT not in signal.sigpending():  # as an exception it would be lost in here
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._release_signals()


def _blind(files: Iterable[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in files:
        with suppress(OSError):  # it is closed already
            os.dup2(null, fd, inheritable=False)
    os.close(null)


def sockets_to(peers: Iterable[Any]) -> Iterator[int]:
    """The numbers of this process's sockets that are connected to one of these addresses, whoever has opened them."""
    wanted = set(peers)
    for name in os.listdir("/dev/fd") if wanted else ():
        with suppress(OSError):
            opened = socket.socket(fileno=int(name))
            try:
                if opened.getpeername() in wanted:
                    yield int(name)
            finally:
                opened.detach()


def _exit_code(error: BaseException | None) -> int:
    """That of a program which ends like this; what it would say is said."""
    if error is None or isinstance(error, StopIteration):
        return 0
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
        return 1
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _nothing() -> None:
    """A copy has nothing to do yet."""
