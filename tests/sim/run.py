"""Run seeds of the simulation:  python tests/sim/run.py 17  ·  python tests/sim/run.py --seeds 0:2000 [--jobs 2]  ·  --trace shows every step.

A seed that breaks a rule is printed with the end of its trace; the exit code is 1.  The same seed always does the same.
`--until 10000` runs what the ledger (campaigns/simulation.jsonl) does not count yet for this code, from seed 0 on, and adds each piece to it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sim.history import Violation
from sim.world import Outcome, simulate

from campaigns import ledger

SHOWN_MAX = 5
PIECE_SEEDS = 500


def attempt(seed: int) -> Outcome | str:
    try:
        return simulate(seed)
    except Violation as violation:
        return str(violation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", help="one seed")
    parser.add_argument("--seeds", default="0:200", metavar="FROM:TO", help="a range of seeds, which is not recorded (default 0:200)")
    parser.add_argument("--until", type=int, metavar="TO", help="run what the ledger does not have of the seeds before this one, and record it")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--trace", action="store_true", help="print every step of the one seed")
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed, options.trace)
    if options.until is not None:
        return campaign(options.until, options.jobs)
    first, last = map(int, options.seeds.split(":"))
    return bool(sum(many(piece, options.jobs)["wrong"] for piece in pieces(first, last)))


def one(seed: int, trace: bool) -> int:
    try:
        print(simulate(seed, echo=trace))
    except Violation as violation:
        print(violation)
        return 1
    return 0


def pieces(first: int, last: int) -> Iterator[range]:
    for begin in range(first, last, PIECE_SEEDS):
        yield range(begin, min(last, begin + PIECE_SEEDS))


def missing(until: int) -> Iterator[range]:
    """What the ledger does not have."""
    begin = 0
    for line in sorted(ledger.lines("simulation"), key=lambda line: int(line["first"])):
        yield from pieces(begin, min(until, line["first"]))
        begin = line["last"] + 1
    yield from pieces(begin, until)


def campaign(until: int, jobs: int) -> int:
    """On committed code only; what is broken off is lost to the last piece, at most."""
    for piece in list(missing(until)):
        ledger.record("simulation", **many(piece, jobs), first=piece[0], last=piece[-1])
    totals = ledger.sums("simulation").get("", Counter())
    print(f"in the ledger for this code: {totals['seeds']:,} seeds, {totals['wrong']} wrong")
    return bool(totals["wrong"])


def many(seeds: range, jobs: int) -> Counter[str]:
    """Run them, say what happened; what is added up."""
    began_s, wrong, faults, sums = time.monotonic(), [], Counter[str](), Counter[str](seeds=len(seeds), wrong=0)
    with ProcessPoolExecutor(jobs, initializer=gc.freeze) as pool:
        for seed, outcome in zip(seeds, pool.map(attempt, seeds, chunksize=4), strict=True):
            if isinstance(outcome, str):
                wrong.append(seed)
                print(outcome if len(wrong) <= SHOWN_MAX else outcome.rpartition("\n")[2], flush=True)
                continue
            faults.update(outcome.faults)
            sums.update(records=outcome.facts, starts=outcome.starts, power_losses=outcome.power_losses, failpoints=outcome.failpoints)
    sums["wrong"] = len(wrong)
    print(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sums.items()) + f", {time.monotonic() - began_s:.0f} s")
    print("misfortunes: " + ", ".join(f"{name} {count:,}" for name, count in sorted(faults.items())), flush=True)
    if wrong:
        print(f"wrong: {' '.join(map(str, wrong))}")
    return sums


if __name__ == "__main__":
    sys.exit(main())
