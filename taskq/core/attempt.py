"""The attempts of a task: how its runs ended, with the texts of their errors, which may be large.

The newest HISTORY_MAX are kept.  Their texts have TEXTS_BYTES_MAX together: the newest come first, and the older ones get what is left.  A text
is in memory until a flush has it in the store (`lean`); from then on its place is None, and who wants to show it asks the store (`with_texts`).
Short texts stay, since to leave them out would save nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs

HISTORY_MAX = 20
ERROR_BYTES_MAX = 16_384
ERROR_TYPE_BYTES_MAX = 256
TEXTS_BYTES_MAX = 2 * ERROR_BYTES_MAX
SHORT_CHARS = 64


@attrs.frozen
class Attempt:
    """One run: `outcome` is completed, failed, crashed, interrupted, snoozed, cancelled or undelivered; times are Unix milliseconds.  `error` None:
    the store has the text."""

    number: int
    worker: str
    started_ms: int
    ended_ms: int
    outcome: str
    error_type: str = ""
    error: str | None = ""

    @property
    def is_lean(self) -> bool:
        return self.error is None or len(self.error) <= SHORT_CHARS

    def with_error(self, error: str | None) -> Attempt:
        return Attempt(self.number, self.worker, self.started_ms, self.ended_ms, self.outcome, self.error_type, error)

    def fields(self) -> tuple[Any, ...]:
        """As rows keep it."""
        return self.number, self.worker, self.started_ms, self.ended_ms, self.outcome, self.error_type, self.error

    def is_same_run(self, other: Attempt) -> bool:
        return (self.number, self.started_ms, self.ended_ms, self.outcome) == (other.number, other.started_ms, other.ended_ms, other.outcome)


History = tuple[Attempt, ...]


def cut(text: str, bytes_max: int) -> str:
    """The beginning of the text that has so many bytes in UTF-8, at most; no character is cut through."""
    if len(text) * 4 <= bytes_max:
        return text
    encoded = text[:bytes_max].encode(errors="replace")
    return text if len(text) <= bytes_max and len(encoded) <= bytes_max else encoded[:bytes_max].decode(errors="ignore")


def lean(history: History) -> History:
    """Without the texts that are not short."""
    if all(attempt.is_lean for attempt in history):
        return history
    return tuple([attempt if attempt.is_lean else attempt.with_error(None) for attempt in history])


def lacks_texts(history: Iterable[Attempt]) -> bool:
    return any(attempt.error is None for attempt in history)


def with_texts(history: Sequence[Attempt], stored: Iterable[Attempt]) -> History:
    """The history with the texts that it lacks, from one that was stored before, and all of them within their bound."""
    before = iter(stored)
    whole = [attempt if attempt.error is not None else attempt.with_error(_text_of(attempt, before)) for attempt in history]
    room = TEXTS_BYTES_MAX
    for at in range(len(whole) - 1, -1, -1):
        text = whole[at].error
        if not text:
            continue
        kept = cut(text, room)
        room -= len(kept.encode(errors="replace"))
        if kept is not text:
            whole[at] = whole[at].with_error(kept)
    return tuple(whole)


def _text_of(attempt: Attempt, before: Iterable[Attempt]) -> str:
    """Both histories have the same order, so each search goes on where the last one ended."""
    return next((other.error or "" for other in before if other.is_same_run(attempt)), "")
