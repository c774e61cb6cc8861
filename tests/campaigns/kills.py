"""The crash campaign: kill -9 of real brokers, workers and producers, and a check of everything that anybody was told.

    .venv/bin/python tests/campaigns/kills.py --kills 1000 --mode fsync,os,memory [--jobs 2] [--seed 1]     goes on where the ledger stops

A world that breaks a rule is kept, and its folder named; the exit code is 1.  What a world is: `kills_world.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import ledger
from campaigns.failing_broker import POINTS
from campaigns.kills_world import run_world

CYCLES = 25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1_000, help="for each mode (default 1000)")
    parser.add_argument("--mode", default="fsync,os,memory", help="some of fsync,os,memory (default all)")
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    parser.add_argument("--dry", action="store_true", help="neither read nor write the ledger")
    options = parser.parse_args()
    wrong, reached = 0, Counter[str]()
    with ProcessPoolExecutor(options.jobs) as pool:
        todo = [pool.submit(run_world, *world) for world in worlds(options)]
        for outcome in (future.result() for future in todo):
            print(outcome, flush=True)
            wrong += bool(outcome.problems)
            reached.update(outcome.steps)
            if not options.dry:
                ledger.record("kills", **outcome.facts())
    print("died at: " + ", ".join(f"{step} {count}" for step, count in sorted(reached.items())))
    print("never at: " + ", ".join(sorted(set(POINTS) - set(reached))))
    return bool(wrong)


def worlds(options: argparse.Namespace) -> list[tuple[str, int, int]]:
    """What is still to do, the modes in turn."""
    done = {} if options.dry else ledger.sums("kills", "mode")
    rest = {mode: options.kills - done.get(mode, Counter())["kills"] for mode in options.mode.split(",")}
    seed, todo = options.seed + sum(count["kills"] for count in done.values()), []
    while any(left > 0 for left in rest.values()):
        for mode in rest:
            if rest[mode] > 0:
                todo.append((mode, seed, min(CYCLES, rest[mode])))
                rest[mode] -= CYCLES
                seed += 1
    return todo


if __name__ == "__main__":
    sys.exit(main())
