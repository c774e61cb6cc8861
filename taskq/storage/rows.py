"""Tasks as rows, records as bytes: what the store and the journal keep.

A row has the columns of `base.COLUMNS`; what has no column of its own is in `meta`, a msgpack list in the order of `META`, append only.
A record is

    u16 kind · u16 slot · u32 head length · head (msgpack list of the record's fields, payload sizes in place of payloads) · payload bytes

Upgrade recipe: append a field with a default to a record or to META; an old row or record then takes the default.  Never reorder or remove.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from struct import Struct
from typing import Any

import attrs
import msgpack

from taskq.core import records as r
from taskq.core.attempt import Attempt, lean
from taskq.core.task import CLEAN, COPY_BYTES_MAX, FAILED, FINAL, Options, Task
from taskq.ids import SLOTS
from taskq.storage.base import Row, WriteBatch

HEADER = Struct(">HHI")
# one packer for all: making one costs as much as packing a small row, and 256 KiB for its buffer; it holds nothing between two calls
pack = msgpack.Packer(buf_size=4_096).pack
JOIN_BYTES_MAX = 4_096
# named integers of the store: the payload bytes of a queue's unfinished tasks (no name of a queue has a space), and whether they are kept
QUEUE_BYTES, SIZES_KEPT = "queue_bytes ", "queue_bytes_kept"

META = (
    "encoding",
    "max_attempts",
    "timeout_ms",
    "retry",
    "enqueued_ms",
    "attempts",
    "crashes",
    "interruptions",
    "cancel_requested",
    "token",
    "session",
    "worker",
    "delivery",
    "started_ms",
    "result_encoding",
    "last_token",
    "history",
)


def row_of(task: Task) -> Row:
    """The row of a task as it is now, but for the long texts of its errors; see texts.py."""
    options = task.options
    meta = (
        options.encoding,
        options.max_attempts,
        options.timeout_ms,
        options.retry,
        task.enqueued_ms,
        task.attempts,
        task.crashes,
        task.interruptions,
        task.cancel_requested,
        task.token,
        task.session,
        task.worker,
        task.delivery,
        task.started_ms,
        task.result_encoding,
        task.last_token,
        [attempt.fields() for attempt in lean(task.history)] if task.history else (),
    )
    return (
        task.seq,
        task.id,
        task.queue,
        options.task_type,
        task.state,
        options.priority,
        task.position,
        task.due_ms,
        task.finished_ms,
        task.key,
        task.payload,
        task.result,
        pack(meta),
    )


def task_of(row: Row, *, whole: bool = False) -> Task:
    """The task that a row describes, with the long texts of its errors if it is to be `whole`."""
    seq, task_id, queue, task_type, state, priority, position, due_ms, finished_ms, key, payload, result, packed = row
    meta = dict(zip(META, msgpack.unpackb(packed, use_list=False), strict=False))
    base_ms, factor, cap_ms = meta["retry"]
    history = tuple([Attempt(*attempt) for attempt in meta["history"]])
    options = Options(task_type, meta["encoding"], priority, meta["max_attempts"], meta["timeout_ms"], (base_ms, factor, cap_ms))
    return Task(
        id=bytes(task_id),
        seq=seq,
        queue=queue,
        options=options,
        payload=payload,
        state=state,
        enqueued_ms=meta["enqueued_ms"],
        key=key,
        position=position,
        due_ms=due_ms,
        attempts=meta["attempts"],
        crashes=meta["crashes"],
        interruptions=meta["interruptions"],
        cancel_requested=meta["cancel_requested"],
        token=meta["token"],
        session=meta["session"],
        worker=meta["worker"],
        delivery=meta["delivery"],
        started_ms=meta["started_ms"],
        finished_ms=finished_ms,
        result=result,
        result_encoding=meta["result_encoding"],
        last_token=meta["last_token"],
        history=history if whole else lean(history),
        stored=True,
    )


def is_archived(task: Task) -> bool:
    """Whether the task's row belongs with the finished ones; dead letters stay with the live ones, since they can be put back."""
    return task.state in FINAL and task.state != FAILED


