"""Ten million tasks wait: enqueue, drain, memory, order and restart are as at 500,000, which do not fit into memory either.

Each part fills one broker to the shallow depth and to the deep one, and measures a window at both.  Far more are enqueued than are run: what runs is
noted by number, so order, doubles and losses are seen exactly, and what is left is compared with what the broker counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

from finding import Finding, Part, Settings
from house import House, house
from producer import FRAME_TASKS, Wish

SHALLOW, DEEP, WINDOW, URGENT = 500_000, 10_000_000, 300_000, 1_000
# what may be hot, and runs before a drain is measured; what is enqueued while it is, several times what may be dirty
HOT, ENQUEUED = 250_000, 1_000_000
MIB = 1 << 20
RSS_MIB, RESTART_S, LATE_MS = 600, 5.0, 1_000
FLAT, HALF = 0.9, 0.5
# how long before they are due the tasks of a window are enqueued, at this rate at least
RATE_MIN, AHEAD_S = 15_000, 3.0


def pending(settings: Settings) -> Iterator[Finding]:
    """All of one priority and type, then some urgent ones."""
    shallow, deep, hot, many, window = (whole_frames(settings.sized(full)) for full in (SHALLOW, DEEP, HOT, ENQUEUED, WINDOW))
    rates: dict[str, list[float]] = {"drain": [], "enqueue": []}
    with house(settings.folder, deep + 2 * (hot + many + window)) as at:
        at.start()
        at.ready()
        enqueued = 0
        for depth in (shallow, deep):
            fill = max(FRAME_TASKS, depth + hot - (enqueued - len(at.notes)))
            at.enqueue(Wish(fill, enqueued))
            at.settle()
            at.drain(hot)
            at.settle()
            rates["drain"].append(at.drain(window))
            yield Finding(f"drain, {depth:,} pending", rates["drain"][-1], "tasks/s")
            at.settle()
            rates["enqueue"].append(at.enqueue(Wish(many, enqueued + fill)))
            enqueued += fill + many
            yield Finding(f"enqueue, {depth - window:,} pending", rates["enqueue"][-1], "tasks/s")
        yield from _flat("pending", rates, FLAT)
        bulk = len(at.notes)
        yield Finding("tasks out of their order", out_of_order(at.notes.numbers(), at.frames), "tasks", at_most=0)
        urgent = settings.sized(URGENT)
        at.settle()
        at.enqueue(Wish(urgent, 1 << 40, priority=0))
        at.kill()
        yield _restart(at, urgent)
        ran = at.notes.numbers(bulk)
        yield Finding("urgent tasks behind another", sum(number != 1 << 40 | place for place, number in enumerate(ran[:urgent])), "tasks", at_most=0)
        yield Finding("tasks lost or doubled", miscounted(at, enqueued + urgent), "tasks", at_most=0)
        yield _rss(at)


def delayed(how: str, rate_at_least: float) -> Part:
    """None of the filling comes due meanwhile; the windows that are measured do."""

    def part(settings: Settings) -> Iterator[Finding]:
        shallow, deep, window = (whole_frames(settings.sized(full)) for full in (SHALLOW, DEEP, WINDOW))
        rates: dict[str, list[float]] = {"enqueue": [], "drain": []}
        with house(settings.folder, 4 * window + deep) as at:
            at.start()
            at.ready()
            enqueued = early = late = 0
            for depth in (shallow, deep):
                fill = depth - window - (enqueued - len(at.notes))
                at.enqueue(Wish(fill, enqueued, due=how))
                at.settle()
                rates["enqueue"].append(at.enqueue(Wish(window, enqueued + fill, due=how)))
                enqueued += fill + window
                yield Finding(f"enqueue, {depth:,} {how}", rates["enqueue"][-1], "tasks/s")
                rate, unpunctual = _come_due(at, window, enqueued)
                enqueued, early = enqueued + window, early + unpunctual
                rates["drain"].append(rate)
                yield Finding(f"come due and run, {depth:,} {how}", rate, "tasks/s")
            yield from _flat(how, rates, rate_at_least)
            some = settings.sized(URGENT)
            due_ms = now_ms() + round(some / RATE_MIN + AHEAD_S * 1000)
            at.enqueue(Wish(some, enqueued, due="at", due_ms=due_ms))
            with at.worker():
                at.wait_for_notes(len(at.notes) + some)
            late = max(at.notes.times_ms(len(at.notes) - some)) - due_ms
            yield Finding(f"lateness of the last of {some:,} that are due at once", late, "ms", at_most=LATE_MS)
            enqueued += some
            at.enqueue(Wish(some, enqueued, due="at", due_ms=now_ms()))
            at.kill()
            yield _restart(at, some)
            yield Finding("tasks that ran too early", early, "tasks", at_most=0)
            yield Finding("tasks lost or doubled", miscounted(at, enqueued + some), "tasks", at_most=0)
            yield _rss(at)

    return part


def _come_due(at: House, tasks: int, first: int) -> tuple[float, int]:
    """These tasks come due at one moment, among all the others: how many ran in a second from then on, and how many ran before."""
    at.settle()
    due_ms = now_ms() + round((tasks / RATE_MIN + AHEAD_S) * 1000)
    at.enqueue(Wish(tasks, first, due="at", due_ms=due_ms))
    before = len(at.notes)
    with at.worker():
        at.wait_for_notes(before + tasks)
    times_ms = at.notes.times_ms(before)
    return tasks / max(1, times_ms[-1] - due_ms) * 1000, sum(each < due_ms for each in times_ms)


def _restart(at: House, tasks: int) -> Finding:
    """From the command to the first delivery, to a worker that tries to connect meanwhile; then these tasks run."""
    before = len(at.notes)
    with at.worker(early=True):
        began_s = time.monotonic()
        at.start()
        at.wait_for_notes(before + 1)
        seconds = time.monotonic() - began_s
        at.ready()
        at.wait_for_notes(before + tasks)
    return Finding("killed, started again: until the first delivery", seconds, "s", at_most=RESTART_S)


def _flat(what: str, rates: dict[str, list[float]], at_least: float) -> Iterator[Finding]:
    for name, (shallow, deep) in rates.items():
        yield Finding(f"{name}, {what}: deep / shallow", deep / shallow, "", at_least=at_least)


def miscounted(at: House, enqueued: int) -> int:
    """How many tasks ran twice, and by how many those that ran and those that are left are not those that were enqueued."""
    ran = at.notes.numbers()
    counts = at.counts()
    left = sum(int(counts[state]) for state in ("scheduled", "pending", "running", "retrying"))
    return len(ran) - len(set(ran)) + abs(enqueued - len(set(ran)) - left)


def _rss(at: House) -> Finding:
    return Finding("the broker's memory, at its peak", at.peak_bytes / MIB, "MiB", at_most=RSS_MIB)


def out_of_order(numbers: list[int], frames: list[int]) -> int:
    """How many tasks did not run right behind the one that was enqueued before them."""
    starts = {first: place for place, first in enumerate(frames)}
    places = [starts[number - number % FRAME_TASKS] * FRAME_TASKS + number % FRAME_TASKS for number in numbers]
    return sum(later != before + 1 for before, later in pairwise([-1, *places]))


def whole_frames(tasks: int) -> int:
    return max(1, round(tasks / FRAME_TASKS)) * FRAME_TASKS


def now_ms() -> int:
    return time.time_ns() // 1_000_000


PARTS: dict[str, Part] = {
    "pending": pending,
    "delayed_clustered": delayed("clustered", FLAT),
    "delayed_uniform": delayed("uniform", HALF),
}
