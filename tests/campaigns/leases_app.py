"""The tasks of the leases campaign.  Each run writes into one file, whose name is in `LEASES_RUNS`: a line when it starts, a line when it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from pathlib import Path

from taskq import App, current_task

app = App()
POLL_S = 0.02


def note(what: str) -> None:
    task = current_task()
    line = f"{what} {task.id} {task.attempt} {task.fence} {os.getpid()} {time.time():.3f}\n"
    file = os.open(os.environ["LEASES_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def hold(seconds: int) -> list[float]:
    """Hold the GIL in a C call that never releases it; the seconds held, and how often another thread of this process came round meanwhile."""
    note("start")
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    while not ticks:
        time.sleep(0.001)
    began_s, before = time.monotonic(), len(ticks)
    ctypes.PyDLL(None).sleep(seconds)
    inside, held_s = len(ticks) - before, time.monotonic() - began_s
    stop.set()
    thread.join()
    note("end")
    return [held_s, inside]


@app.task(queue="async")
async def hold_async(seconds: int) -> list[float]:
    return hold(seconds)


@app.task(queue="thread", pool="thread")
def hold_thread(seconds: int) -> list[float]:
    return hold(seconds)


@app.task(queue="process", pool="process")
def hold_process(seconds: int) -> list[float]:
    return hold(seconds)


@app.task(pool="thread")
def until(path: str, seconds: float = 600.0) -> int:
    """Work for some time, or until there is a file of this name or of this name and the pid; who did it."""
    note("start")
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not os.path.exists(path) and not os.path.exists(f"{path}.{os.getpid()}"):
        time.sleep(POLL_S)
    note("end")
    return os.getpid()


gates: dict[str, asyncio.Future[None]] = {}


async def open_gate(path: Path, gate: asyncio.Future[None]) -> None:
    while not path.exists():
        await asyncio.sleep(POLL_S)
    gate.set_result(None)


@app.task
async def wait_at(path: str) -> int:
    """Wait for a file; many of them cost what one does."""
    note("start")
    gate = gates.get(path)
    if gate is None:
        gate = gates[path] = asyncio.get_running_loop().create_future()
        gate.opener = asyncio.get_running_loop().create_task(open_gate(Path(path), gate))  # type: ignore[attr-defined]
    await asyncio.shield(gate)
    note("end")
    return os.getpid()


@app.task
async def who() -> int:
    return os.getpid()


def leave() -> None:
    os._exit(3)


def fault() -> None:
    ctypes.string_at(0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(pool="thread")
def die(how: str, delay: float = 0.0) -> None:
    note("start")
    time.sleep(delay)
    {"leave": leave, "fault": fault, "kill": kill}[how]()


@app.task
async def linger(seconds: float) -> int:
    note("start")
    await asyncio.sleep(seconds)
    note("end")
    return os.getpid()
