"""The ring: which shard owns a slot, and how a request is cut into pieces for the shards and its answers are put together again.

A request goes to one shard if it can; one about tasks of several shards is cut by shard, one over all sessions' leases goes to every shard.
What is refused as a whole is not cut: the one shard that gets it refuses it, and no other has done a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from taskq.core import cancel, report
from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.admission import NO_LIMIT
from taskq.core.records import column
from taskq.errors import Answer
from taskq.ids import ID_BYTES, SLOTS, TOKEN_BYTES, of_one_slot, slot_of_id, slot_of_queue, split

# a piece: the shard, the message for it, and the indexes of its tasks in the request (None: all)
Piece = tuple[int, Any, list[int] | None]


@attrs.frozen
class Ring:
    """`payload_bytes_max`: the largest result that a shard takes."""

    shards: int
    payload_bytes_max: int = NO_LIMIT

    def of_slot(self, slot: int) -> int:
        return slot * self.shards // SLOTS

    def of_queue(self, queue: str) -> int:
        return self.of_slot(slot_of_queue(queue))

    def of_id(self, task_id: bytes) -> int:
        return self.of_slot(slot_of_id(task_id))

    def split(self, message: Any) -> list[Piece]:
        """The pieces of a request, at least one."""
        return SPLIT[type(message)](self, message)


def _by_queue(ring: Ring, message: m.Enqueue) -> list[Piece]:
    return [(ring.of_queue(message.queue), message, None)]


def _by_id(ring: Ring, message: m.Get) -> list[Piece]:
    return [(ring.of_id(message.id) if len(message.id) == ID_BYTES else 0, message, None)]


def _to_all(ring: Ring, message: Any) -> list[Piece]:
    return [(shard, message, None) for shard in range(ring.shards)]


def _by_ids(ring: Ring, message: Any) -> list[Piece]:
    """One piece a shard, so that what a request costs does not depend on how its ids are mixed.  Nearly always all have the same slot."""
    ids = message.ids
    if len(ids) < ID_BYTES or _is_misshapen(message):
        return [(0, message, None)]
    if ring.shards == 1 or of_one_slot(ids):
        return [(ring.of_id(ids), message, None)]
    chosen: dict[int, list[int]] = {}
    for at, task_id in enumerate(split(ids, ID_BYTES)):
        chosen.setdefault(ring.of_id(task_id), []).append(at)
    if len(chosen) == 1:
        return [(shard, message, None) for shard in chosen]
    refusal = REFUSAL.get(type(message))
    if refusal is not None and refusal(ring, message) is not None:
        return [(0, message, None)]
    columns = _columns(message)
    return [(shard, _chosen(message, columns, at), at) for shard, at in chosen.items()]


def _is_misshapen(message: Any) -> bool:
    """Counts that do not fit: one shard gets it whole and refuses it."""
    count = len(message.ids) // ID_BYTES
    return any(
        len(value) not in ((count * BLOCKS[name],) if name in BLOCKS else (count,) if name == "payloads" else (1, count))
        for name, value in attrs.asdict(message, recurse=False).items()
    )


def _columns(message: Any) -> dict[str, Sequence[Any]]:
    """The columns of a request that have an entry for each of its tasks, blocks cut into theirs."""
    count = len(message.ids) // ID_BYTES
    columns: dict[str, Sequence[Any]] = {}
    for field in attrs.fields(type(message)):
        value = getattr(message, field.name)
        if field.name in BLOCKS:
            columns[field.name] = split(value, BLOCKS[field.name])
        elif len(value) == count or field.name == "payloads":
            columns[field.name] = column(value, count)
    return columns


def _chosen(message: Any, columns: Mapping[str, Sequence[Any]], at: list[int]) -> Any:
    """The same message with only these tasks."""
    changes: dict[str, Any] = {}
    for name, entries in columns.items():
        mine = [entries[index] for index in at]
        changes[name] = b"".join(mine) if name in BLOCKS else mine
    return attrs.evolve(message, **changes)


BLOCKS = {"ids": ID_BYTES, "tokens": TOKEN_BYTES}

# a request that may be cut → why nothing of it is done
REFUSAL: dict[type, Callable[[Ring, Any], Answer | None]] = {
    **dict.fromkeys((m.Ack, m.Fail, m.Release), lambda ring, message: report.refusal(message, ring.payload_bytes_max)),
    m.Cancel: lambda ring, message: cancel.refusal(message),
}

SPLIT: dict[type, Callable[[Ring, Any], list[Piece]]] = {
    m.Enqueue: _by_queue,
    m.Ack: _by_ids,
    m.Fail: _by_ids,
    m.Release: _by_ids,
    m.Cancel: _by_ids,
    m.Get: _by_id,
    m.Inspect: _to_all,
    fx.Held: _to_all,
    fx.Over: _to_all,
    fx.Returned: _by_ids,
}


@attrs.define
class Gather:
    """The answers to the pieces of one request, until they are complete."""

    pieces: list[Piece]
    answers: list[Any] = attrs.field(init=False)
    missing: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.answers = [None] * len(self.pieces)
        self.missing = len(self.pieces)

    def add(self, part: int, answer: Any) -> Any:
        """The whole answer once all parts are there, else None.  One Error makes the whole an Error."""
        self.answers[part] = answer
        self.missing -= 1
        if self.missing:
            return None
        error = next((answer for answer in self.answers if type(answer) is m.Error), None)
        return error or MERGE[type(self.answers[0])](self)


def _merge_outcomes(gather: Gather) -> Any:
    outcomes = bytearray(sum(len(at or ()) for _, _, at in gather.pieces))
    for (_, _, at), answer in zip(gather.pieces, gather.answers, strict=True):
        for index, outcome in zip(at or (), answer.outcomes, strict=True):
            outcomes[index] = outcome
    return type(gather.answers[0])(bytes(outcomes))


def _merge_rows(gather: Gather) -> Any:
    rows = [row for answer in gather.answers for row in answer.rows]
    return m.Inspected(sorted(rows, key=lambda row: str(row.get("queue", ""))))


def _merge_known(gather: Gather) -> Any:
    return fx.Known(
        [token for answer in gather.answers for token in answer.tokens], [token for answer in gather.answers for token in answer.cancelled]
    )


MERGE: dict[type, Callable[[Gather], Any]] = {
    m.Reported: _merge_outcomes,
    m.Cancelled: _merge_outcomes,
    m.Inspected: _merge_rows,
    fx.Known: _merge_known,
    m.Ok: lambda gather: m.Ok(),
}
