"""An actor: a mailbox and a synchronous `on_batch`.

`tell` appends; the first message schedules one turn on the loop, and a turn takes all that is there.  There is no await inside a turn, so a
turn is atomic.  `on_batch` may keep some of its batch for the next turn, so that a flood cannot starve the loop.  An exception stops the
process: recovery is the tested path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

M = TypeVar("M")


class Actor(Generic[M]):
    def __init__(self, loop: asyncio.AbstractEventLoop, on_crash: Callable[[BaseException], None]) -> None:
        self.loop = loop
        self.on_crash = on_crash
        self._mailbox: list[M] = []
        self._scheduled = False

    def tell(self, message: M) -> None:
        self._mailbox.append(message)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        batch, self._mailbox = self._mailbox, []
        self._scheduled = False
        try:
            more = self.on_batch(batch)
        except BaseException as crash:
            self.on_crash(crash)
            raise
        if more and not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def on_batch(self, batch: list[M]) -> bool:
        """Handle the messages; whether some were kept, so that another turn has to come even if no message does."""
        raise NotImplementedError
