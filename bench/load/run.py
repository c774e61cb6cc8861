"""The load bench: broker, worker and producer as separate processes, beside the bare data flow and the limits of the machine.

    python bench/load/run.py [--tasks 100000] [--rounds 3] [--payload-bytes 150] [--durability fsync] [--only NAME,NAME] [--json FILE]

All figures take their turn in each round, the bare data flow next to the real one; the median of the rounds counts.  Only the ratios of one run
mean something beyond the machine it ran on, and only if nothing else was running: the last lines say so if something was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import machine
import targets
from figures import FIGURES, Settings, Values

from taskq.config import BrokerConfig

DURABILITIES = ("fsync", "os", "memory")
LIMITS: dict[str, Callable[[Settings], float]] = {
    "fdatasync of 4 KiB": lambda settings: machine.fdatasync_us(settings.folder),
    "loopback echo": lambda settings: machine.echo_us(),
}
Rounds = dict[str, list[Values]]
Pairs = dict[str, list[float]]


def run(settings: Settings, names: list[str], rounds: int) -> Rounds:
    """Each round begins with the limits of the machine, since they change with whatever else is on it."""
    found: Rounds = {name: [] for name in (*LIMITS, *names)}
    for number in range(1, rounds + 1):
        for name, limit in LIMITS.items():
            found[name].append({"µs": limit(settings)})
        for name in names:
            progress(f"round {number} of {rounds}: {name}")
            found[name].append(FIGURES[name].measure(settings))
            if name == "end_to_end":
                settings = attrs.evolve(settings, rate=found[name][-1]["tasks/s"])
    progress("")
    return found


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def ratios(found: Rounds) -> Pairs:
    """End to end against the bare data flow, round by round: by tasks a second, and by the CPU time that all programs together took for a task."""
    pairs = list(zip(found.get("end_to_end", ()), found.get("ceiling", ()), strict=False))
    return {
        "tasks/s": [real["tasks/s"] / bare["tasks/s"] for real, bare in pairs],
        "CPU time": [cpu_us(bare) / cpu_us(real) for real, bare in pairs if cpu_us(real)],
    }


def cpu_us(values: Values) -> float:
    return sum(us for unit, us in values.items() if unit.endswith("CPU µs/task"))


def describe(settings: Settings, rounds: int) -> dict[str, Any]:
    """What a reader has to know to compare."""
    return {
        **machine.describe(settings.folder),
        "durability": settings.durability,
        "shards": settings.shards,
        "tasks": settings.tasks,
        "payload_bytes": settings.payload_bytes,
        "pending": settings.pending,
        "rounds": rounds,
    }


def show(found: Rounds) -> None:
    for name, values in found.items():
        title = FIGURES[name].title if name in FIGURES else name
        for unit in values[0]:
            rows = [each[unit] for each in values]
            print(f"  {title:42} {number(statistics.median(rows)):>10} {unit:22} {spread(rows)}".rstrip())
            title = ""


def spread(rows: list[float]) -> str:
    return f"({number(min(rows))} … {number(max(rows))})" if len(rows) > 1 else ""


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def show_ratios(pairs: Pairs, durability: str) -> None:
    for what, rows in pairs.items():
        if rows:
            title = f"end to end / the bare data flow, by {what}"
            print(f"  {title:52} {statistics.median(rows):.2f}   by round: {', '.join(f'{each:.2f}' for each in rows)}")
    if pairs["tasks/s"] and durability != "fsync":
        print(f"  the bare data flow syncs, durability={durability} does not: compare with care")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=f"Figures: {', '.join(FIGURES)}.")
    parser.add_argument("--tasks", type=int, default=100_000, help="of the fast figures; slow ones take a part of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--payload-bytes", type=int, default=150)
    parser.add_argument("--pending", type=int, default=200_000, help="tasks of the memory figure")
    parser.add_argument("--durability", choices=DURABILITIES, default=BrokerConfig().durability)
    parser.add_argument("--shards", type=int, default=BrokerConfig().shards)
    parser.add_argument("--only", default=",".join(FIGURES), metavar="NAME,NAME", help="these figures")
    parser.add_argument("--folder", default=".", help="on the disk to measure; temporary folders in it are removed afterwards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to this file as well")
    options = parser.parse_args()
    names = [name for name in FIGURES if name in options.only.split(",")]
    if unknown := set(options.only.split(",")) - set(FIGURES):
        parser.error(f"--only: no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(dir=os.path.abspath(options.folder), prefix="taskq-bench-") as folder:
        settings = Settings(options.tasks, options.payload_bytes, options.durability, options.shards, options.pending, folder)
        report(settings, names, options.rounds, options.json)


def report(settings: Settings, names: list[str], rounds: int, file: Path | None) -> None:
    about = describe(settings, rounds)
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    others = machine.OtherLoad()
    found = run(settings, names, rounds)
    share = others.share()
    limits = {name: statistics.median(each["µs"] for each in found[name]) for name in LIMITS}
    show(found)
    show_ratios(ratios(found), settings.durability)
    reached = targets.judge(found, limits["fdatasync of 4 KiB"], limits["loopback echo"], settings.durability)
    for line in targets.table(reached):
        print(f"  {line}")
    if share > machine.BUSY:
        print(f"  other programs used {share:.0%} of the CPUs meanwhile: trust none of this, only the ratios a little")
    if file is not None:
        figures = {name: {unit: [each[unit] for each in values] for unit in values[0]} for name, values in found.items() if name in FIGURES}
        found_all = {"about": about, "limits_us": limits, "figures": figures, "ratios": ratios(found), "other_cpu_share": share}
        found_all["targets"] = [attrs.asdict(each) for each in reached]
        file.write_text(json.dumps(found_all, indent=2) + "\n")


if __name__ == "__main__":
    main()
