"""The way out, for messages: what to send instead of a value that is no plain data, what to write instead of an option that does not exist.

It is asked when something is refused already, so it may take its time, and it must never raise.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import difflib
import enum
import inspect
import io
import pathlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

PLAIN = "send plain data: None, bool, int, float, str, bytes, and lists and dicts of them"
# words of other queues → what to write here
ELSEWHERE = {
    "retries": "max_attempts",
    "max_retries": "max_attempts",
    "retry": "max_attempts, backoff_base, retry_on",
    "attempts": "max_attempts",
    "max_tries": "max_attempts",
    "time_limit": "timeout",
    "soft_time_limit": "timeout",
    "job_timeout": "timeout",
    "default_retry_delay": "backoff_base",
    "retry_delay": "backoff_base",
    "retry_backoff": "backoff_base",
    "min_backoff": "backoff_base",
    "backoff": "backoff_base",
    "retry_backoff_max": "backoff_max",
    "max_backoff": "backoff_max",
    "autoretry_for": "retry_on",
    "retry_for": "retry_on",
    "throws": "no_retry_on",
    "dont_autoretry_for": "no_retry_on",
    "queue_name": "queue",
    "routing_key": "queue",
    "actor_name": "name",
    "task_name": "name",
    "task_id": "id",
    "job_id": "id",
    "countdown": "delay",
    "eta": "delay",
    "defer_by": "delay",
    "idempotency_key": "key",
    "executor": "pool",
}
# settings of the function that hold for one enqueue as well, and the other way round
FOR_ONE_ENQUEUE = ("delay", "key", "id", "deadline")
OF_THE_TASK = {"backoff_base": "retry", "backoff_factor": "retry", "backoff_max": "retry"}


def unknown_option(name: str, known: Collection[str]) -> str:
    """`unknown option 'retries'; write max_attempts; known are …`."""
    text = f"unknown option {name!r}"
    if name in FOR_ONE_ENQUEUE:
        text += f"; it belongs to one enqueue: task.options({name}=…).enqueue(…)"
    else:
        meant = [each for each in (OF_THE_TASK.get(name) or ELSEWHERE.get(name, "")).split(", ") if each in known]
        if meant:
            text += f"; write {' or '.join(meant)}"
        elif near := did_you_mean(name, known):
            text += f"; {near}"
    return f"{text}; known are {', '.join(known)}"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`did you mean send_email`, "" if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]}" if near else ""


def instead(value: Any) -> str:
    """What to send instead of this value."""
    try:
        return next((advice for is_that, advice in VALUES if is_that(value)), PLAIN)
    except BaseException:  # a value with a will of its own
        return PLAIN


def _is_a(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, type) and all(hasattr(type(value), name) for name in names)


VALUES: Sequence[tuple[Callable[[Any], bool], str]] = (
    (_is_a(datetime.datetime, datetime.date, datetime.time), "send value.isoformat()"),
    (_is_a(datetime.timedelta), "send value.total_seconds()"),
    (_is_a(uuid.UUID, decimal.Decimal, pathlib.PurePath), "send str(value)"),
    (_is_a(enum.Enum), "send value.value"),
    (_is_a(complex), "send [value.real, value.imag]"),
    (inspect.iscoroutine, "await it; a wrapper of an async function must be async def itself"),
    (inspect.isawaitable, "await it first"),
    (inspect.isasyncgen, "send [item async for item in value]"),
    (inspect.isgenerator, "send list(value)"),
    (_has("task_type", "enqueue"), "send its name, and enqueue it by name with a client"),
    (_has("result_sync", "cancel_sync"), "send handle.id"),
    (_is_a(io.IOBase), "send its path or what was read from it"),
    (_has("model_dump"), 'send value.model_dump(mode="json")'),
    (_has("__attrs_attrs__"), "send attrs.asdict(value)"),
    (lambda value: dataclasses.is_dataclass(value) and not isinstance(value, type), "send dataclasses.asdict(value)"),
    (_has("tolist", "dtype"), "send value.tolist()"),
    (_is_a(Mapping), "send dict(value)"),
    (_is_a(Set, range), "send list(value)"),
    (_has("__next__"), "send list(value)"),
    (_is_a(Sequence), "send list(value)"),
    (_has("appendleft"), "send list(value)"),
    (_is_a(BaseException), "raise it, or send str(value)"),
    (inspect.ismodule, "send its name"),
    (callable, "send its name, and look the function up in the task"),
)
