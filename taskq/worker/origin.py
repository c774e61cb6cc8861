"""What a process was given when it began, before any task ran: the template of the child processes, whatever tasks have changed meanwhile.

Its Python, its working directory, which is kept open and so survives a new name, its environment (the locale with it), umask, limits, and which
signals it blocked or ignored.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))


@attrs.frozen(eq=False)
class Origin:
    """See the module.  `blocked` and `ignored` are applied by the child itself, see `take_signals`."""

    python: str
    directory: str
    directory_fd: int
    environ: dict[str, str]
    umask: int
    limits: dict[int, tuple[int, int]]
    blocked: list[int]
    ignored: list[int]

    @classmethod
    def here(cls) -> Origin:
        """As this process is now."""
        return cls(
            python=sys.executable,
            directory=os.getcwd(),
            directory_fd=os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            environ=dict(os.environ),
            umask=_umask(),
            limits={limit: resource.getrlimit(limit) for limit in LIMITS},
            blocked=sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            ignored=sorted(_ignored()),
        )

    def start(self, arguments: Sequence[str], pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
        """A Python with these arguments that has all of this, in a session of its own.  Raises OSError."""
        directory = f"/proc/self/fd/{self.directory_fd}"  # of the child, which has it too until it becomes another program
        with self._own_limits():
            return subprocess.Popen(
                [self.python, *arguments],
                pass_fds=pass_fds,
                cwd=directory if os.path.exists(directory) else self.directory,
                env=self.environ,
                umask=self.umask,
                start_new_session=True,
            )

    def close(self) -> None:
        os.close(self.directory_fd)

    @contextmanager
    def _own_limits(self) -> Iterator[None]:
        """A limit is inherited, and may be too small for a Python to start; so it is this process that has the first ones for a moment."""
        changed = [(limit, now) for limit, first in self.limits.items() if (now := resource.getrlimit(limit)) != first]
        for limit, now in changed:
            _set_limit(limit, self.limits[limit], now)
        try:
            yield
        finally:
            for limit, now in changed:
                with suppress(ValueError, OSError):
                    resource.setrlimit(limit, now)


def take_signals(blocked: Sequence[int], ignored: Sequence[int]) -> None:
    """Block and ignore these signals, and no others."""
    for number in _ignored() - {*ignored, signal.SIGPIPE, signal.SIGXFSZ}:  # these two Python ignores by itself
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _ignored() -> set[int]:
    return {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}


def _set_limit(limit: int, first: tuple[int, int], now: tuple[int, int]) -> None:
    """The first one; if that needs more rights than there are, as much of it as the hard limit allows."""
    for wanted in (first, (min(first[0], now[1]) if now[1] != resource.RLIM_INFINITY else first[0], now[1])):
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, wanted)
            return


def _umask() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
