"""The house: what all sessions of a broker share.  It knows no connection."""

from __future__ import annotations

import hmac
import random
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import attrs

from taskq.core.admission import LEASES_MAX
from taskq.core.consumer import Consumer, Consumers
from taskq.core.gate import Gate
from taskq.core.idtime import IdTime
from taskq.core.ring import Ring
from taskq.core.types import Types


@attrs.frozen
class Terms:
    """What the broker tells every session in WELCOME."""

    epoch: int
    heartbeat_ms: int
    lease_ms: int
    grace_ms: int
    limits: dict[str, Any]
    secret_key: bytes
    leases_max: int = LEASES_MAX


@attrs.define(eq=False)
class House:
    """What all sessions of a broker share.  `held`: of each shard, the leases by session.  `wall_ms`: the time for
    people, where it is not that by which sessions live (see clock.py).  `ids`: the time for ids.  `gate`: who checks access tokens, None if nobody
    does.  `waiting`: a queue with tasks that a consumer could run now, "" for none.  `types`: what workers have declared; `keep_types` writes it
    down when it has changed."""

    ring: Ring
    terms: Terms
    consumers: Consumers
    rng: random.Random
    describe: Callable[[], dict[str, Any]]
    held: Sequence[Mapping[bytes, Sized]] = ()
    draining: bool = False
    wall_ms: Callable[[], int] | None = None
    gate: Gate | None = None
    ids: IdTime = attrs.field(factory=IdTime)
    waiting: Callable[[Consumer], str] = lambda consumer: ""
    types: Types = attrs.field(factory=Types)
    keep_types: Callable[[], None] = lambda: None

    def secret(self, session: bytes) -> bytes:
        """Proof that the holder was given this session: HMAC-SHA256 with a key that is kept in the data folder."""
        return hmac.digest(self.terms.secret_key, session, "sha256")
