"""The tasks of the crash campaign.  Each run leaves a line before and one after, in a file of its process: `KILLS_RUNS`/PID.jsonl."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

from taskq import App, connection, current_task

app = App()
# a cycle is a second long: a worker that comes back after five would miss most of them
connection.BACKOFF_MAX_S = 0.1
FD = os.open(Path(os.environ["KILLS_RUNS"]) / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
Result = tuple[str, int]


def note(phase: str, name: str) -> Result:
    task = current_task()
    line = {"phase": phase, "id": task.id, "name": name, "fence": task.fence, "attempt": task.attempt, "at": time.monotonic_ns()}
    os.write(FD, json.dumps(line).encode() + b"\n")
    return name, task.fence


@app.task(queue="load")
async def quick(name: str) -> Result:
    note("start", name)
    return note("end", name)


@app.task(queue="load")
async def nap(name: str, seconds: float) -> Result:
    note("start", name)
    await asyncio.sleep(seconds)
    return note("end", name)


@app.task(queue="load")
def block(name: str, seconds: float) -> Result:
    note("start", name)
    time.sleep(seconds)
    return note("end", name)


@app.task(queue="load")
async def flaky(name: str, fails: int) -> Result:
    """Raises in its first attempts."""
    note("start", name)
    if current_task().attempt <= fails:
        note("raise", name)
        raise RuntimeError("on purpose")
    return note("end", name)


@app.task(queue="load")
async def doomed(name: str) -> Result:
    note("start", name)
    note("raise", name)
    raise RuntimeError("always")
