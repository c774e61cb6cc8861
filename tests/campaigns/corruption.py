"""Corruption: data folders of real brokers with one thing wrong in them, opened as a start would.

    .venv/bin/python tests/campaigns/corruption.py --mutations 3000

Each mutation is either *repaired* (a tail that nothing vouches for is cut: what is left is the same, without the newest batches), *refused* (a
typed error that names the file, and the files stay as they were), or *harmless* (the same tasks are read back).  Anything else is *wrong*.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import attrs
from programs import environment

from campaigns import ledger
from campaigns.power_loss import FAST, STORM
from campaigns.survivors import ID, PAYLOAD, RESULT, recovered
from taskq.errors import StartError
from taskq.storage.base import Row

PAGE_BYTES = 4096
PIECE = 250  # mutations in one line of the ledger
SHOWN_MAX = 5
# how the folders were made: the ends of the brokers before the copy (and before the older copy of which single files are taken)
MAKINGS: dict[str, tuple[str, ...]] = {
    "clean-stop": ("1TERM", "1TERM"),
    "kill": ("1TERM", "2.5KILL"),
    "two-kills": ("1.2KILL", "1.3KILL"),
}
NAMED = re.compile(r"/\S+")


@attrs.frozen
class Folder:
    """A data folder as it was made, with an older copy of it, and the tasks that are in it."""

    making: str
    path: Path
    older: Path
    rows: dict[bytes, Row]


@attrs.define
class Verdict:
    """What became of one mutation."""

    what: str
    kind: str
    words: str = ""


# ---- making folders ---------------------------------------------------------------------------------------------------------------------


def make(home: Path, making: str, seed: int) -> Folder:
    """A storm over an empty folder, a copy, another storm over the same folder."""
    data, older, path = home / "data", home / "older", home / "made"
    for number, (end, copy) in enumerate(zip(MAKINGS[making], (older, path), strict=True)):
        storm = [sys.executable, str(STORM), str(data), str(home / f"marks{number}"), str(seed), "fsync", str(number * 1_000_000), end]
        subprocess.run(storm, check=True, timeout=60, env=environment(), stdin=subprocess.DEVNULL, start_new_session=True)
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*-shm"))
    witness = home / "whole"
    shutil.copytree(path, witness)
    return Folder(making, path, older, by_id(asyncio.run(recovered(witness))))


def by_id(rows: list[Row]) -> dict[bytes, Row]:
    return {row[ID]: row for row in rows}


# ---- mutations ----------------------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> list[Path]:
    """The files that matter; the lock means nothing, and a session's key loses sessions only."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.name not in ("lock", "secret.key"))


def newest_segment(folder: Path) -> Path | None:
    return max((folder / "journal").glob("*.log"), default=None)


def cut_tail(folder: Path, older: Path, rng: random.Random) -> str:
    path = newest_segment(folder) or rng.choice(files(folder))
    size = rng.randrange(path.stat().st_size)
    os.truncate(path, size)
    return f"{path.name} cut to {size}"


def any_file(folder: Path, rng: random.Random) -> Path:
    """The larger the likelier, as it is with bits; but sometimes any."""
    paths = files(folder)
    return rng.choice(paths) if rng.random() < 0.2 else rng.choices(paths, [path.stat().st_size for path in paths])[0]


def cut_any(folder: Path, older: Path, rng: random.Random) -> str:
    path = any_file(folder, rng)
    size = rng.randrange(path.stat().st_size) // rng.choice((1, PAGE_BYTES)) or 0
    os.truncate(path, size)
    return f"{path.name} cut to {size}"


def flip(folder: Path, older: Path, rng: random.Random) -> str:
    path = any_file(folder, rng)
    at, bit = rng.randrange(path.stat().st_size), rng.randrange(8)
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} at {at} of {path.name}"


