"""What the worker runs in the load bench: tasks that do nothing.  When the worker ends it says how many it ran, so that none is missed or doubled."""

from __future__ import annotations

import atexit
import os
import statistics
import time
from array import array
from itertools import count

from taskq import App, connection

app = App()
runs = count()
delays_ns = array("q")
arrived_ns = [0]
# where the processes of tasks leave a byte for each run: nobody else sees how many they were
tally = os.open(os.environ["BENCH_TALLY"], os.O_WRONLY | os.O_APPEND) if "BENCH_TALLY" in os.environ else -1


@app.task(queue="bench")
async def noop(data: bytes = b"") -> None:
    next(runs)


@app.task(queue="bench")
async def stamp(data: bytes = b"") -> int:
    """When it started, in nanoseconds of the clock that all processes of a machine share."""
    next(runs)
    return time.monotonic_ns()


@app.task(queue="bench")
async def delayed(data: bytes, sent_ns: int) -> None:
    """Keeps for itself how long it was on its way."""
    delays_ns.append(time.monotonic_ns() - sent_ns)
    next(runs)


@app.task(queue="bench")
async def stages(data: bytes) -> list[int]:
    """When the bytes that brought it were read from the socket, and when it started."""
    next(runs)
    return [arrived_ns[0], time.monotonic_ns()]


def note_arrivals() -> None:
    received = connection._Protocol.data_received

    def noted(self: connection._Protocol, data: bytes) -> None:
        arrived_ns[0] = time.monotonic_ns()
        received(self, data)

    connection._Protocol.data_received = noted  # type: ignore[method-assign]


if "BENCH_STAGES" in os.environ:
    note_arrivals()


@app.task(queue="bench", pool="thread")
def thread_noop(data: bytes) -> None:
    next(runs)


@app.task(queue="bench", pool="process")
def process_noop(data: bytes) -> None:
    os.write(tally, b".")


@atexit.register
def say_runs() -> None:
    if len(delays_ns) > 1:
        cuts = statistics.quantiles(delays_ns, n=100, method="inclusive")
        print(f"delays p50_ms={cuts[49] / 1e6} p99_ms={cuts[98] / 1e6}", flush=True)
    print(f"runs={next(runs)}", flush=True)
