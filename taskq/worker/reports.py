"""Outcomes collected over one turn of the loop and made into the fewest frames: Ack, Fail and Release, each for up to 1,000 tasks.

PURE.  What must not be known here: connections, pools.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias, TypeVar

import attrs

from taskq.core import messages as m
from taskq.worker.job import Handback, Job, Outcome
from taskq.worker.registry import Verdict

FRAME_TASKS_MAX = 1_000
FRAME_RESULT_BYTES = 1 << 20

Report: TypeAlias = m.Ack | m.Fail | m.Release
T = TypeVar("T")


@attrs.define
class Reports:
    """What ended and was not made into a frame yet."""

    payload_bytes_max: int = FRAME_RESULT_BYTES
    _done: list[tuple[Job, bytes]] = attrs.field(factory=list)
    _failed: list[tuple[Job, Verdict]] = attrs.field(factory=list)
    _given_back: list[tuple[Job, Handback]] = attrs.field(factory=list)

    def add(self, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, bytes):
            if len(outcome) <= self.payload_bytes_max:
                self._done.append((job, outcome))
            else:
                self._failed.append((job, self._too_large(job, outcome)))
        elif isinstance(outcome, Verdict):
            self._failed.append((job, outcome))
        else:
            self._given_back.append((job, outcome))

    def _too_large(self, job: Job, result: bytes) -> Verdict:
        limit = self.payload_bytes_max
        text = f"the result of {job.task_type} has {len(result)} bytes, more than the broker's {limit}; store it elsewhere and return a reference"
        return Verdict(m.DISCARD, 0, "PayloadTooLarge", text)

    def take(self) -> list[Report]:
        """All that was added, as messages."""
        done, failed, given_back = self._done, self._failed, self._given_back
        self._done, self._failed, self._given_back = [], [], []
        messages: list[Report] = [_ack(rows) for rows in _chunks_by_size(done)]
        messages += [_fail(rows) for rows in _chunks(failed)]
        messages += [_release(rows) for rows in _chunks(given_back)]
        return messages


def _ack(rows: list[tuple[Job, bytes]]) -> m.Ack:
    return m.Ack([result for _, result in rows], _ids(rows), _tokens(rows))


def _fail(rows: list[tuple[Job, Verdict]]) -> m.Fail:
    verdicts = [verdict for _, verdict in rows]
    return m.Fail(
        _ids(rows),
        _tokens(rows),
        [verdict.disposition for verdict in verdicts],
        [verdict.delay_ms for verdict in verdicts],
        [verdict.error_type for verdict in verdicts],
        [verdict.error for verdict in verdicts],
    )


def _release(rows: list[tuple[Job, Handback]]) -> m.Release:
    return m.Release(_ids(rows), _tokens(rows), [handback.delay_ms for _, handback in rows])


def _ids(rows: list[tuple[Job, T]]) -> bytes:
    return b"".join([row[0].id for row in rows])


def _tokens(rows: list[tuple[Job, T]]) -> bytes:
    return b"".join([row[0].token for row in rows])


def _chunks(rows: list[T]) -> Iterator[list[T]]:
    found = iter(rows)
    while chunk := list(islice(found, FRAME_TASKS_MAX)):
        yield chunk


def _chunks_by_size(rows: list[tuple[Job, bytes]]) -> Iterator[list[tuple[Job, bytes]]]:
    """At most FRAME_TASKS_MAX rows, and no row that would bring the results over FRAME_RESULT_BYTES unless it is alone."""
    if len(rows) <= FRAME_TASKS_MAX and sum([len(row[1]) for row in rows]) <= FRAME_RESULT_BYTES:
        if rows:
            yield rows
        return
    chunk: list[tuple[Job, bytes]] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == FRAME_TASKS_MAX or size + len(row[1]) > FRAME_RESULT_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row[1])
    if chunk:
        yield chunk


def split_ack(message: m.Ack) -> list[m.Ack]:
    """One Ack a task, for a frame that was refused because of one of them."""
    rows = range(len(message.payloads))
    return [m.Ack([message.payloads[at]], message.ids[16 * at : 16 * at + 16], message.tokens[8 * at : 8 * at + 8]) for at in rows]
