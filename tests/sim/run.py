"""Run seeds of the simulation:  python tests/sim/run.py 17  ·  python tests/sim/run.py --seeds 0:2000 [--jobs 2]  ·  --trace shows every step.

A seed that breaks a rule is printed with the end of its trace; the exit code is 1.  The same seed always does the same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sim.history import Violation
from sim.world import Outcome, simulate

SHOWN_MAX = 5


def attempt(seed: int) -> Outcome | str:
    try:
        return simulate(seed)
    except Violation as violation:
        return str(violation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int, nargs="?", help="one seed")
    parser.add_argument("--seeds", default="0:200", metavar="FROM:TO", help="a range of seeds (default 0:200)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--trace", action="store_true", help="print every step of the one seed")
    options = parser.parse_args()
    if options.seed is not None:
        return one(options.seed, options.trace)
    first, last = map(int, options.seeds.split(":"))
    return many(range(first, last), options.jobs)


def one(seed: int, trace: bool) -> int:
    try:
        print(simulate(seed, echo=trace))
    except Violation as violation:
        print(violation)
        return 1
    return 0


def many(seeds: range, jobs: int) -> int:
    began_s, wrong, faults, facts, starts = time.monotonic(), [], Counter[str](), 0, 0
    with ProcessPoolExecutor(jobs) as pool:
        for seed, outcome in zip(seeds, pool.map(attempt, seeds, chunksize=4), strict=True):
            if isinstance(outcome, str):
                wrong.append(seed)
                if len(wrong) <= SHOWN_MAX:
                    print(outcome, flush=True)
                else:
                    print(outcome.rpartition("\n")[2], flush=True)
                continue
            faults.update(outcome.faults)
            facts, starts = facts + outcome.facts, starts + outcome.starts
    print(f"{len(seeds)} seeds, {len(wrong)} wrong, {facts:,} records, {starts:,} starts, {time.monotonic() - began_s:.0f} s")
    print("misfortunes: " + ", ".join(f"{name} {count:,}" for name, count in sorted(faults.items())))
    if wrong:
        print(f"wrong: {' '.join(map(str, wrong))}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
