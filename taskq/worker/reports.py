"""Outcomes collected over one turn of the loop and made into the fewest frames: Ack, Fail and Release, each for up to 1,000 tasks and 1 MiB, or less
if the broker takes less.  What one task brings is bounded here, wherever it comes from.

PURE.  What must not be known here: connections, pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import attrs

from taskq.core import messages as m
from taskq.foreign import CLASS_BYTES_MAX, shortened
from taskq.worker.failure import DELAY_MS_MAX, ERROR_BYTES_MAX
from taskq.worker.job import Handback, Job, Outcome
from taskq.worker.registry import Verdict

FRAME_TASKS_MAX = 1_000
FRAME_BYTES = 1 << 20
# of these: what is around all tasks, and what each has beside its result or texts (id, token, numbers, lengths)
AROUND_BYTES = 1_024
ROW_BYTES = 64

Report: TypeAlias = m.Ack | m.Fail | m.Release
T = TypeVar("T")


@attrs.define
class Reports:
    """What ended and was not made into a frame yet."""

    payload_bytes_max: int = FRAME_BYTES
    frame_bytes: int = FRAME_BYTES
    _done: list[tuple[Job, bytes]] = attrs.field(factory=list)
    _failed: list[tuple[Job, Verdict]] = attrs.field(factory=list)
    _given_back: list[tuple[Job, Handback]] = attrs.field(factory=list)

    def heed(self, limits: dict[str, Any]) -> None:
        """The limits that the broker told in WELCOME."""
        self.payload_bytes_max = limits.get("payload_bytes_max") or self.payload_bytes_max
        frame_bytes_max = limits.get("frame_bytes_max") or FRAME_BYTES + AROUND_BYTES
        self.frame_bytes = max(1, min(FRAME_BYTES, frame_bytes_max - AROUND_BYTES))

    def add(self, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, bytes):
            if len(outcome) <= self.payload_bytes_max:
                self._done.append((job, outcome))
            else:
                self._failed.append((job, self._too_large(job, outcome)))
        elif isinstance(outcome, Verdict):
            self._failed.append((job, _bounded(outcome)))
        else:
            self._given_back.append((job, Handback(min(outcome.delay_ms, DELAY_MS_MAX))))

    def _too_large(self, job: Job, result: bytes) -> Verdict:
        limit = self.payload_bytes_max
        text = f"the result of {job.task_type} has {len(result)} bytes, more than the broker's {limit}; store it elsewhere and return a reference"
        return Verdict(m.DISCARD, 0, "PayloadTooLarge", text)

    def take(self) -> list[Report]:
        """All that was added, as messages."""
        done, failed, given_back = self._done, self._failed, self._given_back
        self._done, self._failed, self._given_back = [], [], []
        messages: list[Report] = [_ack(rows) for rows in self._chunks(done, len)]
        messages += [_fail(rows) for rows in self._chunks(failed, _text_bytes)]
        messages += [_release(rows) for rows in self._chunks(given_back, lambda handback: 0)]
        return messages

    def _chunks(self, rows: list[tuple[Job, T]], size_of: Callable[[T], int]) -> Iterator[list[tuple[Job, T]]]:
        """At most FRAME_TASKS_MAX rows, and no row that would bring the frame over its size unless it is alone."""
        sizes = [size_of(outcome) + ROW_BYTES for _, outcome in rows]
        if len(rows) <= FRAME_TASKS_MAX and sum(sizes) <= self.frame_bytes:
            if rows:
                yield rows
            return
        begin = size = 0
        for end, more in enumerate(sizes):
            if end > begin and (end - begin == FRAME_TASKS_MAX or size + more > self.frame_bytes):
                yield rows[begin:end]
                begin, size = end, 0
            size += more
        yield rows[begin:]


def _bounded(verdict: Verdict) -> Verdict:
    """The texts of some verdicts come from other processes."""
    error_type, error = shortened(verdict.error_type, CLASS_BYTES_MAX), shortened(verdict.error, ERROR_BYTES_MAX)
    return Verdict(verdict.disposition, min(verdict.delay_ms, DELAY_MS_MAX), error_type, error)


def _text_bytes(verdict: Verdict) -> int:
    return len(verdict.error_type.encode()) + len(verdict.error.encode())


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
