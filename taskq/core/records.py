"""Records: the facts that a shard decided, as the journal keeps them.

A record says what was decided, never what was asked: replay takes no decision and reads no clock.  It carries the slot, not the shard, so
`--shards` may change between starts.  Like messages, records are positional: fields are appended with a default and never removed.
A *column* is a list with one entry a task, or with exactly one that counts for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import attrs

from taskq.core.messages import Payload

T = TypeVar("T")


def column(values: Sequence[T], count: int) -> Sequence[T]:
    """The column with one entry a task."""
    return values if len(values) == count else [values[0]] * count


@attrs.define
class Admitted:
    """Tasks were enqueued: task i has seq first_seq + i, which is also its position.  `dues_ms` 0: pending, else scheduled."""

    payloads: list[Payload]
    slot: int
    queue: str
    now_ms: int
    first_seq: int
    ids: bytes
    task_types: list[str]
    encodings: list[int]
    priorities: list[int]
    dues_ms: list[int]
    keys: list[str | None]
    max_attempts: list[int]
    timeouts_ms: list[int]
    retries: list[Any]


@attrs.define
class Granted:
    """Pending tasks were leased to a session: tokens[i] for ids[i], delivery number first + i."""

    slot: int
    now_ms: int
    session: bytes
    worker: str
    first: int
    ids: bytes
    tokens: bytes


@attrs.define
class Completed:
    """Running tasks completed with these results."""

    payloads: list[Payload]
    slot: int
    now_ms: int
    ids: bytes
    encodings: list[int]


@attrs.define
class Ended:
    """Runs ended without a result.  `outcomes` (failed, crashed, interrupted, snoozed, cancelled, undelivered) says what is counted, `states` where
    each task goes; `dues_ms` for timed states.  A task that becomes pending again keeps its position: it goes to the front.  `error_types` and
    `errors` are columns; journals of 0.1.0 have an entry for each task.
    The outcome `excused` is about a run that has ended before: it was charged as a crash with this error, was none, and the task stays
    where it is."""

    slot: int
    now_ms: int
    ids: bytes
    outcomes: list[str]
    states: list[int]
    dues_ms: list[int]
    error_types: list[str]
    errors: list[str]


@attrs.define
class Promoted:
    """Timed tasks came due and are pending at the positions first_position, +1, …"""

    slot: int
    ids: bytes
    first_position: int


@attrs.define
class Dropped:
    """Tasks that did not run were cancelled."""

    slot: int
    now_ms: int
    ids: bytes


@attrs.define
class CancelAsked:
    """Running tasks were asked to stop."""

    slot: int
    ids: bytes


# append only; a kind is never reused
KINDS: dict[int, type] = {1: Admitted, 2: Granted, 3: Completed, 4: Ended, 5: Promoted, 6: Dropped, 7: CancelAsked}
KIND_OF: dict[type, int] = {cls: kind for kind, cls in KINDS.items()}
