"""A worker session as the shards see it: its subscription, its credit and whether it is alive.

One object a session, shared by all shards of the process, which run in turns on one thread and take from it in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from taskq.core.followers import Crew


# how long after the end of its leases a worker whose connection was cut may still come back and say that it did not die
RETURN_MS = 600_000


@attrs.define
class Idle:
    """So many heartbeats in a row found the session without a lease, and `delivered` as it was.  `named`: somebody was told."""

    beats: int = 0
    delivered: int = 0
    named: bool = False


@attrs.define(eq=False)
class Consumer:
    """`allowed` and `delivered` count deliveries since the session began.  Deliveries up to `received` are confirmed.  Its leases end at
    `deadline_ms` unless it is heard of again.  `origin` is its connection, 0 while it is away.  `restored`: known from before a restart only.
    `cut`: its connection ended while it was alive, and nobody was heard of since; `charged`: the tasks that were charged with a crash for that.
    `choked`: its connection does not take more for the moment.  `taken_back`: deliveries that the broker ended by itself, so that the worker
    may not know that it can allow others.  `idle`: see standing.py.  `shards`: those that own its queues; `ranks`: of its queues, the lowest is
    preferred; `crews`: see followers.py, by shard."""

    session: bytes
    name: str
    deadline_ms: int
    client: dict[str, Any] = attrs.field(factory=dict)
    origin: int = 0
    queues: tuple[str, ...] = ()
    ranks: tuple[int, ...] = attrs.Factory(lambda self: tuple(range(len(self.queues))), takes_self=True)
    task_types: frozenset[str] = frozenset()
    concurrency: int = 0
    allowed: int = 0
    delivered: int = 0
    received: int = 0
    connected_ms: int = 0
    heard_ms: int = 0
    restored: bool = False
    over: bool = False
    cut: bool = False
    charged: list[bytes] = attrs.field(factory=list)
    choked: bool = False
    taken_back: int = 0
    idle: Idle = attrs.field(factory=Idle)
    shards: tuple[int, ...] = ()
    crews: dict[int, Crew] = attrs.field(factory=dict)

    @property
    def room(self) -> int:
        """How many more tasks it will take now."""
        return self.allowed - self.delivered if self.origin and not self.over and not self.choked else 0

    def subscribe(self, queues: dict[str, int], task_types: frozenset[str], shards: tuple[int, ...]) -> None:
        """What it takes from now on, each queue with its rank; the shards learn it when it is ready."""
        self.queues, self.ranks, self.task_types, self.shards = tuple(queues), tuple(queues.values()), task_types, shards
        self.crews = {}

    def follows(self, queue: str) -> bool:
        """A shard knows that it takes this queue."""
        return any(queue in crew.ranks for crew in self.crews.values())

    def heard(self, received: int, now_ms: int, lease_ms: int) -> None:
        """A sign of life.  What was never delivered cannot have been received."""
        self.received = max(self.received, min(received, self.delivered))
        self.heard_ms = now_ms
        self.deadline_ms = max(self.deadline_ms, now_ms + lease_ms)
        self.cut = False

    def away(self, now_ms: int, grace_ms: int) -> None:
        """The connection is gone: the leases end after the grace, no sooner and no later, unless the session resumes or its keeper is heard.
        Those of a session that was silent for a whole lease before have ended already."""
        self.origin = 0
        self.subscribe({}, self.task_types, ())
        if self.deadline_ms > now_ms:
            self.deadline_ms = now_ms + grace_ms
            self.cut = True

    def is_forgotten(self, now_ms: int) -> bool:
        """Nobody can come back to it.  One that has lost tasks to a cut may come back for a while, and take the blame off them."""
        return not self.origin and (self.over or self.deadline_ms + (RETURN_MS if self.charged else 0) < now_ms)


Consumers = dict[bytes, Consumer]
