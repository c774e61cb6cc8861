"""What is said of a run: medians with lowest … highest, how many times better taskq is, settings, troubles.  Values in, text out.

A ratio is made of two medians of this run at the same depth, and is turned so that more than 1 means that taskq is better.  A figure that was not
measured is an em dash and has its reason below the table; nothing is carried over from other runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from .contract import Peer
from .stages import Measured

BASE = "taskq"
NONE = "–"


class Figure(NamedTuple):
    title: str
    unit: str
    more_is_better: bool


FIGURES: dict[str, Figure] = {
    "one_by_one": Figure("enqueue one by one", "/s", True),
    "bulk": Figure("enqueue in bulk", "/s", True),
    "drain": Figure("drain", "/s", True),
    "end_to_end": Figure("end to end", "/s", True),
    "latency_p50": Figure("latency p50", "ms", False),
    "latency_p99": Figure("latency p99", "ms", False),
    "result_p50": Figure("result round trip p50", "ms", False),
    "memory": Figure("memory per pending task", "B", False),
    "disk": Figure("disk per pending task", "B", False),
    "worker_start": Figure("worker start", "ms", False),
}


class Spread(NamedTuple):
    """The median of some rounds, the lowest and the highest of them."""

    median: float
    low: float
    high: float
    rounds: int


@attrs.frozen
class Cell:
    """A peer at a depth: how many tasks it had, and its rounds."""

    tasks: int
    rounds: list[Measured] = attrs.field(factory=list)

    def spread(self, figure: str) -> Spread | None:
        values = [each.values[figure] for each in self.rounds if figure in each.values]
        return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None

    def troubles(self) -> list[str]:
        return [each.trouble for each in self.rounds if each.trouble]


Found = Mapping[str, Mapping[int, Cell]]  # name of the peer → depth → cell


def ratio(figure: str, taskq: Spread | None, peer: Spread | None) -> float | None:
    """How many times better taskq is; None where it cannot be said (nothing measured, or a growth too small to see)."""
    if taskq is None or peer is None or taskq.median <= 0 or peer.median <= 0:
        return None
    return taskq.median / peer.median if FIGURES[figure].more_is_better else peer.median / taskq.median


def number(value: float) -> str:
    """Three digits."""
    if abs(value) >= 1_000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value, -digits):,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(spread: Spread | None) -> str:
    if spread is None:
        return NONE
    return number(spread.median) + (f" ({number(spread.low)} … {number(spread.high)})" if spread.rounds > 1 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the parts of the report


def figures_of(found: Found, depth: int) -> list[str]:
    """The figures that somebody has at this depth; the same columns for all."""
    return [name for name in FIGURES if any(depth in cells and cells[depth].spread(name) for cells in found.values())]


def medians(peers: Sequence[Peer], found: Found, depth: int) -> str:
    names = figures_of(found, depth)
    head = ["peer", "durability at ack", "tasks", *(f"{FIGURES[name].title}, {FIGURES[name].unit}" for name in names)]
    rows = [_row(peer, found, depth, [shown(_spread(found, peer.name, depth, name)) for name in names]) for peer in peers]
    return table(head, [row for row in rows if row])


def ratios(peers: Sequence[Peer], found: Found, depth: int) -> str:
    names = figures_of(found, depth)
    head = ["peer", "durability at ack", "tasks", *(FIGURES[name].title for name in names)]
    rows = []
    for peer in peers:
        pairs = [ratio(name, _spread(found, BASE, depth, name), _spread(found, peer.name, depth, name)) for name in names]
        rows.append(_row(peer, found, depth, [NONE if each is None else f"{number(each)} ×" for each in pairs]))
    return table(head, [row for row in rows if row])


def _spread(found: Found, name: str, depth: int, figure: str) -> Spread | None:
    cell = found.get(name, {}).get(depth)
    return cell.spread(figure) if cell else None


def _row(peer: Peer, found: Found, depth: int, cells: list[str]) -> list[str]:
    """A peer that has no figure at all stands in the table too."""
    cell = found.get(peer.name, {}).get(depth)
    if cell is None:
        return [] if peer.tasks(depth) < depth else [peer.title, peer.durability, NONE, *(NONE for _ in cells)]
    return [peer.title, peer.durability, f"{cell.tasks:,}{'' if cell.tasks == depth else ' (fewer)'}", *cells]


def notes(peers: Sequence[Peer], found: Found, missing: Mapping[str, str], rounds: int) -> list[str]:
    """Everything that a reader of the tables must know about single peers."""
    lines = []
    for peer in peers:
        if peer.name in missing:
            lines.append(f"{peer.title}: did not start: {missing[peer.name]}")
        for depth, cell in found.get(peer.name, {}).items():
            lines += [f"{peer.title}, depth {depth:,}: {trouble}" for trouble in dict.fromkeys(cell.troubles())]
            if len(cell.rounds) < rounds:
                lines.append(f"{peer.title}, depth {depth:,}: {len(cell.rounds)} of {rounds} rounds were run, the rest was given up")
        if any(cell.tasks < depth for depth, cell in found.get(peer.name, {}).items()):
            lines.append(f"{peer.title}: {peer.tasks_max:,} tasks, since it does not finish more in minutes")
        lines += [f"{peer.title}: no {FIGURES_WITHOUT[name]}: {why}" for name, why in peer.without.items()]
    return lines


FIGURES_WITHOUT = {"result": "result round trip"}


def settings(peers: Sequence[Peer], versions: Mapping[str, str]) -> str:
    rows = []
    for peer in peers:
        kept = ", ".join(f"{name}={value}" for name, value in peer.settings.items()) or "defaults"
        rows.append([peer.title, versions.get(peer.name, NONE), kept])
    return table(["peer", "versions", "settings"], rows)


SEEN = (
    "Pairs are drain / end to end in tasks a second, means of two small runs (300 to 2,000 tasks) that took turns on a machine busy with other work, "
    "one after the other in the order of *tried*, unless a row says otherwise: they chose between settings, and say nothing else."
)


def tried(peers: Sequence[Peer]) -> str:
    rows = [[peer.title, each.setting, each.values, each.kept, each.seen] for peer in peers for each in peer.tried]
    return f"{SEEN}\n\n" + table(["peer", "setting", "tried", "kept", "seen"], rows)


def raw(peers: Sequence[Peer], found: Found, missing: Mapping[str, str], versions: Mapping[str, str]) -> dict[str, Any]:
    """Every round of every figure, for the JSON file."""
    return {
        peer.name: {
            "title": peer.title,
            "durability": peer.durability,
            "settings": dict(peer.settings),
            "versions": versions.get(peer.name, ""),
            "did_not_start": missing.get(peer.name),
            "depths": {
                str(depth): {"tasks": cell.tasks, "rounds": [{"values": each.values, "trouble": each.trouble or None} for each in cell.rounds]}
                for depth, cell in found.get(peer.name, {}).items()
            },
        }
        for peer in peers
    }
