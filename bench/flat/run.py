"""The flatness bench: what must not grow with what waits, beside the bounds that it has to keep.

    python bench/flat/run.py [--only NAME,NAME] [--scale 1.0] [--folder .] [--json FILE]

Each part measures real brokers, producers and workers in processes of their own, with default settings, and yields figures one by one.  Smaller
than `--scale 1` the bounds are still shown, but it is the full size that they are meant for.  Exit code 1 if one is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

sys.path.append(str(Path(__file__).parents[1] / "load"))

import backlog
import idle
import machine
import payloads
import replay
import wide
from finding import Finding, Part, Settings

PARTS: dict[str, Part] = {
    **backlog.PARTS,
    "replay": replay.replay,
    "payloads": payloads.payloads,
    "queues": wide.queues,
    "workers": wide.workers_part,
    "both": wide.both,
    "idle": idle.idle,
}


def bound(finding: Finding) -> str:
    for limit, word in ((finding.at_most, "at most"), (finding.at_least, "at least")):
        if limit is not None:
            return f"{word} {number(limit)}: {'met' if finding.is_met else 'NOT met'}"
    return ""


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def run(settings: Settings, names: list[str]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for name in names:
        print(f"{name}:", flush=True)
        found[name] = []
        for finding in PARTS[name](settings):
            found[name].append(finding)
            print(f"  {finding.what:58} {number(finding.value):>10} {finding.unit:8} {bound(finding)}".rstrip(), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=f"Parts: {', '.join(PARTS)}.")
    parser.add_argument("--only", default=",".join(PARTS), metavar="NAME,NAME", help="these parts")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; 1 is the size that the bounds are meant for")
    parser.add_argument("--folder", default=".", help="on the disk to measure; temporary folders in it are removed afterwards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to this file as well")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"--only: no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if options.scale <= 0:
        parser.error("--scale: must be more than 0")
    with tempfile.TemporaryDirectory(dir=os.path.abspath(options.folder), prefix="taskq-bench-") as folder:
        return report(Settings(Path(folder), options.scale), [name for name in PARTS if name in options.only.split(",")], options.json)


def report(settings: Settings, names: list[str], file: Path | None) -> int:
    about: dict[str, Any] = {**machine.describe(str(settings.folder)), "scale": settings.scale}
    print(" ".join(f"{name}={value}" for name, value in about.items()), flush=True)
    others = machine.OtherLoad()
    limits = machine.limits_us(str(settings.folder))
    for name, us in limits.items():
        print(f"  {name:58} {number(us):>10} µs", flush=True)
    found = run(settings, names)
    share = others.share()
    if settings.scale < 1:
        print(f"  at {settings.scale:g} of the full size: the bounds are meant for all of it")
    if share > machine.BUSY:
        print(f"  other programs used {share:.0%} of the CPUs meanwhile: trust none of this, only the ratios a little")
    if file is not None:
        rows = {name: [{**attrs.asdict(each), "is_met": each.is_met} for each in findings] for name, findings in found.items()}
        file.write_text(json.dumps({"about": about, "limits_us": limits, "found": rows, "other_cpu_share": share}, indent=2) + "\n")
    return int(not all(finding.is_met for findings in found.values() for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
