"""What to send instead of a value that is no plain data, for messages.

It is asked when the value was refused already, so it may take its time; it must never raise.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import io
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

PLAIN = "send plain data: None, bool, int, float, str, bytes, and lists and dicts of them"


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
