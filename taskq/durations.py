"""Durations as people write them: seconds as a number, a `timedelta`, or text such as "1h30m", "90s", "250ms", "1.5h".

The units are ms, s, m, h, d and w; text without a unit means seconds, and has at most TEXT_CHARACTERS_MAX.  Negative, infinite and unknown values
are refused, with the name of the option in the message.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeAlias

from taskq.errors import echo

Duration: TypeAlias = float | timedelta | str

UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
TEXT_CHARACTERS_MAX = 64
# matched where the part before ended, never searched for
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|w)\s*")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
SECONDS_MAX = 100 * 366 * 86400.0


def seconds(value: Duration, name: str = "duration") -> float:
    """The duration in seconds; ValueError or TypeError that names the option and the way out."""
    if isinstance(value, timedelta):
        found = value.total_seconds()
    elif isinstance(value, str):
        found = _of_text(value, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        found = _of_number(value)
    else:
        raise TypeError(f"{name}: expected seconds as a number, a timedelta or text like '1h30m', not {type(value).__name__}")
    if not math.isfinite(found) or not 0 <= found <= SECONDS_MAX:
        raise ValueError(f"{name}: {echo(value)} is not between 0 seconds and 100 years")
    return found


def milliseconds(value: Duration, name: str = "duration") -> int:
    """The duration in whole milliseconds, as it goes on the wire.  More than nothing never becomes nothing."""
    found = seconds(value, name)
    return max(1, round(found * 1000)) if found > 0 else 0


def _of_number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _of_text(text: str, name: str) -> float:
    if len(text) > TEXT_CHARACTERS_MAX:
        raise ValueError(f"{name}: {echo(text)} is longer than {TEXT_CHARACTERS_MAX} characters; write for example '30s', '1h30m' or '250ms'")
    stripped = text.strip().lower()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    at, total = 0, 0.0
    while part := _PART.match(stripped, at):
        total += float(part[1]) * UNIT_SECONDS[part[2]]
        at = part.end()
    if at != len(stripped) or not stripped:
        raise ValueError(f"{name}: {echo(text)} is not a duration; write for example '30s', '1h30m' or '250ms'")
    return total
