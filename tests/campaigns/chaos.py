"""The chaos campaign: no worker that lives ever stands while tasks wait.  Real programs, with a network between them that fails.

    .venv/bin/python tests/campaigns/chaos.py --rounds 300 [--jobs 2] [--seed 1]     goes on where the ledger stops

kill -9, SIGSTOP, cuts, black holes of 1 to 30 s, lost and doubled frames, restarts of the broker and loops that are blocked, in all pools.  What a
world and a round are: `chaos_world.py`.  A world with a task that is stuck, lost or completed twice makes the exit code 1.
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
from campaigns.chaos_world import run_world

ROUNDS_OF_A_WORLD = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="in all (default 300)")
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    parser.add_argument("--dry", action="store_true", help="neither read nor write the ledger")
    options = parser.parse_args()
    done = 0 if options.dry else ledger.sums("chaos").get("", Counter())["rounds"]
    wrong, seed = 0, options.seed + done
    with ProcessPoolExecutor(options.jobs) as pool:
        begins = range(done, options.rounds, ROUNDS_OF_A_WORLD)
        todo = [pool.submit(run_world, seed + begin - done, min(ROUNDS_OF_A_WORLD, options.rounds - begin)) for begin in begins]
        for outcome in (future.result() for future in todo):
            print(outcome, flush=True)
            wrong += bool(outcome.problems)
            if not options.dry:
                ledger.record("chaos", **outcome.facts())
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