def flip_head(folder: Path, older: Path, rng: random.Random) -> str:
    """In the first bytes of a file or of a page, where most of the meaning is."""
    path = any_file(folder, rng)
    at = min(path.stat().st_size - 1, rng.randrange(-(-path.stat().st_size // PAGE_BYTES)) * PAGE_BYTES + rng.randrange(100))
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"a bit at {at} of {path.name}"


def swap_pages(folder: Path, older: Path, rng: random.Random) -> str:
    path = rng.choice(list(folder.glob("store.sqlite*")))
    data = bytearray(path.read_bytes())
    one, two = (rng.randrange(max(1, len(data) // PAGE_BYTES)) * PAGE_BYTES for _ in range(2))
    data[one : one + PAGE_BYTES], data[two : two + PAGE_BYTES] = data[two : two + PAGE_BYTES], data[one : one + PAGE_BYTES]
    path.write_bytes(data)
    return f"pages at {one} and {two} of {path.name} swapped"


def zero(folder: Path, older: Path, rng: random.Random) -> str:
    path = any_file(folder, rng)
    data = bytearray(path.read_bytes())
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice((1, 512, PAGE_BYTES, len(data))))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    return f"zeros from {begin} to {end} of {path.name}"


def zero_file(folder: Path, older: Path, rng: random.Random) -> str:
    path = rng.choice(files(folder))
    path.write_bytes(bytes(path.stat().st_size))
    return f"{path.name} all zeros"


def delete(folder: Path, older: Path, rng: random.Random) -> str:
    path = rng.choice(files(folder))
    path.unlink()
    return f"{path.name} deleted"


def delete_folder(folder: Path, older: Path, rng: random.Random) -> str:
    shutil.rmtree(folder / "journal")
    return "the folder of the journal deleted"


def older_file(folder: Path, older: Path, rng: random.Random) -> str:
    path = rng.choice(files(older))
    shutil.copy(path, folder / path.relative_to(older))
    return f"an older {path.name}"


def older_page(folder: Path, older: Path, rng: random.Random) -> str:
    """A write that the disk lost."""
    data, old = bytearray((folder / "store.sqlite").read_bytes()), (older / "store.sqlite").read_bytes()
    at = rng.randrange(min(len(data), len(old)) // PAGE_BYTES) * PAGE_BYTES
    data[at : at + PAGE_BYTES] = old[at : at + PAGE_BYTES]
    (folder / "store.sqlite").write_bytes(data)
    return f"an older page at {at} of store.sqlite"


MUTATIONS: tuple[Callable[[Path, Path, random.Random], str], ...] = (
    *(cut_tail,) * 3,
    *(flip,) * 6,
    *(flip_head,) * 3,
    cut_any,
    swap_pages,
    zero,
    zero_file,
    delete,
    delete_folder,
    older_file,
    *(older_page,) * 2,
)


# ---- looking at them ----------------------------------------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder) if not path.name.endswith("-shm")}


def judge(folder: Folder, mutate: Callable[[Path, Path, random.Random], str], place: Path, rng: random.Random) -> Verdict:
    """Copy the folder, spoil the copy, start."""
    shutil.copytree(folder.path, place)
    what = f"{folder.making}: {mutate(place, folder.older, rng)}"
    before = digests(place)
    tail = newest_segment(place)
    try:
        rows = by_id(asyncio.run(asyncio.wait_for(recovered(place), 30)))
    except StartError as error:
        after = digests(place)
        if changed := [name for name, digest in before.items() if after.get(name) != digest]:
            return Verdict(what, "wrong", f"refused, but changed {changed}: {error.message}")
        named = NAMED.search(error.message)
        return Verdict(what, "refused", error.message) if named else Verdict(what, "wrong", f"refused without the name of a file: {error.message}")
    except Exception as error:
        return Verdict(what, "wrong", f"{type(error).__name__}: {error}")
    if rows == folder.rows:
        return Verdict(what, "harmless")
    if tail is not None and tail.name in what and is_earlier(rows, folder.rows):
        return Verdict(what, "repaired")
    missing, new = len(folder.rows.keys() - rows.keys()), len(rows.keys() - folder.rows.keys())
    other = sum(row != folder.rows[task_id] for task_id, row in rows.items() if task_id in folder.rows)
    return Verdict(what, "wrong", f"accepted: {missing} tasks are missing, {other} are other than they were, {new} are new")


def is_earlier(rows: dict[bytes, Row], expected: dict[bytes, Row]) -> bool:
    """Nothing but the newest is missing: the tasks that are there are as they were made, and what was final stays so unless the tail said it."""
    if not rows.keys() <= expected.keys():
        return False
    gone = [row[0] for task_id, row in expected.items() if task_id not in rows]
    kept = [row[0] for row in rows.values()]
    if gone and kept and min(gone) < max(kept):
        return False
    return all(row[PAYLOAD] == expected[task_id][PAYLOAD] and row[RESULT] in (b"", expected[task_id][RESULT]) for task_id, row in rows.items())


def run(seed: int, mutations: int) -> list[Verdict]:
    """One folder of each making, and so many mutations over them."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory(dir=FAST) as fast:
        folders = []
        for making in MAKINGS:
            (Path(home) / making).mkdir()
            folders.append(make(Path(home) / making, making, seed))
        return [spoil(folders[number % len(folders)], Path(fast) / "folder", rng) for number in range(mutations)]


def spoil(folder: Folder, place: Path, rng: random.Random) -> Verdict:
    try:
        return judge(folder, rng.choice(MUTATIONS), place, rng)
    finally:
        shutil.rmtree(place)


def tell(verdicts: list[Verdict]) -> Counter[str]:
    counts = Counter(verdict.kind for verdict in verdicts)
    for verdict in [verdict for verdict in verdicts if verdict.kind == "wrong"][:SHOWN_MAX]:
        print(f"  {verdict.what}\n    {verdict.words}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=3_000, help="mutations (default 3000)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--seed", type=int, help="one piece, not recorded")
    options = parser.parse_args()
    if options.seed is not None:
        counts = tell(run(options.seed, PIECE))
        print(dict(counts))
        return bool(counts["wrong"])
    had = ledger.sums("corruption").get("", Counter())["mutations"] // PIECE
    began_s, bad, pieces = time.monotonic(), False, range(had, -(-options.mutations // PIECE))
    with ProcessPoolExecutor(options.jobs) as pool:
        for verdicts in pool.map(run, pieces, [PIECE] * len(pieces)):
            counts = tell(verdicts)
            bad |= bool(counts["wrong"])
            ledger.record("corruption", mutations=len(verdicts), **{kind: counts[kind] for kind in ("repaired", "refused", "harmless", "wrong")})
            print(f"{time.monotonic() - began_s:5.0f} s  {dict(counts)}", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
