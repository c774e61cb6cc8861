"""Tasks on their way into Enqueue frames: payloads as bytes, tasks gathered into batches, batches as columns.

No connection and no loop of its own: `client.py` decides when a batch leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs

from taskq import serial
from taskq.core import messages as m
from taskq.errors import TaskqError
from taskq.handle import TaskHandle
from taskq.options import Options

T = TypeVar("T")
Encoded: TypeAlias = tuple[bytes, int]

FRAME_TASKS_MAX = 1_000
FRAME_PAYLOAD_BYTES = 1 << 20


def encode_payload(payload: Any, task_type: str) -> Encoded:
    """A payload by the rule of `client.py` as (bytes, encoding).  TypeError names the argument that cannot be sent."""
    if type(payload) is dict:
        return serial.encode_arguments(payload, task_type), m.MSGPACK
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload), m.BYTES
    if isinstance(payload, Mapping):
        return serial.encode_arguments(dict(payload), task_type), m.MSGPACK
    if isinstance(payload, (list, tuple)):
        return serial.encode_arguments(list(payload), task_type), m.MSGPACK
    return serial.encode(payload, f"the payload of {task_type}"), m.MSGPACK


@attrs.define(eq=False)
class Batch:
    """The tasks that will leave in one frame, and who waits for each.  `resent`: they came with an id, so they may have been sent before."""

    queue: str
    deadline_s: float
    resent: bool = False
    items: list[Encoded] = attrs.field(factory=list)
    task_types: list[str] = attrs.field(factory=list)
    options: list[Options] = attrs.field(factory=list)
    futures: list[asyncio.Future[TaskHandle[Any]]] = attrs.field(factory=list)
    size_bytes: int = 0

    @property
    def full(self) -> bool:
        return len(self.items) >= FRAME_TASKS_MAX or self.size_bytes >= FRAME_PAYLOAD_BYTES

    def refuse(self, error: TaskqError) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(error)


def enqueue_message(
    queue: str, items: Sequence[Encoded], task_types: list[str], options: list[Options], make_ids: Callable[[int], bytes]
) -> m.Enqueue:
    """The frame for these tasks; `task_types` and `options` are columns, `make_ids` gives so many ids in a block."""
    options = _column(options)
    return m.Enqueue(
        payloads=[payload for payload, _ in items],
        queue=queue,
        ids=_ids(len(items), options, make_ids),
        task_types=_column(task_types),
        encodings=_column([encoding for _, encoding in items]),
        priorities=_column([each.priority for each in options]),
        delays_ms=_column([each.delay_ms for each in options]),
        keys=_column([each.key for each in options]),
        max_attempts=_column([each.max_attempts for each in options]),
        timeouts_ms=_column([each.timeout_ms for each in options]),
        retries=_column([None if each.retry is None else list(each.retry) for each in options]),
    )


def _ids(tasks: int, options: list[Options], make_ids: Callable[[int], bytes]) -> bytes:
    if all(each.id is None for each in options):
        return make_ids(tasks)
    return b"".join([each.id or make_ids(1) for each in options])


def frames(items: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
    """The items cut into frames by both limits."""
    begin = size = 0
    for end, (payload, _) in enumerate(items):
        if end > begin and (end - begin >= FRAME_TASKS_MAX or size + len(payload) > FRAME_PAYLOAD_BYTES):
            yield items[begin:end]
            begin, size = end, 0
        size += len(payload)
    if items:
        yield items[begin:]


def _column(values: list[T]) -> list[T]:
    """One entry when all are equal."""
    return values[:1] if values.count(values[0]) == len(values) else values
