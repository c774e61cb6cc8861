"""What the figures of one run should be, in units of the same run: F, a bare fdatasync of 4 KiB, E, an echo over loopback, and the async rate.

A row is judged only if all of its figures were measured, by the medians of the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

Rounds = Mapping[str, Sequence[Mapping[str, float]]]


@attrs.frozen
class Run:
    """The medians of a run, and its units in ms."""

    found: Rounds
    f: float
    e: float

    def median(self, figure: str, unit: str) -> float:
        return statistics.median(values[unit] for values in self.found[figure])


@attrs.frozen
class Target:
    """`bound` is the most that may be, or with `least` the least that has to be.  `syncs`: it says something only if the broker syncs."""

    text: str
    figures: tuple[str, ...]
    value: Callable[[Run], float]
    bound: Callable[[Run], float]
    unit: str
    least: bool = False
    syncs: bool = True


@attrs.frozen
class Reached:
    text: str
    value: float
    bound: float
    unit: str
    met: bool


def _rate(figure: str, base: str) -> Callable[[Run], float]:
    return lambda run: run.median(figure, "tasks/s") / run.median(base, "tasks/s")


def _ms(figure: str, unit: str) -> Callable[[Run], float]:
    return lambda run: run.median(figure, unit)


TARGETS = (
    Target("end to end ≥ 0.7 × the bare data flow", ("end_to_end", "ceiling"), _rate("end_to_end", "ceiling"), lambda run: 0.7, "×", least=True),
    Target("sustained ≥ 0.7 × the bare data flow", ("sustained", "ceiling"), _rate("sustained", "ceiling"), lambda run: 0.7, "×", least=True),
    Target("in threads ≥ 0.3 × async", ("threads", "end_to_end"), _rate("threads", "end_to_end"), lambda run: 0.3, "×", True, False),
    Target("in processes ≥ 0.1 × async", ("processes", "end_to_end"), _rate("processes", "end_to_end"), lambda run: 0.1, "×", True, False),
    Target(
        "one by one, blocking ≤ 1.3 × (F + E)",
        ("one_by_one",),
        lambda run: 1000 / run.median("one_by_one", "tasks/s"),
        lambda run: 1.3 * (run.f + run.e),
        "ms",
    ),
    Target("enqueue → start, p50 ≤ F + 3 E", ("latency",), _ms("latency", "p50 ms"), lambda run: run.f + 3 * run.e, "ms"),
    Target("durability os, p50 ≤ 3 E", ("latency_os",), _ms("latency_os", "p50 ms"), lambda run: 3 * run.e, "ms", syncs=False),
    Target("at 10 % of end to end, p99 ≤ 10 F", ("latency_10",), _ms("latency_10", "p99 ms"), lambda run: 10 * run.f, "ms"),
    Target("at 70 % of end to end, p99 ≤ 50 F", ("latency_70",), _ms("latency_70", "p99 ms"), lambda run: 50 * run.f, "ms"),
)


def judge(found: Rounds, fdatasync_us: float, echo_us: float, durability: str) -> list[Reached]:
    run = Run(found, fdatasync_us / 1000, echo_us / 1000)
    rows = []
    for target in TARGETS:
        if all(found.get(name) for name in target.figures) and (durability == "fsync" or not target.syncs):
            value, bound = target.value(run), target.bound(run)
            rows.append(Reached(target.text, value, bound, target.unit, value >= bound if target.least else value <= bound))
    return rows


def table(rows: Sequence[Reached]) -> Iterator[str]:
    for row in rows:
        yield f"{row.text:42} {row.value:>10.2f} {row.unit:3} {'met' if row.met else 'NOT met':8} (bound {row.bound:.2f} {row.unit})"
