"""An idle broker: the CPU that it takes and what it writes, alone and with 1,000 connected workers.

What a heartbeat costs is measured, not assumed: the same workers beat at the pace of the broker's default, and then so rarely (SILENT) that
hardly any of them does while it is watched.  The CPU of the two runs is a straight line over the number of beats; its slope is the price of a beat,
and what is left at no beats at all is what the broker takes beyond heartbeats.  (Workers that beat more often instead would not tell: the more come
at a time, the less each costs.)  The workers answer nothing else and hold no task.

    python bench/flat/idle.py [--scale 1.0] [--folder .]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

sys.path.append(str(Path(__file__).parents[1] / "load"))

from brokers import Broker, broker, workers
from finding import Finding, Settings
from machine import OtherLoad

WORKERS = 1_000
WATCH_S = 30.0
SETTLE_S = 3.0
SILENT = ("--heartbeat", "20m", "--lease", "1h")
CPU_PERCENT_MAX = 1.0
# a broker that nobody has connected to
ALONE_PERCENT_MAX = 0.5


@attrs.frozen
class Idle:
    """What a broker did in a time in which nobody asked it for anything: CPU in percent of one core, bytes written by the process, and the files of
    its data folder that were written to."""

    cpu_percent: float
    written_bytes: int
    changed: tuple[str, ...]
    beats_per_s: float = 0.0


def idle(settings: Settings) -> Iterator[Finding]:
    """The part, as run.py knows it."""
    seconds, count = max(2.0, WATCH_S * settings.scale), settings.sized(WORKERS)
    other = OtherLoad()
    with broker(settings.folder) as running:
        time.sleep(SETTLE_S)
        alone = watch(running, seconds)
    yield Finding("idle broker, nobody connected: CPU", alone.cpu_percent, "% of a core", at_most=ALONE_PERCENT_MAX)
    yield from _writes("idle broker, nobody connected", alone)
    beats: list[Idle] = []
    for flags in ((), SILENT):
        with broker(settings.folder, *flags) as running, workers(running, count) as crowd:
            time.sleep(SETTLE_S)
            before = crowd.beats()
            found = watch(running, seconds)
            beats.append(attrs.evolve(found, beats_per_s=(crowd.beats() - before) / seconds))
    usual, silent = beats
    beat_percent = (usual.cpu_percent - silent.cpu_percent) / (usual.beats_per_s - silent.beats_per_s)
    name = f"idle broker, {count:,} workers"
    yield Finding(f"{name}: CPU, heartbeats included ({usual.beats_per_s:.0f} a second)", usual.cpu_percent, "% of a core")
    yield Finding(f"{name}: CPU of a heartbeat", beat_percent * 10_000, "µs")
    yield Finding(f"{name}: CPU beyond heartbeats", usual.cpu_percent - beat_percent * usual.beats_per_s, "% of a core", at_most=CPU_PERCENT_MAX)
    yield from _writes(name, usual)
    yield Finding(f"{name}: CPU of other programs meanwhile", 100 * other.share(), "% of all cores")


def _writes(name: str, found: Idle) -> Iterator[Finding]:
    yield Finding(f"{name}: bytes written to disk", found.written_bytes, "bytes", at_most=0)
    yield Finding(f"{name}: files of the data folder that changed", len(found.changed), " ".join(("files", *found.changed)), at_most=0)


def watch(running: Broker, seconds: float) -> Idle:
    files, written, cpu_s, began_s = _files(running.data), _written_bytes(running.program.pid), _cpu_s(running.program.pid), time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began_s
    now = _files(running.data)
    changed = tuple(sorted(name for name in files.keys() | now.keys() if files.get(name) != now.get(name)))
    cpu_percent = 100 * (_cpu_s(running.program.pid) - cpu_s) / took_s
    return Idle(cpu_percent, _written_bytes(running.program.pid) - written, changed)


def _cpu_s(pid: int) -> float:
    """To the nanosecond, of all threads; what /proc/PID/stat says goes by steps of 10 ms."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def _written_bytes(pid: int) -> int:
    """What the process has given to storage, a cache of the kernel included, which sockets are not."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["write_bytes"])


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(path.relative_to(folder)): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (seen.st_mtime_ns, seen.st_size) for name, seen in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--folder", default=".")
    options = parser.parse_args()
    for found in idle(Settings(Path(os.path.abspath(options.folder)), options.scale)):
        bound = "" if found.at_most is None else f"   at most {found.at_most:g}: {'met' if found.is_met else 'NOT MET'}"
        print(f"{found.what:90} {found.value:12,.2f} {found.unit}{bound}", flush=True)


if __name__ == "__main__":
    main()
