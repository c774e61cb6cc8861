"""Power loss: record what the unmodified broker asks of its files under load, rebuild what a power loss at any moment may leave of them, and
open that as a start would.

    .venv/bin/python tests/campaigns/power_loss.py --images 10000        fsync: nothing may be lost; os: no more than the last second
    .venv/bin/python tests/campaigns/power_loss.py --lying-disk          the check of the check: a disk whose syncs do nothing must be found out

A run is a storm (storm.py) under strace, several brokers one after the other in one data folder; a cut is a moment of it, between two system
calls; each cut gives several images (crash_disk.py).  What `strace` shows is in one order, so whatever a client was told before the cut must
be in every image of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import attrs
from programs import IN_CODE, ON_FREE_PORTS, READY, environment

from campaigns import ledger
from campaigns.crash_disk import CrashDisk
from campaigns.survivors import Findings, Told, look, told
from campaigns.trace import CALLS, COMMAND, Step, steps
from taskq import AsyncClient
from taskq.errors import TaskqError

STORM = Path(__file__).with_name("storm.py")
ENDS = ("1.7KILL", "1.5TERM", "1.5KILL")
IMAGES_OF_RUN, IMAGES_OF_CUT = 1_000, 8
PROGRAM_EVERY = 80  # of these images the real program opens one, too
WINDOW_S = 1.5  # mode os: a sync each second, and the time that it takes
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
SHOWN_MAX = 5


@attrs.define
class Recording:
    """A storm as its steps; `root` is the folder that its data folder was in."""

    root: Path
    steps: list[Step]


@attrs.frozen
class Image:
    """What may be left at a cut: the number of steps before it, its time, what the broker had said, and the files."""

    cut: int
    cut_s: float
    known: dict[bytes, Told]
    files: dict[str, bytes | None]


@attrs.define
class Outcome:
    """What the images of one run came to; `age_ms_max`: how long before the cut the oldest of what was lost had been said."""

    mode: str
    cuts: int = 0
    images: int = 0
    tasks: int = 0
    lost: int = 0
    late: int = 0
    refused: int = 0
    wrong: int = 0
    age_ms_max: float = 0.0
    words: list[str] = attrs.field(factory=list)

    @property
    def bad(self) -> bool:
        return bool(self.late or self.refused or self.wrong)

    def count(self, findings: Findings, cut_s: float, where: str) -> None:
        self.images += 1
        self.tasks += findings.tasks
        self.lost += len(findings.lost)
        ages_s = [cut_s - at_s for at_s, _ in findings.lost]
        self.age_ms_max = max([self.age_ms_max, *(1000 * age_s for age_s in ages_s)])
        allowed_s = WINDOW_S if self.mode == "os" else 0.0
        late = [words for age_s, (_, words) in zip(ages_s, findings.lost, strict=True) if age_s >= allowed_s]
        self.late += len(late)
        self.refused += bool(findings.refused)
        self.wrong += len(findings.wrong)
        for words in (*late, findings.refused, *findings.wrong):
            if words and len(self.words) < SHOWN_MAX:
                self.words.append(f"{where}: {words}")


def record(folder: Path, seed: int, mode: str, ends: tuple[str, ...] = ENDS) -> Recording:
    """Let a storm pass over brokers in `folder`/root/data."""
    root, marks, trace = folder / "root", folder / "marks", folder / "trace"
    root.mkdir()
    storm = [sys.executable, str(STORM), str(root / "data"), str(marks), str(seed), mode, "0", *ends]
    command = [*COMMAND, "-e", f"trace={CALLS}", "-o", str(trace), *storm]
    subprocess.run(command, check=True, timeout=120, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)
    return Recording(root, steps(trace, root, marks))


def cut_points(recording: Recording, cuts: int, rng: random.Random) -> list[int]:
    """Moments of the run, by the number of steps before them, after the first word of the broker."""
    first = next(index for index, step in enumerate(recording.steps) if step.operation.kind == "mark")
    return sorted(rng.sample(range(first, len(recording.steps)), cuts))


def images(recording: Recording, cuts: int, of_cut: int, rng: random.Random, *, syncs: bool) -> Iterator[Image]:
    """So many images of so many cuts, in their order."""
    disk, said, done = CrashDisk(str(recording.root), syncs=syncs), [], 0
    for cut in cut_points(recording, cuts, rng):
        for step in recording.steps[done:cut]:
            (disk.end if step.ends else disk.begin)(step.operation)
            if step.operation.kind == "mark" and not step.ends:
                said += [(line, step.operation.at_s) for line in step.operation.data.decode().splitlines()]
        done, known = cut, told(said)
        for _ in range(of_cut):
            yield Image(cut, recording.steps[cut - 1].operation.at_s, known, disk.image(rng))


def lay_out(image: dict[str, bytes | None], root: Path, folder: Path) -> None:
    """Write the files of an image into an empty folder."""
    for path in sorted(image):
        place = folder / Path(path).relative_to(root)
        if (data := image[path]) is None:
            place.mkdir()
        else:
            place.write_bytes(data)


def run(seed: int, mode: str, images_wanted: int = IMAGES_OF_RUN, *, syncs: bool = True) -> Outcome:
    """Record one storm and look at its images."""
    with tempfile.TemporaryDirectory() as folder:
        return examine(record(Path(folder), seed, mode), seed, mode, images_wanted, syncs=syncs)


def examine(recording: Recording, seed: int, mode: str, images_wanted: int, *, syncs: bool = True) -> Outcome:
    outcome, rng = Outcome(mode, cuts=max(1, images_wanted // IMAGES_OF_CUT)), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=FAST) as fast, asyncio.Runner() as runner:
        for number, image in enumerate(images(recording, outcome.cuts, IMAGES_OF_CUT, rng, syncs=syncs)):
            root = Path(fast) / "image"
            root.mkdir()
            lay_out(image.files, recording.root, root)
            (root / "data").mkdir(exist_ok=True)
            findings = runner.run(look(root / "data", image.known))
            if number % PROGRAM_EVERY == PROGRAM_EVERY - 1 and not findings.refused:
                findings.lost += runner.run(asked(root / "data", image.known))
            outcome.count(findings, image.cut_s, f"seed {seed}, image {number} at step {image.cut}")
            shutil.rmtree(root)
    return outcome


async def asked(data: Path, known: dict[bytes, Told]) -> list[tuple[float, str]]:
    """What the real program says about a folder that was recovered: each task that cannot be looked up."""
    command = [sys.executable, "-c", IN_CODE.format("broker"), *ON_FREE_PORTS, "--data", str(data), "--log-level", "error"]
    process = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=subprocess.PIPE, start_new_session=True)
    try:
        ready = re.match(READY, (await process.stdout.readline()).decode())
        if ready is None:
            return [(0.0, f"the broker does not start: exit code {await process.wait()}")]
        async with AsyncClient(ready["tcp"]) as client:
            ids = random.sample(list(known), min(len(known), 100))
            found = await asyncio.gather(*(client.get(task_id.hex()) for task_id in ids), return_exceptions=True)
        return [
            (min(known[task_id].said.values()), f"task {known[task_id].number}: {info}")
            for task_id, info in zip(ids, found, strict=True)
            if isinstance(info, TaskqError)
        ]
    finally:
        process.kill()
        await process.wait()


def campaign(mode: str, images_wanted: int, jobs: int, *, syncs: bool) -> bool:
    """As many runs as it takes, whatever the ledger has already."""
    had = ledger.sums("power-loss", "mode").get(mode, Counter())
    runs = range(had["runs"], had["runs"] + -(-max(0, images_wanted - had["images"]) // IMAGES_OF_RUN))
    began_s, good = time.monotonic(), True
    with ProcessPoolExecutor(jobs) as pool:
        for outcome in pool.map(run, runs, [mode] * len(runs)):
            good &= not outcome.bad
            facts = {name: value for name, value in attrs.asdict(outcome).items() if name not in ("words", "age_ms_max")}
            ledger.record("power-loss", **facts, runs=1, age_ms_max=f"{outcome.age_ms_max:.0f}")
            print(
                f"{mode}: {facts}, oldest loss {outcome.age_ms_max:.0f} ms, {time.monotonic() - began_s:.0f} s",
                *outcome.words,
                sep="\n  ",
                flush=True,
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="images in mode fsync; a quarter as many in mode os (default 10000)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--seed", type=int, help="one run of 200 images, not recorded")
    parser.add_argument("--mode", default="fsync", choices=("fsync", "os"), help="of that one run")
    parser.add_argument("--lying-disk", action="store_true", help="one run on a disk whose syncs do nothing")
    options = parser.parse_args()
    if options.seed is not None or options.lying_disk:
        outcome = run(options.seed or 0, options.mode, 200, syncs=not options.lying_disk)
        print(outcome)
        return outcome.bad
    good = campaign("fsync", options.images, options.jobs, syncs=True)
    return not (campaign("os", options.images // 4, options.jobs, syncs=True) and good)


if __name__ == "__main__":
    sys.exit(main())
