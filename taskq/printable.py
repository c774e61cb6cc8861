"""Text that comes from elsewhere, made fit for a terminal and for a log: nothing in it moves a cursor, hides a word or begins a line of its own.

Control characters and those that turn the direction of writing are shown as escapes (\\x1b, \\u202e), a long value loses its end.  Logs go through
`LogFormatter`, which treats every value and every line so, whoever logs it; what is printed for people goes through `printable`.
"""

from __future__ import annotations

import logging
import re
from typing import Any

# C0 and C1 controls, line and paragraph separators, marks and overrides of direction, lone surrogates, the invisible, byte order mark
UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")
UNFIT_IN_LINES = re.compile(UNFIT.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
VALUE_CHARACTERS_MAX = 512
PLAIN = (int, float, bool, type(None))


def printable(text: str, characters_max: int = VALUE_CHARACTERS_MAX) -> str:
    """One line, at most so long."""
    cut = text if len(text) <= characters_max else text[: characters_max - 1] + "…"
    return UNFIT.sub(_escaped, cut)


def printable_lines(text: str) -> str:
    """All of it, with its line ends and tabs."""
    return UNFIT_IN_LINES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class LogFormatter(logging.Formatter):
    """A record of ours is one line; the lines of a traceback are indented below it, so that none of them passes for a record.  What the code of a
    user logs in a worker is said as it is."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name.partition(".")[0] != "taskq":
            return super().format(record)
        shown = logging.makeLogRecord(record.__dict__)
        shown.args = _fit(record.args)
        shown.msg, shown.args = UNFIT.sub(_escaped, shown.getMessage()), None
        shown.exc_text = None
        return super().format(shown)

    def formatException(self, ei: Any) -> str:
        return "\n".join("    " + line for line in printable_lines(super().formatException(ei)).splitlines())


def _fit(args: Any) -> Any:
    if isinstance(args, tuple):
        return tuple(value if isinstance(value, PLAIN) else printable(str(value)) for value in args)
    return args


def log_to_stderr(level: int, form: str, others: int = logging.WARNING) -> None:
    """Our own records from this level on, those of libraries from another: what they tell of their work has its arguments in it, and those are
    payloads."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(form))
    logging.basicConfig(level=others, handlers=[handler])
    logging.getLogger("taskq").setLevel(level)
