"""The tasks of the chaos campaign, in all pools.  Each gives back the number that it was given, so that nobody gets the result of another."""

from __future__ import annotations

import asyncio
import time

from taskq import App, connection

app = App()
# a round is short: a worker that comes back after five seconds would miss most of it
connection.BACKOFF_MAX_S = 0.5


@app.task(queue="load")
async def nap(number: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return number


@app.task(queue="load")
async def block(number: int, seconds: float) -> int:
    """Holds the loop of its worker, as it must not."""
    time.sleep(seconds)
    return number


@app.task(queue="load", pool="thread")
def sit(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


@app.task(queue="load", pool="process")
def part(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number
