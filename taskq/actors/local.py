"""LocalSession: requests that the node makes itself, on behalf of HTTP.  The same commands to the same shards as over TCP, without a connection.

Each connection over HTTP has a number of its own, by which the shards give it its share (shard.share_out).  It is negative, so that it is none of a
connection over TCP, and the replies come back here.

HTTP has no flag for "this may have been sent before": an enqueue that brings ids of its own is taken for one that was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq.actors.session import Tell
from taskq.core import access
from taskq.core import messages as m
from taskq.core.access import Grant
from taskq.core.effects import Reply
from taskq.core.enqueue import error_of
from taskq.core.house import House
from taskq.core.requests import Requests
from taskq.core.session import inspected
from taskq.errors import Forbidden

# who asks within the node itself; the connections over HTTP are counted down from here
LOCAL_ORIGIN = -1


class LocalSession:
    def __init__(self, house: House, now_ms: Callable[[], int], tell: Tell) -> None:
        self._house = house
        self._now_ms = now_ms
        self._tell = tell
        self._requests = Requests(LOCAL_ORIGIN, house.ring)
        self._takers: dict[int, Callable[[Any], None]] = {}
        self._seq = 0

    def submit(self, message: Any, reply: Callable[[Any], None], grant: Grant | None = None, origin: int = LOCAL_ORIGIN) -> None:
        """Ask; `reply` is called exactly once, with the durable answer.  `grant`: what the asker may, None for everything.  `origin`: who asks."""
        if grant is not None:
            try:
                access.check(grant, message)
            except Forbidden as refusal:
                reply(error_of(refusal))
                return
        if type(message) is m.Inspect and message.what != "queues":
            reply(inspected(self._house, message.what, self._now_ms(), grant))
            return
        self._seq += 1
        self._takers[self._seq] = reply
        self._tell(self._requests.ask(self._seq, message, _names_its_ids(message), grant=grant, origin=origin))

    def answered(self, reply: Reply) -> None:
        whole = self._requests.answered(reply.seq, reply.part, reply.message)
        if whole is not None:
            self._takers.pop(reply.seq)(whole)


def _names_its_ids(message: Any) -> bool:
    """Only a task that may have been sent before comes with an id: the store is asked, for memory may have forgotten it."""
    return type(message) is m.Enqueue and any(message.ids)
