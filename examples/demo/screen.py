"""What the demo shows: steps, a progress bar, a table.  With rich on a terminal, else in plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

PLAIN_STEPS = 10


def step(title: str) -> None:
    print(f"\n── {title} " + "─" * max(0, 100 - len(title)), flush=True)


def say(text: str) -> None:
    print(f"   {text}", flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar; call what it gives with how many are done."""
    if sys.stdout.isatty():
        try:
            from rich.progress import Progress
        except ImportError:
            pass
        else:
            with Progress() as bar:
                row = bar.add_task(f"   {title}", total=total)
                yield lambda done: bar.update(row, completed=done)
            return
    yield _plain(title, total)


def _plain(title: str, total: int) -> Callable[[int], None]:
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        if done * PLAIN_STEPS // total > shown:
            shown = done * PLAIN_STEPS // total
            say(f"{title} [{'#' * shown}{'.' * (PLAIN_STEPS - shown)}] {done:,} of {total:,}")

    return show


def table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name.ljust(width)}  {value}")
