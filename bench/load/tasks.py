"""What the worker runs in the load bench: tasks that do nothing.  When the worker ends it says how many it ran, so that none is missed or doubled."""

from __future__ import annotations

import atexit
import time
from itertools import count

from taskq import App

app = App()
runs = count()


@app.task(queue="bench")
async def noop(data: bytes) -> None:
    next(runs)


@app.task(queue="bench")
async def stamp(data: bytes) -> int:
    """When it started, in nanoseconds of the clock that all processes of a machine share."""
    next(runs)
    return time.monotonic_ns()


@atexit.register
def say_runs() -> None:
    print(f"runs={next(runs)}", flush=True)
