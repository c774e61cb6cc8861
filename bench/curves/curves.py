"""The four curves: what rate and latency become as one thing grows and all else stays.

Every point is measured with brokers, producers and workers in processes of their own, with default settings and durability fsync.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import brokers
import figures
import wide
from backlog import HOT, WINDOW, miscounted
from finding import Settings
from house import House, house
from producer import Wish

from taskq.config import BrokerConfig

KIB, MIB = 1 << 10, 1 << 20
PAYLOADS = (0, 150, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)
PAYLOAD_TASKS, PAYLOAD_TASKS_MIN, PAYLOAD_VOLUME = 100_000, 400, 256 * MIB
WORKERS = (1, 3, 10, 30, 100, 300, 1_000)
QUEUES = (1, 10, 100, 1_000, 10_000)
BACKLOGS = (0, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
# what a worker that ends may run beyond those that are measured
SPARE = 20_000


@attrs.frozen
class Point:
    """Tasks a second, one rate for each name in `Curve.rates`, and the latency of one task, at `x`."""

    x: int
    tasks_per_s: tuple[float, ...]
    p50_ms: float
    p99_ms: float


def payloads(settings: Settings) -> Iterator[Point]:
    """As many tasks as make the same volume, but not more than of the smallest and not less than can be counted."""
    for size in PAYLOADS:
        tasks = settings.sized(max(PAYLOAD_TASKS_MIN, min(PAYLOAD_TASKS, PAYLOAD_VOLUME // max(1, size))))
        of_figures = figures.Settings(tasks, size, "fsync", BrokerConfig().shards, 0, str(settings.folder))
        rate = figures.end_to_end(of_figures)["tasks/s"]
        singles = attrs.evolve(of_figures, tasks=figures.SINGLES_PART * wide.few_of(settings))
        found = figures.latency("round_trips")(singles)
        yield Point(size, (rate,), found["p50 ms"], found["p99 ms"])


def workers(settings: Settings) -> Iterator[Point]:
    for sessions in WORKERS:
        yield _wide(wide.measure(settings, sessions, wide.FEW_QUEUES, sessions))


def queues(settings: Settings) -> Iterator[Point]:
    for count in QUEUES:
        yield _wide(wide.measure(settings, count, count, wide.FEW_WORKERS))


def _wide(found: wide.Point) -> Point:
    return Point(found.x, (found.tasks_per_s,), found.p50_ms, found.p99_ms)


def backlog(settings: Settings) -> Iterator[Point]:
    """One queue, filled deeper and deeper.  The tasks of the latency are of another type, whose worker runs nothing else."""
    hot, window = settings.sized(HOT), settings.sized(WINDOW)
    depths = [settings.sized(depth) if depth else 0 for depth in BACKLOGS]
    more = hot + window + SPARE
    with house(settings.folder, len(depths) * more) as at:
        at.start()
        at.ready()
        enqueued = 0
        for depth in depths:
            if (missing := depth - (enqueued - len(at.notes))) > 0:
                at.enqueue(Wish(missing, enqueued))
                enqueued += missing
            at.settle()
            latency = _beside(at, wide.few_of(settings))
            at.settle()
            enqueue = at.enqueue(Wish(more, enqueued))
            enqueued += more
            at.drain(hot)
            yield Point(depth, (at.drain(window), enqueue), *latency)
        if wrong := miscounted(at, enqueued):
            raise RuntimeError(f"{wrong} tasks were lost or ran twice")


def _beside(at: House, tasks: int) -> tuple[float, float]:
    """p50 and p99 of enqueue → start in milliseconds, at low load, on a broker that has all the others waiting in the same queue."""
    running = brokers.Broker(at.broker, at.url, at.data)
    with brokers.workers(running, 1, credit=wide.CREDIT) as crowd:
        _, counted = wide.send(running, crowd, 1, tasks, wide.LATENCY_PER_S)
    spread = figures.spread_ms([each for words in counted for each in words["us"]])
    return spread["p50 ms"], spread["p99 ms"]


@attrs.frozen
class Curve:
    """`grows`: the name of x.  `latency`: from where to where."""

    grows: str
    rates: tuple[str, ...]
    latency: str
    points: Callable[[Settings], Iterator[Point]]


CURVES: dict[str, Curve] = {
    "payloads": Curve("payload, bytes", ("end to end",), "enqueue → result, one at a time", payloads),
    "workers": Curve("workers", ("end to end, one task a frame",), "enqueue → start, 100 tasks/s", workers),
    "queues": Curve("queues", ("end to end, one task a frame",), "enqueue → start, 100 tasks/s", queues),
    "backlog": Curve("tasks that wait", ("drain", "enqueue"), "enqueue → start, 100 tasks/s", backlog),
}
