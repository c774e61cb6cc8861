"""Requests: what one connection asked for and was not answered yet.  It knows how requests are cut, not what they mean."""

from __future__ import annotations

from typing import Any

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.access import Grant
from taskq.core.ring import Gather, Ring


class Requests:
    """The requests of one connection that are not answered yet, cut into pieces for the shards.  `waiting`: those that wait for a task to end, for
    which nobody works; `working` counts the others, and `listing` those of them whose answer is as long as the broker has queues."""

    def __init__(self, origin: int, ring: Ring) -> None:
        self.origin = origin
        self.ring = ring
        self.open: dict[int, Gather | None] = {}
        self.waiting: set[int] = set()
        self.listing: set[int] = set()

    @property
    def working(self) -> int:
        return len(self.open) - len(self.waiting)

    def ask(
        self, seq: int, message: Any, resent: bool = False, session: bytes = b"", grant: Grant | None = None, origin: int = 0
    ) -> list[tuple[int, fx.Command]]:
        """The commands for the shards.  `origin`: who asks, if it is another than usually."""
        origin = origin or self.origin
        pieces = self.ring.split(message)
        if type(message) is m.Get and message.wait_ms:
            self.waiting.add(seq)
        elif type(message) is m.Inspect:
            self.listing.add(seq)
        if len(pieces) == 1:
            ((shard, piece, _),) = pieces
            self.open[seq] = None
            return [(shard, fx.Command(origin, seq, piece, 0, resent, session, grant))]
        self.open[seq] = Gather(pieces)
        return [(shard, fx.Command(origin, seq, piece, part, resent, session, grant)) for part, (shard, piece, _) in enumerate(pieces)]

    def answered(self, seq: int, part: int, answer: Any) -> Any:
        """The whole answer to the request, or None while pieces are missing."""
        gather = self.open.get(seq)
        whole = answer if gather is None else gather.add(part, answer)
        if whole is not None:
            self.open.pop(seq, None)
            self.waiting.discard(seq)
            self.listing.discard(seq)
        return whole
