"""Very many queues and very many workers: what a task costs must not depend on how many of either there are.

Each worker is a session of its own (crowd.py) that takes all queues.  Tasks go round the queues, one in each frame; the same number of tasks and of
frames for all points of a curve, so that only the number of queues, or of workers, is different.  First comes the rate (all tasks enqueued as fast as
they are admitted), then, on the same broker, the latency at a rate that leaves it idle most of the time.

    python bench/flat/wide.py [--only queues,workers] [--scale 1.0] [--folder .]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

sys.path.append(str(Path(__file__).parents[1] / "load"))

import decisions
from brokers import HERE, Broker, Crowd, broker, workers
from children import Program
from figures import spread_ms
from finding import Finding, Part, Settings

QUEUES = (1, 100, 10_000)
WORKERS = (1, 10, 100, 1_000)
TASKS = 30_000
LATENCY_TASKS, LATENCY_PER_S = 500, 100
FRAME_TASKS = 1
# the same credit for all points, shared by the workers
CREDIT = 1_000
FEW_QUEUES, FEW_WORKERS = 10, 10
COST_RATIO_MAX = 1.2
ROUNDS = 3
WAIT_S, LOOK_S = 100.0, 0.05


@attrs.frozen
class Point:
    """`x` queues, or workers; tasks a second end to end, the broker's CPU time for a task, and enqueue → start at low load."""

    x: int
    tasks_per_s: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


def measure(settings: Settings, x: int, queues: int, sessions: int) -> Point:
    tasks, few = settings.sized(TASKS), few_of(settings)
    with broker(settings.folder) as running, workers(running, sessions, queues=queues, credit=max(1, CREDIT // sessions)) as crowd:
        send(running, crowd, queues, min(tasks, 2 * queues), 0)  # each queue and each subscription is met once before the clock runs
        cpu_s = running.program.cpu_s()
        sent, counted = send(running, crowd, queues, tasks, 0)
        cpu_us = (running.program.cpu_s() - cpu_s) / tasks * 1e6
        rate = tasks / (max(each["last_ns"] for each in counted) - sent["started_ns"]) * 1e9
        _, counted = send(running, crowd, queues, few, LATENCY_PER_S)
    spread = spread_ms([each for words in counted for each in words["us"]])
    return Point(x, rate, cpu_us, spread["p50 ms"], spread["p99 ms"])


def few_of(settings: Settings) -> int:
    """How many tasks a latency is made of."""
    return max(20, settings.sized(LATENCY_TASKS))


def send(running: Broker, crowd: Crowd, queues: int, tasks: int, per_s: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Enqueue so many tasks, and wait until each was acknowledged once."""
    before = sum(int(words["acked"]) for words in crowd.ask("count"))
    with Program.python(HERE / "spread.py", running.url, queues, tasks, FRAME_TASKS, per_s) as producer:
        sent = producer.last_words(WAIT_S)
    deadline_s = time.monotonic() + WAIT_S
    words = crowd.ask("count")
    us: list[list[float]] = [each["us"] for each in words]
    while sum(int(each["acked"]) for each in words) < before + tasks:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{before + tasks - sum(int(each['acked']) for each in words)} of {tasks} tasks were not acknowledged")
        time.sleep(LOOK_S)
        words = crowd.ask("count")
        for known, each in zip(us, words, strict=True):
            known += each["us"]
    if sum(int(each["acked"]) for each in words) != before + tasks:
        raise RuntimeError("more tasks were acknowledged than enqueued")
    return sent, [{**each, "us": known} for each, known in zip(words, us, strict=True)]


def queues_curve(settings: Settings) -> Iterator[Point]:
    for queues in QUEUES:
        yield measure(settings, queues, queues, FEW_WORKERS)


def workers_curve(settings: Settings) -> Iterator[Point]:
    for sessions in WORKERS:
        yield measure(settings, sessions, FEW_QUEUES, sessions)


def _part(what: str, curve: Callable[[Settings], Iterator[Point]]) -> Part:
    def part(settings: Settings) -> Iterator[Finding]:
        for point in curve(settings):
            name = f"{point.x:,} {what}"
            yield Finding(f"{name}: end to end, one task a frame", point.tasks_per_s, "tasks/s")
            yield Finding(f"{name}: CPU of the broker", point.cpu_us, "µs a task")
            yield Finding(f"{name}: enqueue → start, p50", point.p50_ms, "ms")
            yield Finding(f"{name}: enqueue → start, p99", point.p99_ms, "ms")

    return part


queues: Part = _part("queues", queues_curve)
workers_part: Part = _part("workers", workers_curve)


def both(settings: Settings) -> Iterator[Finding]:
    """The promise itself: 10,000 queues and 1,000 workers beside 10 and 10."""
    few = measure(settings, 0, FEW_QUEUES, FEW_WORKERS)
    many = measure(settings, 0, QUEUES[-1], WORKERS[-1])
    name = f"{QUEUES[-1]:,} queues and {WORKERS[-1]:,} workers"
    for title, point in ((f"{FEW_QUEUES} queues and {FEW_WORKERS} workers", few), (name, many)):
        yield Finding(f"{title}: end to end", point.tasks_per_s, "tasks/s")
        yield Finding(f"{title}: CPU of the broker", point.cpu_us, "µs a task")
        yield Finding(f"{title}: enqueue → start, p99", point.p99_ms, "ms")
    # a worker that has its connection to itself gets one write a task, and reads one; ten workers share both, so this is no bound on what is decided
    yield Finding(f"{name} / few: CPU of the broker for a task, sockets included", many.cpu_us / few.cpu_us, "times")
    few_us, many_us = (min(decisions.us_per_task(*size) for _ in range(ROUNDS)) for size in ((FEW_QUEUES, FEW_WORKERS), (QUEUES[-1], WORKERS[-1])))
    yield Finding(f"{FEW_QUEUES} queues and {FEW_WORKERS} workers: CPU of the decisions", few_us, "µs a task")
    yield Finding(f"{name}: CPU of the decisions", many_us, "µs a task")
    yield Finding(f"{name} / few: CPU of the decisions for a task", many_us / few_us, "times", at_most=COST_RATIO_MAX)


PARTS: dict[str, Part] = {"queues": queues, "workers": workers_part, "both": both}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), metavar="NAME,NAME")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", default=".")
    options = parser.parse_args()
    for name in options.only.split(","):
        for found in PARTS[name](Settings(Path(os.path.abspath(options.folder)), options.scale)):
            bound = "" if found.at_most is None else f"   at most {found.at_most:g}: {'met' if found.is_met else 'NOT MET'}"
            print(f"{found.what:70} {found.value:12,.2f} {found.unit}{bound}", flush=True)


if __name__ == "__main__":
    main()
