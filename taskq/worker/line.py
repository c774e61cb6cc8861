"""The pipe between keeper and runner: JSON objects, one a line.

The runner says its session, what is fatal, its last words, and that it ends in order; the keeper says when to stop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast


def line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


class Line(asyncio.Protocol):
    """One end of the pipe.  `told` takes what the other end says, `gone` is called when it is closed."""

    def __init__(self, told: Callable[[dict[str, Any]], None], gone: Callable[[], None]) -> None:
        self._told = told
        self._gone = gone
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for text in lines:
            self._told(json.loads(text))

    def connection_lost(self, error: Exception | None) -> None:
        self._gone()

    def say(self, fields: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line(fields))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
