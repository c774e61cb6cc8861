"""What the worker runs in the flatness bench: a task that notes its number and when it started, in a file that the bench has mapped as well.

The file is an array of numbers of 64 bits: how many notes there are, then number and Unix time in milliseconds of each.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from taskq import App

app = App()


class Notes:
    """The file, as both ends see it."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._cells = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    @staticmethod
    def make(path: Path, notes_max: int) -> Notes:
        path.write_bytes(b"")
        os.truncate(path, 8 * (1 + 2 * notes_max))
        return Notes(path)

    def __len__(self) -> int:
        return self._cells[0]

    def add(self, number: int, now_ms: int) -> None:
        cells = self._cells
        count = cells[0]
        cells[2 * count + 1] = number
        cells[2 * count + 2] = now_ms
        cells[0] = count + 1

    def numbers(self, first: int = 0) -> list[int]:
        return self._cells[2 * first + 1 : 2 * len(self) + 1 : 2].tolist()

    def times_ms(self, first: int = 0) -> list[int]:
        return self._cells[2 * first + 2 : 2 * len(self) + 2 : 2].tolist()


notes = Notes(Path(os.environ["FLAT_NOTES"])) if "FLAT_NOTES" in os.environ else None


@app.task(queue="q0")
async def note(n: int, data: bytes) -> None:
    assert notes is not None
    notes.add(n, time.time_ns() // 1_000_000)
