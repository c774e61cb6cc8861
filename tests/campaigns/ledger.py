"""The ledger of the long campaigns: `campaigns/NAME.jsonl`, one line for each piece of a run, so that a campaign can go on where it stopped.

    .venv/bin/python tests/campaigns/ledger.py        the sums that count for the code as it is now

A line holds `at` (UTC), `commit`, `code` and the facts of the piece: numbers, which are summed, texts and lists.  `code` is a digest of the files
that the campaign watches, as committed: lines of other code stay in the ledger as history, and count no more.  Nor does a line that was made `void`
afterwards, with the reason: a mistake of the campaign itself.  A campaign runs on committed code only, since a figure without its code cannot be
repeated.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "campaigns"

CORE = ("taskq/core", "taskq/storage")
ENGINE = (*CORE, "taskq/protocol", "taskq/actors/journal.py", "taskq/actors/store.py", "taskq/actors/shard.py", "taskq/node.py")
# what a change restarts the sums of
WATCHED: dict[str, tuple[str, ...]] = {
    "simulation": ENGINE,
    "kills": ENGINE,
    "power-loss": (*CORE, "taskq/actors/journal.py", "taskq/actors/store.py"),
    "disk-errors": (*CORE, "taskq/actors/journal.py", "taskq/actors/store.py"),
    "full-disk": (*CORE, "taskq/actors/journal.py", "taskq/actors/store.py"),
    "corruption": ("taskq/storage",),
    "leases": (*CORE, "taskq/worker"),
    "chaos": ("taskq/core", "taskq/protocol", "taskq/worker", "taskq/connection.py", "taskq/actors/session.py"),
    "load": ("taskq/core", "taskq/protocol", "taskq/actors"),
    "fuzz": ("taskq/protocol", "taskq/core/session.py", "taskq/gateway"),
}


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def code_of(campaign: str) -> str:
    """The digest of what the campaign watches; RuntimeError when the work tree differs from the commit."""
    watched = WATCHED[campaign]
    if changed := git("status", "--porcelain", "--", *watched).strip():
        raise RuntimeError(f"commit these first, so that the figures can be repeated:\n{changed}")
    return hashlib.sha256(git("ls-tree", "-r", "HEAD", "--", *watched).encode()).hexdigest()[:12]


def record(campaign: str, **facts: Any) -> None:
    """Append one piece of a run."""
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = {"at": at, "commit": git("rev-parse", "--short", "HEAD").strip(), "code": code_of(campaign), **facts}
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{campaign}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines(campaign: str) -> Iterator[dict[str, Any]]:
    """The lines that count for the code as it is now."""
    file, code = FOLDER / f"{campaign}.jsonl", code_of(campaign)
    if file.exists():
        yield from (line for line in map(json.loads, file.read_text().splitlines()) if line["code"] == code and "void" not in line)


def sums(campaign: str, by: str = "") -> dict[str, Counter[str]]:
    """The numbers of the lines that count, added up for each value of the field `by`."""
    found: dict[str, Counter[str]] = {}
    for line in lines(campaign):
        numbers = {name: value for name, value in line.items() if isinstance(value, int) and not isinstance(value, bool)}
        found.setdefault(str(line.get(by, "")), Counter()).update(numbers)
    return found


def main() -> None:
    for campaign in WATCHED:
        for mode, numbers in sums(campaign, "mode").items():
            print(f"{campaign:12} {mode:8} " + ", ".join(f"{name} {count:,}" for name, count in numbers.items()))


if __name__ == "__main__":
    sys.exit(main())
