"""What an exception says about the attempt that it ended, whatever the exception is like.

Exceptions are the user's code: their text, their class, their attributes and their causes can raise anything, be huge or deep, or be no Unicode.
Nothing in here raises for that: what cannot be had is replaced by words that say so.  Texts are bounded in bytes, since frames are.
"""

from __future__ import annotations

import traceback

from taskq.control import Discard, Retry
from taskq.foreign import class_name, is_one_of, shortened

ERROR_BYTES_MAX = 4_000
# of each exception the innermost frames; and how many exceptions (causes, members of groups) are looked at
FRAMES_MAX = 64
EXCEPTIONS_MAX = 100
DELAY_MS_MAX = 1 << 62


def type_name(exception: BaseException) -> str:
    """`ValueError`, `myapp.errors.NoSuchUser`."""
    return class_name(type(exception))


def error_text(exception: BaseException, bytes_max: int = ERROR_BYTES_MAX) -> str:
    """The error for people: a control exception's own words, else the traceback.  A long text loses its middle; what is not Unicode is escaped."""
    for tell in (_words, _traceback, _frames):
        try:
            text = tell(exception)
            if text is not None:
                return shortened(text, bytes_max)
        except BaseException:
            continue
    return f"{type_name(exception)}, which cannot be shown"


def _words(exception: BaseException) -> str | None:
    """What a control exception says; None if it says nothing, or there is more to tell."""
    if not is_one_of(exception, (Discard, Retry)) or exception.__cause__ is not None:
        return None
    return str(exception) or None


def _traceback(exception: BaseException) -> str | None:
    """As Python shows it; None if there are too many exceptions behind it to format them all."""
    if not _are_few(exception):
        return None
    return "".join(traceback.format_exception(exception, limit=-FRAMES_MAX)).rstrip()


def _are_few(exception: BaseException) -> bool:
    seen: set[int] = set()
    found: list[BaseException | None] = [exception]
    while found and len(seen) <= EXCEPTIONS_MAX and len(found) <= EXCEPTIONS_MAX:
        each = found.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            found += (each.__cause__, each.__context__)
            if isinstance(each, BaseExceptionGroup):
                found += each.exceptions[: EXCEPTIONS_MAX + 1]
    return not found


def _frames(exception: BaseException) -> str:
    """Where it was raised, without asking the exception for anything but that, and its own text if it has one."""
    places = traceback.format_tb(exception.__traceback__, limit=-FRAMES_MAX)
    try:
        own = shortened(str(exception), ERROR_BYTES_MAX // 2)
    except BaseException as error:
        own = f"its text cannot be shown, since {type_name(error)} is raised by it"
    return "".join(["Traceback (most recent call last):\n", *places, f"{type_name(exception)}: {own}"])


def delay_of(exception: BaseException, name: str) -> int | None:
    """The delay that a control exception has under this name, in milliseconds; None if it has none, or nothing that can be one."""
    try:
        delay_ms = getattr(exception, name, None)
        return delay_ms if type(delay_ms) is int and 0 <= delay_ms <= DELAY_MS_MAX else None
    except BaseException:
        return None
