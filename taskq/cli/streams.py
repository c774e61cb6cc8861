"""The standard streams of a program that serves: whoever started it may have closed them, or may go away while it runs.

A number below 3 that is free goes to the next file or socket that is opened, and what a library writes on "stderr" goes into it.  So all three are
open before anything else is.
"""

from __future__ import annotations

import os
import sys

STDOUT = 1


def open_streams() -> None:
    """To be called first.  What is closed becomes /dev/null."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def say(text: str) -> None:
    """A line on stdout.  That nobody reads it any more ends no server."""
    try:
        print(text, flush=True)
    except OSError:
        # what is still in the buffer would fail once more at the exit
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, STDOUT)
        os.close(null)
