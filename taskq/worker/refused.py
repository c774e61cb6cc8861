"""What becomes of a report that the broker does not take.  It is never sent again as it was, and never dropped: its task would run again, for ever.

    of many tasks → one for each → Ack, Release: a Fail that says why → Fail: the same without what may be wrong with it → nothing is left

A broker that ends the connection does not say which report it could not take.  So what was on its way becomes *suspect*, and suspects are sent one at
a time: the innocent ones arrive, the guilty one is alone when it is refused.

PURE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import attrs

from taskq import ids
from taskq.core import messages as m
from taskq.core.records import column
from taskq.errors import TaskqError
from taskq.foreign import shortened
from taskq.worker.reports import Report

REASON_BYTES_MAX = 500
# how the text of a report begins that takes the place of a refused one
BEGINS = "the broker refused "
REFUSED: dict[type, str] = {m.Ack: "the result", m.Fail: "the error", m.Release: "to take it back"}


def instead(report: Report, error: TaskqError) -> list[Report]:
    """What to say instead; nothing if this was the last that could be said."""
    if len(report.tokens) > ids.TOKEN_BYTES:
        return singles(report)
    reason = plain(f"{BEGINS}{REFUSED[type(report)]}: {error.code}: {error}")
    if isinstance(report, m.Ack):
        return [_failed(report, m.DISCARD, 0, error.code, reason)]
    if isinstance(report, m.Release):
        return [_failed(report, m.RETRY, 0, error.code, reason)]
    if is_last(report):
        return []
    was = plain(f"{report.error_types[0]}: {report.errors[0]}")
    return [_failed(report, report.dispositions[0], report.delays_ms[0], error.code, f"{reason}\n{was}")]


def is_last(report: Report) -> bool:
    """Whether nothing could be told instead of it."""
    return isinstance(report, m.Fail) and len(report.tokens) == ids.TOKEN_BYTES and report.errors[0].startswith(BEGINS)


def named(report: Report) -> str:
    """For people: whose report it is."""
    count = len(report.tokens) // ids.TOKEN_BYTES
    return f"task {report.ids.hex()}" if count == 1 else f"{count} tasks"


def _failed(report: Report, disposition: int, delay_ms: int, error_type: str, text: str) -> m.Fail:
    return m.Fail(report.ids, report.tokens, [disposition], [delay_ms], [error_type], [text])


def plain(text: str) -> str:
    """What no broker can find anything wrong with: short, and ASCII."""
    return shortened(ascii(text)[1:-1], REASON_BYTES_MAX).encode("ascii", "replace").decode()


def singles(report: Report) -> list[Report]:
    """The same, one report for each task."""
    rows = zip(ids.split(report.ids, ids.ID_BYTES), ids.split(report.tokens, ids.TOKEN_BYTES), *_columns(report), strict=True)
    if isinstance(report, m.Ack):
        return [m.Ack([result], task_id, token, [encoding]) for task_id, token, result, encoding in rows]
    return [type(report)(task_id, token, *([value] for value in values)) for task_id, token, *values in rows]


def _columns(report: Report) -> list[Sequence[Any]]:
    count = len(report.tokens) // ids.TOKEN_BYTES
    if isinstance(report, m.Ack):
        return [report.payloads, column(report.encodings, count)]
    names = [field.name for field in attrs.fields(type(report))[2:]]
    return [column(getattr(report, name), count) for name in names]


@attrs.define
class Refusals:
    """Reports that are told anew.  `suspects` wait for the one that is `asked`."""

    suspects: deque[Report] = attrs.field(factory=deque)
    asked: Report | None = None

    def refused(self, report: Report, error: TaskqError, connection_ended: bool) -> list[Report]:
        """What to send now."""
        if connection_ended and report is not self.asked:
            self.suspects += singles(report)
            return self._next()
        told = instead(report, error)
        if report is self.asked:
            self.asked = None
        return told + self._next()

    def answered(self, report: Report) -> list[Report]:
        """What to send now."""
        if report is not self.asked:
            return []
        self.asked = None
        return self._next()

    def _next(self) -> list[Report]:
        if self.asked is not None or not self.suspects:
            return []
        self.asked = self.suspects.popleft()
        return [self.asked]
