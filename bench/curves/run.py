"""Rate and latency against one thing that grows: the payload, the workers, the queues, the backlog.

    python bench/curves/run.py [--only NAME,NAME] [--scale 1.0] [--rounds 3] [--folder .] [--plot FILE] [--json FILE]

Each point is the median of the rounds.  Smaller than `--scale 1` there are fewer tasks at each point, and shallower backlogs; the payloads, workers
and queues are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

sys.path += [str(Path(__file__).parents[1] / "flat"), str(Path(__file__).parents[1] / "load")]

import machine
from curves import CURVES, Point
from draw import draw
from finding import Settings

ROOT = Path(__file__).parents[2]
PLOT = ROOT / "docs" / "images" / "curves.svg"


def median_of(points: Sequence[Point]) -> Point:
    """Of one x, measured several times."""
    rates = tuple(map(statistics.median, zip(*(point.tasks_per_s for point in points), strict=True)))
    return Point(points[0].x, rates, statistics.median(point.p50_ms for point in points), statistics.median(point.p99_ms for point in points))


def measure(settings: Settings, name: str, rounds: int) -> list[Point]:
    found: list[list[Point]] = []
    for number in range(1, rounds + 1):
        found.append([])
        for point in CURVES[name].points(settings):
            found[-1].append(point)
            print(f"round {number}, {line(name, point)}", file=sys.stderr, flush=True)
    return [median_of(points) for points in zip(*found, strict=True)]


def line(name: str, point: Point) -> str:
    curve = CURVES[name]
    rates = ", ".join(f"{rate:,.0f}/s {what}" for rate, what in zip(point.tasks_per_s, curve.rates, strict=True))
    return f"{name}: {point.x:,}: {rates}; {curve.latency}: p50 {point.p50_ms:.2f} ms, p99 {point.p99_ms:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=f"Curves: {', '.join(CURVES)}.")
    parser.add_argument("--only", default=",".join(CURVES), metavar="NAME,NAME", help="these curves")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".", help="on the disk to measure; temporary folders in it are removed afterwards")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"{PLOT.relative_to(ROOT)} if all curves are measured at their full size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all points to this file as well")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(CURVES):
        parser.error(f"--only: no such curve: {', '.join(sorted(unknown))}; there are {', '.join(CURVES)}")
    if options.scale <= 0 or options.rounds < 1:
        parser.error("--scale: must be more than 0, and --rounds at least 1")
    names = [name for name in CURVES if name in options.only.split(",")]
    if names == [*CURVES] and options.scale == 1:
        options.plot = options.plot or PLOT
    with tempfile.TemporaryDirectory(dir=os.path.abspath(options.folder), prefix="taskq-bench-") as folder:
        report(Settings(Path(folder), options.scale), names, options.rounds, options.plot, options.json)


def report(settings: Settings, names: list[str], rounds: int, plot: Path | None, file: Path | None) -> None:
    about = {**machine.describe(str(settings.folder)), "scale": settings.scale, "rounds": rounds}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    others = machine.OtherLoad()
    found = {name: measure(settings, name, rounds) for name in names}
    for name, points in found.items():
        for point in points:
            print(line(name, point))
    if (share := others.share()) > machine.BUSY:
        print(f"other programs used {share:.0%} of the CPUs meanwhile: trust none of this")
    if file is not None:
        rows = {name: [attrs.asdict(point) for point in points] for name, points in found.items()}
        file.write_text(json.dumps({"about": about, "found": rows, "other_cpu_share": share}, indent=2) + "\n")
    if plot is not None:
        draw(found, plot)
        print(f"wrote {plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
