"""The options of an enqueue: as users write them, as the wire has them, and the one table that leads from the first to the second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import attrs

from taskq import ids
from taskq.advice import unknown_option
from taskq.core import messages as m
from taskq.core.messages import ATTEMPTS_MAX, FACTOR_MAX, HORIZON_MS, KEY_CHARS_MAX
from taskq.durations import Duration, milliseconds, seconds
from taskq.errors import echo
from taskq.worker.registry import check_name, check_priority


class EnqueueOptions(TypedDict, total=False):
    """As users write them.  `priority`: 0 (first) … 9 (last) or critical, high, normal, low, bulk.  `retry`: (base, factor, longest) of the backoff.
    `key`: text that makes the enqueue idempotent in its queue.  `id`: one of ours, sent again.  `deadline`: how long to try."""

    queue: str
    priority: int | str
    max_attempts: int
    timeout: Duration | None
    retry: tuple[Duration, float, Duration] | None
    delay: Duration
    key: str | None
    id: str | None
    deadline: Duration | None


@attrs.frozen
class Options:
    """Checked, and in the terms of the wire."""

    queue: str = m.DEFAULT_QUEUE
    priority: int = m.DEFAULT_PRIORITY
    max_attempts: int = m.DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = 0
    retry: tuple[int, float, int] | None = None
    delay_ms: int = 0
    key: str | None = None
    id: bytes | None = None
    deadline_s: float | None = None

    def but(self, changes: EnqueueOptions) -> Options:
        """These options with some changed; ValueError or TypeError names the one that is not valid."""
        if not changes:
            return self
        checked: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in CHECKS:
                raise TypeError(unknown_option(name, CHECKS))
            field, check = CHECKS[name]
            checked[field] = check(value)
        return attrs.evolve(self, **checked)


def of_call(task_type: str, changes: EnqueueOptions, declared: Options | None = None) -> Options:
    """The options of an enqueue by name: what is not said is as the task type was declared.  One that does not exist is most likely an argument of
    the task."""
    for name in changes.keys() - CHECKS.keys():
        raise TypeError(f"{unknown_option(name, CHECKS)}; arguments of the task go into a dict: enqueue({echo(task_type)}, {{{echo(name)}: …}})")
    return (declared or DEFAULTS).but(changes)


def of_row(row: Mapping[str, Any]) -> Options:
    """A row of INSPECT `types`."""
    retry = row["retry"]
    return Options(row["queue"], row["priority"], row["max_attempts"], row["timeout_ms"], None if retry is None else tuple(retry))


def check_attempts(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= ATTEMPTS_MAX:
        raise ValueError(f"max_attempts: {echo(value)} is not a whole number from 1 to {ATTEMPTS_MAX:,}")
    return value


def check_timeout(value: Duration | None) -> int:
    """Milliseconds; None and 0 mean no timeout."""
    return 0 if value is None else _within_horizon(value, "timeout")


def _within_horizon(value: Duration, name: str) -> int:
    """Milliseconds; more than the broker takes is refused here, where it has the name that people gave it."""
    found_ms = milliseconds(value, name)
    if found_ms > HORIZON_MS:
        raise ValueError(f"{name}: {value!r} is more than {HORIZON_MS // 86_400_000} days, the longest that there is")
    return found_ms


def check_retry(value: Any) -> tuple[int, float, int] | None:
    """(base, factor, longest) as (base_ms, factor, cap_ms); None for the broker's default."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        example = 'retry=("2s", 2.0, "1h"); how often it is tried is max_attempts'
        raise ValueError(f"retry: {echo(value)} is not (base, factor, longest) of the backoff, for example {example}")
    base, factor, longest = value
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= FACTOR_MAX:
        raise ValueError(f"backoff_factor: {echo(factor)} is not a number from 1 to {FACTOR_MAX:,}")
    base_ms, longest_ms = _within_horizon(base, "backoff_base"), _within_horizon(longest, "backoff_max")
    if base_ms > longest_ms:
        raise ValueError(f"backoff_base: {echo(base)} is longer than backoff_max, {echo(longest)}")
    return base_ms, float(factor), longest_ms


def check_key(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= KEY_CHARS_MAX or not _is_unicode(value):
        raise ValueError(f"key: {echo(value)} is not a text of 1 to {KEY_CHARS_MAX} characters")
    return value


def _is_unicode(text: str) -> bool:
    """False for lone surrogates, which no encoding can say."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_id(value: Any) -> bytes:
    """The 16 bytes of an id given as 32 hex digits or as bytes."""
    try:
        raw = value if isinstance(value, bytes) else bytes.fromhex(value)
    except (TypeError, ValueError):
        raw = b""
    if not ids.is_valid(raw):
        raise ValueError(f"id: {echo(value)} is not a task id (32 hex digits)")
    return raw


CHECKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "queue": ("queue", lambda value: check_name(value, "queue")),
    "priority": ("priority", check_priority),
    "max_attempts": ("max_attempts", check_attempts),
    "timeout": ("timeout_ms", check_timeout),
    "retry": ("retry", check_retry),
    "delay": ("delay_ms", lambda value: _within_horizon(value, "delay")),
    "key": ("key", check_key),
    "id": ("id", lambda value: None if value is None else check_id(value)),
    "deadline": ("deadline_s", lambda value: None if value is None else seconds(value, "deadline")),
}
DEFAULTS = Options()
