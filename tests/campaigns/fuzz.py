"""Foreign bytes for the parsers, guided by coverage:  python tests/campaigns/fuzz.py --inputs 10000000 [--target http] [--seconds 60]

Each target (see targets.py) gets its share of the inputs, in pieces, by atheris, which keeps the inputs that reach new code.  A piece ends with
its finds being run again without atheris: no input may take longer than 10 ms, and the process may not grow.  What was run is added to the ledger
(campaigns/fuzz.jsonl), and goes on from there.  An input that breaks a rule is kept in campaigns/fuzz-finds/ and ends the run.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaigns import ledger

SHARES = {"frames": 0.6, "messages": 0.05, "http": 0.35}
PIECE_INPUTS = 500_000
INPUT_BYTES_MAX = 1_024
SLOW_S, SLOW_S_WATCHED = 0.01, 0.1
GROWTH_KIB_MAX = 2_048
REPLAYS = 10
FINDS = ledger.FOLDER / "fuzz-finds"
WATCHED = {"frames": ["taskq.protocol"], "messages": ["taskq.core"], "http": ["taskq.gateway"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000_000, help="in all, with those in the ledger (default 10000000)")
    parser.add_argument("--target", choices=SHARES, help="this one alone gets all of them")
    parser.add_argument("--dry", action="store_true", help="count nothing, record nothing: for code that is not committed")
    parser.add_argument("--child", nargs=3, metavar=("TARGET", "INPUTS", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--again", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return guided(options.child[0], int(options.child[1]), Path(options.child[2]))
    if options.again:
        print(replay(options.again[0], Path(options.again[1])))
        return 0
    shares = {options.target: 1.0} if options.target else SHARES
    return max(campaign(target, round(options.inputs * share), options.dry) for target, share in shares.items())


def campaign(target: str, inputs: int, dry: bool) -> int:
    done = 0 if dry else ledger.sums("fuzz", "target").get(target, {"inputs": 0})["inputs"]
    FINDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        while done < inputs:
            piece, began_s = min(PIECE_INPUTS, inputs - done), time.monotonic()
            run = subprocess.run([sys.executable, __file__, "--child", target, str(piece), name], capture_output=True, text=True, check=False)
            took_s, crashes = time.monotonic() - began_s, int(run.returncode != 0)
            growth_kib = int(subprocess.run([sys.executable, __file__, "--again", target, name], stdout=subprocess.PIPE, check=True).stdout)
            done += piece
            print(f"{target}: {piece:,} inputs in {took_s:.0f} s, {crashes} crashes, {growth_kib} KiB of growth", flush=True)
            if not dry:
                ledger.record("fuzz", target=target, inputs=piece, crashes=crashes, growth_kib=growth_kib, seconds=round(took_s))
            if crashes or growth_kib > GROWTH_KIB_MAX:
                print(run.stdout[-2_000:], run.stderr[-6_000:], sep="\n")
                return 1
    return 0


def guided(target: str, inputs: int, folder: Path) -> int:
    """In a process of its own: does not come back."""
    import atheris

    with atheris.instrument_imports(include=WATCHED[target]):
        from campaigns import targets
    for at, seed in enumerate(targets.SEEDS[target]()):
        (folder / f"seed-{at}").write_bytes(seed[:INPUT_BYTES_MAX])
    check = timed(targets.TARGETS[target], SLOW_S_WATCHED)
    options = [f"-runs={inputs}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={FINDS}/{target}-", str(folder)], check)
    atheris.Fuzz()
    return 0


def timed(target: Callable[[bytes], None], slow_s: float) -> Callable[[bytes], None]:
    """The same, and an input that is slow again and again breaks a rule too."""

    def check(data: bytes) -> None:
        began_s = time.perf_counter()
        target(data)
        if time.perf_counter() - began_s > slow_s:
            assert min(_cpu_s(target, data) for _ in range(3)) < slow_s, f"an input of {len(data)} bytes takes longer than {slow_s} s"

    return check


def _cpu_s(target: Callable[[bytes], None], data: bytes) -> float:
    began_s = time.thread_time()
    target(data)
    return time.thread_time() - began_s


def replay(target: str, folder: Path) -> int:
    """Run all inputs of a folder again and again; by how many KiB the process grows after the first time."""
    from campaigns import targets

    check = timed(targets.TARGETS[target], SLOW_S)
    inputs = [path.read_bytes() for path in sorted(folder.iterdir())]
    return growth_kib(lambda: [check(data) for data in inputs], REPLAYS)


def growth_kib(work: Callable[[], object], times: int) -> int:
    """How much the memory of this process grows while this is done so many times, after two times to warm up."""
    work(), work()
    gc.collect()
    before = rss_kib()
    for _ in range(times):
        work()
    gc.collect()
    return max(0, rss_kib() - before)


def rss_kib(pid: int | str = "self") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


if __name__ == "__main__":
    sys.exit(main())
