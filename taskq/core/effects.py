"""What a turn of a shard asks the world to do, as values that print themselves.

`records` must be durable before any of `replies` leaves.  `loads` are questions to the store, answered by `Found` and `LineLoaded` commands.
`bugs` are commands whose decision raised: their connections are closed.  `offers` are commands to other shards of the process that nothing durable
depends on.  `wake_at_ms` 0: no timer is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from taskq.core.access import Grant
from taskq.core.task import Task

if TYPE_CHECKING:
    from taskq.core.consumer import Consumer
    from taskq.core.followers import Crew


@attrs.define
class Command:
    """A message on its way to a shard.  `origin` names the connection that asked (0: nobody), `part` the piece of a request that was split over
    several slots, `resent` the flag that it may have been sent before.  `session` is the worker's own, whose leases alone it may report on;
    `grant` what its access token allows, None where none is asked for."""

    origin: int
    seq: int
    message: Any
    part: int = 0
    resent: bool = False
    session: bytes = b""
    grant: Grant | None = None


@attrs.define
class Reply:
    """A message on its way to a connection; seq 0 is not the answer to a request."""

    origin: int
    seq: int
    part: int
    message: Any


@attrs.frozen
class FindLoad:
    """Ask the store for the rows with these ids or (queue, key) pairs; the parked command is decided again with what was found.
    It asks for all that the command is about: what is in memory now may have left it by then."""

    ids: tuple[bytes, ...]
    keys: tuple[tuple[str, str], ...]
    parked: Command


@attrs.frozen
class LineLoad:
    """Ask the store for the next pending rows of a line."""

    queue: str
    priority: int
    task_type: str
    after_position: int
    limit: int


@attrs.define
class Effects:
    records: list[Any] = attrs.field(factory=list)
    replies: list[Reply] = attrs.field(factory=list)
    loads: list[FindLoad | LineLoad] = attrs.field(factory=list)
    bugs: list[tuple[Command, Exception]] = attrs.field(factory=list)
    offers: list[tuple[int, Command]] = attrs.field(factory=list)
    wake_at_ms: int = 0

    def reply(self, command: Command, message: Any) -> None:
        if command.origin:
            self.replies.append(Reply(command.origin, command.seq, command.part, message))


# ---- commands that come from inside the node, never from the wire -----------------------------------------------------------------


@attrs.define
class Tick:
    """Time has passed: timers, leases."""


@attrs.define
class Ready:
    """A consumer subscribed or has new credit."""

    session: bytes


@attrs.define
class Offer:
    """A consumer prefers tasks of this shard to those of the shard `back`, which is told by Offered when this one has looked."""

    consumer: Consumer
    crew: Crew
    back: int


@attrs.define
class Offered:
    """Another shard has had its turn with this crew: whoever has room left takes tasks here."""

    crew: Crew


@attrs.define
class Over:
    """A session is over and its leases end: as crashes with a cause, or uncharged (`cause` empty)."""

    session: bytes
    cause: str


@attrs.define
class Returned:
    """A worker that was taken for dead, because its connection was cut and nobody was heard of, is back: these tasks were charged with a crash."""

    ids: bytes


@attrs.define
class Held:
    """A worker says which tokens it holds, by heartbeat or when it resumes; answer: Known.  With `resumed`, every token that is not listed is
    given up, whatever its delivery number."""

    session: bytes
    received: int
    tokens: frozenset[bytes]
    resumed: bool


@attrs.define
class Known:
    """Of the tokens of a Held, those that are current in this shard, and those of them whose tasks are to be cancelled."""

    tokens: list[bytes]
    cancelled: list[bytes]


@attrs.define
class Found:
    """The store's answer to a FindLoad."""

    parked: Command
    tasks: Sequence[Task]


@attrs.define
class LineLoaded:
    """The store's answer to a LineLoad; it comes in pieces, all but the last with `more`."""

    load: LineLoad
    tasks: Sequence[Task]
    more: bool = False


@attrs.define
class DueLoaded:
    """The next far tasks of a shard, by due time (see horizon.py); they come in pieces, and with the last one the new horizon."""

    tasks: Sequence[Task]
    horizon: tuple[int, int] | None


@attrs.define
class Forgotten:
    """The store has deleted so many dead letters of this queue, because their retention has passed."""

    queue: str
    tasks: int


@attrs.define
class Flushed:
    """The store has committed these tasks as they were when they were taken; a flush is told of in pieces.  `flush`: `Book.flushes` when it was
    taken."""

    tasks: Sequence[Task]
    flush: int
