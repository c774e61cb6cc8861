"""What a client knows of the task types that workers have declared, so that a task that is enqueued by name gets the options of its function.

The broker is asked at the first enqueue by name, and again when what is known is older than TYPES_S.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from taskq.errors import BrokerUnavailable, TaskqError
from taskq.options import Options, of_row

TYPES_S = 10.0

Ask = Callable[[], Awaitable[list[dict[str, Any]]]]


class Declared:
    """`ask` gives the rows of INSPECT `types`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._options: dict[str, Options] = {}
        self._until_s = 0.0
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self._until_s

    def known(self, task_type: str) -> Options | None:
        """The options of its function, None if no worker has declared it as far as is known."""
        return self._options.get(task_type)

    async def learn(self, patience_s: float) -> None:
        """Ask, and wait for the answer for so long at most; whoever comes meanwhile waits for the same answer."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._learn())
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._asking)

    async def _learn(self) -> None:
        """A broker that does not tell them leaves the options as they are said; one that cannot be reached is told by the enqueue itself."""
        try:
            self._options = {row["name"]: of_row(row) for row in await self._ask()}
        except BrokerUnavailable:
            return
        except TaskqError:
            self._options = {}
        finally:
            self._asking = None
        self._until_s = time.monotonic() + TYPES_S
