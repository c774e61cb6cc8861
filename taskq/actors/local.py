"""LocalSession: requests that the node makes itself, on behalf of HTTP.  The same commands to the same shards as over TCP, without a connection.

HTTP has no flag for "this may have been sent before": an enqueue that brings ids of its own is taken for one that was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq.actors.session import Tell
from taskq.core import messages as m
from taskq.core.effects import Reply
from taskq.core.session import House, Requests, inspected
from taskq.ids import NIL


class LocalSession:
    def __init__(self, origin: int, house: House, now_ms: Callable[[], int], tell: Tell) -> None:
        self.origin = origin
        self._house = house
        self._now_ms = now_ms
        self._tell = tell
        self._requests = Requests(origin, house.ring)
        self._takers: dict[int, Callable[[Any], None]] = {}
        self._seq = 0

    def submit(self, message: Any, reply: Callable[[Any], None]) -> None:
        """Ask; `reply` is called exactly once, with the durable answer."""
        if type(message) is m.Inspect and message.what != "queues":
            reply(inspected(self._house, message.what, self._now_ms()))
            return
        self._seq += 1
        self._takers[self._seq] = reply
        resent = type(message) is m.Enqueue and message.ids != NIL * len(message.payloads)
        self._tell(self._requests.ask(self._seq, message, resent))

    def answered(self, reply: Reply) -> None:
        whole = self._requests.answered(reply.seq, reply.part, reply.message)
        if whole is not None:
            self._takers.pop(reply.seq)(whole)
