"""A call that blocks is refused in a thread in which an event loop runs: it would hold up all that runs there, its own answer perhaps included."""

from __future__ import annotations

import asyncio


def refuse_on_loop(instead: str) -> None:
    """RuntimeError if an event loop runs in this thread, as it always does in a notebook; `instead` is what to await there."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            f"this call would block the event loop that runs in this thread, and everything on it: write await {instead} instead; "
            "code that cannot await can be run in another thread, with await asyncio.to_thread(function)"
        )
