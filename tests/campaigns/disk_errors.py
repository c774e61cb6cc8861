"""Errors of the disk: the n-th sync, write or truncation of a broker under load fails, as strace makes it.

    .venv/bin/python tests/campaigns/disk_errors.py --runs 600

Whatever fails, the outcome is unknown, so the broker ends within a second and says nothing more.  Its client goes on with the next broker, by
the same ids: what was written and not acknowledged shows itself as `exists` then, and no task is made twice.  At the end the folder is opened
as it is, and as a power loss would leave it if what failed never reached the disk: nothing acknowledged may be lost in either.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import attrs
from programs import environment

from campaigns import ledger
from campaigns.crash_disk import CrashDisk
from campaigns.power_loss import FAST, STORM, lay_out
from campaigns.storm import NO_START
from campaigns.survivors import Findings, look, told
from campaigns.trace import CALLS, COMMAND, steps

# which calls fail, and how; with asyncio's own loop none of them is used for sockets
FAULTS = (
    ("fsync,fdatasync", "EIO"),
    ("fsync,fdatasync", "EIO"),
    ("writev", "EIO"),
    ("writev", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("pwrite64", "ENOSPC"),
    ("ftruncate", "EIO"),
    ("rename,unlink", "EIO"),
)
WHEN_MAX = 200
ENDS = ("1.5TERM", "1TERM")
IMAGES = 3
END_S_MAX = 1.0
TURN_S = 0.2  # what was durable before the error may still be said, in the turn that is under way
EXIT_CODES = {"70", "1"}  # it crashed; it cannot start
INJECTED = re.compile(r"^\d+ +(\d+\.\d+) .*\(INJECTED\)$")
EXITED = re.compile(r"^\d+ +(\d+\.\d+) \+\+\+ exited with (\d+) \+\+\+$")


@attrs.define
class Death:
    """A broker that met an error: when it did, when it ended and with what."""

    at_s: float
    ended_s: float = math.inf
    code: str = "none"


@attrs.define
class Outcome:
    fault: str
    runs: int = 1
    deaths: int = 0
    ghosts: int = 0
    tasks: int = 0
    lost: int = 0
    refused: int = 0
    wrong: int = 0
    late: int = 0
    slow: int = 0
    codes: int = 0
    end_ms_max: float = 0.0
    words: list[str] = attrs.field(factory=list)

    @property
    def bad(self) -> bool:
        return bool(self.lost or self.refused or self.wrong or self.late or self.slow or self.codes)

    def count(self, findings: Findings, where: str) -> None:
        self.tasks += findings.tasks
        self.lost += len(findings.lost)
        self.refused += bool(findings.refused)
        self.wrong += len(findings.wrong)
        self.words += [f"{where}: {words}" for words in (*[words for _, words in findings.lost], findings.refused, *findings.wrong) if words][:3]


def deaths(trace: Path) -> list[Death]:
    """The brokers that met an error.  There is one at a time, and a thread that ends by itself ends with 0."""
    found: list[Death] = []
    with trace.open() as lines:
        for line in lines:
            if (match := INJECTED.match(line)) and (not found or found[-1].ended_s < math.inf):
                found.append(Death(float(match[1])))
            elif (match := EXITED.match(line)) and found and found[-1].ended_s == math.inf and match[2] != "0":
                found[-1].ended_s, found[-1].code = float(match[1]), match[2]
    return found


def run(seed: int, ends: tuple[str, ...] = ENDS) -> Outcome:
    """One storm over two brokers with one kind of error."""
    rng = random.Random(seed)
    calls, error = FAULTS[seed % len(FAULTS)]
    when = round(WHEN_MAX ** rng.random()) if calls != "ftruncate" else 1 + seed // len(FAULTS) % 4
    outcome = Outcome(f"{calls} {error} at {when}")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=FAST) as fast:
        root, marks, trace = Path(folder) / "root", Path(folder) / "marks", Path(folder) / "trace"
        root.mkdir()
        storm = [sys.executable, str(STORM), str(root / "data"), str(marks), str(seed), "fsync", "0", *ends]
        fault = ["-e", f"trace={CALLS}", "-e", f"inject={calls}:error={error}:when={when}"]
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        ended = subprocess.run([*COMMAND, *fault, "-o", str(trace), *storm], timeout=120, env=environment(TASKQ_LOOP="asyncio"), check=False, **quiet)
        if ended.returncode not in (0, NO_START):
            outcome.words.append(f"the storm ended with {ended.returncode}")
            outcome.wrong += 1
        judge(outcome, root, marks, trace)
        examine(outcome, root, marks, trace, Path(fast), rng)
    return outcome


def judge(outcome: Outcome, root: Path, marks: Path, trace: Path) -> None:
    """How the brokers ended, and what they said after the error."""
    said_s = [step.operation.at_s for step in steps(trace, root, marks) if step.operation.kind == "mark" and not step.ends]
    for death in deaths(trace):
        outcome.deaths += 1
        outcome.end_ms_max = max(outcome.end_ms_max, 1000 * (death.ended_s - death.at_s))
        late = sum(death.at_s + TURN_S < at_s < death.ended_s for at_s in said_s)
        faults = {"late": late, "slow": death.ended_s - death.at_s > END_S_MAX, "codes": death.code not in EXIT_CODES}
        for name, count in faults.items():
            setattr(outcome, name, getattr(outcome, name) + count)
        if any(faults.values()):
            outcome.words.append(f"it ended with {death.code} after {death.ended_s - death.at_s:.2f} s, {late} words after the error")


def examine(outcome: Outcome, root: Path, marks: Path, trace: Path, fast: Path, rng: random.Random) -> None:
    """The folder as it is, and as a power loss would leave it."""
    disk, said = CrashDisk(str(root)), []
    for step in steps(trace, root, marks):
        (disk.end if step.ends else disk.begin)(step.operation)
        if step.operation.kind == "mark" and not step.ends:
            said += [(line, step.operation.at_s) for line in step.operation.data.decode().splitlines()]
    known = told(said)
    outcome.ghosts += sum(line.startswith("G") for line, _ in said)
    for number in range(IMAGES):
        image = fast / str(number)
        image.mkdir()
        lay_out(disk.image(rng), root, image)
        (image / "data").mkdir(exist_ok=True)
        outcome.count(asyncio.run(look(image / "data", known)), f"image {number}")
    outcome.count(asyncio.run(look(root / "data", known)), "as it is")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=600, help="storms (default 600)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--seed", type=int, help="this one only, not recorded")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run(options.seed)
        print(outcome)
        return outcome.bad
    had = ledger.sums("disk-errors").get("", Counter())["runs"]
    began_s, bad = time.monotonic(), False
    with ProcessPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(run, range(had, options.runs)):
            bad |= outcome.bad
            facts = {name: value for name, value in attrs.asdict(outcome).items() if isinstance(value, int)}
            ledger.record("disk-errors", **facts, fault=outcome.fault, end_ms=f"{outcome.end_ms_max:.0f}")
            print(
                f"{time.monotonic() - began_s:5.0f} s  {outcome.fault}: {facts}, ended after {outcome.end_ms_max:.0f} ms",
                *outcome.words,
                sep="\n  ",
                flush=True,
            )
    return bad


if __name__ == "__main__":
    sys.exit(main())