def batch_of(tasks: Iterable[Task], meta: dict[str, int]) -> WriteBatch:
    """The transaction that brings the rows of these tasks, taken by a flush, up to date."""
    batch = WriteBatch(meta)
    for task in tasks:
        add(batch, task)
    return batch


def add(batch: WriteBatch, task: Task) -> None:
    """Make the row of a task that a flush has taken; it is noted on the task that the store has it."""
    task.dirty = CLEAN
    if task.history and not all(attempt.error is not None and attempt.is_lean for attempt in task.history):
        batch.texts[task.seq] = task.history
    if not is_archived(task):
        batch.put.append(row_of(task))
        task.stored = True
        return
    batch.finish.append(row_of(task))
    if task.stored:
        batch.delete.append(task.seq)


def size_names(sizes: Mapping[str, int]) -> dict[str, int]:
    """The payload bytes of queues as named integers of the store, and that they are kept there."""
    return {SIZES_KEPT: 1, **{QUEUE_BYTES + queue: payload_bytes for queue, payload_bytes in sizes.items()}}


# ---- records -----------------------------------------------------------------------------------------------------------------------

_FIELDS: dict[type, tuple[str, ...]] = {cls: tuple(field.name for field in attrs.fields(cls)) for cls in r.KIND_OF}
_HAS_PAYLOADS = frozenset(cls for cls, names in _FIELDS.items() if names[0] == "payloads")


def encode_record(record: Any) -> list[bytes | memoryview]:
    """The record as buffers that stand one behind the other; payloads of 4 KiB and more are passed on uncopied."""
    cls = type(record)
    values = [getattr(record, name) for name in _FIELDS[cls]]
    payloads: list[bytes | memoryview] = []
    if cls in _HAS_PAYLOADS:
        payloads = values[0]
        values[0] = sizes = list(map(len, payloads))
        large = max(sizes, default=0) >= JOIN_BYTES_MAX
    else:
        large = False
    head = pack(values)
    prefix = HEADER.pack(r.KIND_OF[cls], record.slot, len(head)) + head
    return [prefix, *payloads] if large else [b"".join((prefix, *payloads))]


_AT: dict[type, dict[str, int]] = {cls: {name: at for at, name in enumerate(names)} for cls, names in _FIELDS.items()}


@attrs.define
class Opened:
    """A record whose head was read: `values` are its fields, with the sizes of the payloads in their place, `rest` the bytes of the payloads."""

    cls: type
    values: list[Any]
    rest: memoryview

    def get(self, name: str) -> Any:
        return self.values[_AT[self.cls][name]]

    def record(self) -> Any:
        """The record; where a payload has over 1 KiB, all are views of the bytes that it was read from."""
        values = self.values[: len(_FIELDS[self.cls])]
        if self.cls in _HAS_PAYLOADS:
            rest: bytes | memoryview = self.rest
            if max(values[0], default=0) <= COPY_BYTES_MAX:
                rest = bytes(rest)
            values[0] = [rest[end - size : end] for size, end in zip(values[0], accumulate(values[0]), strict=True)]
        return self.cls(*values)


def open_record(data: memoryview) -> Opened:
    """Read the head of the record that these bytes hold.  Raises ValueError if they hold none: the journal's checksum was right, so the format is
    newer."""
    kind, slot, head_bytes = HEADER.unpack_from(data)
    cls = r.KINDS.get(kind)
    if cls is None or slot >= SLOTS:
        raise ValueError(f"unknown record kind {kind}; the journal was written by a newer version")
    at = HEADER.size + head_bytes
    return Opened(cls, msgpack.unpackb(data[HEADER.size : at]), data[at:])


def decode_record(data: memoryview) -> Any:
    """The record that these bytes hold.  Raises ValueError."""
    return open_record(data).record()
