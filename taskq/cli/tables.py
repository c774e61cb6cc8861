"""How answers look: tables for people, JSON for programs.

On a terminal with rich installed a table is drawn with it, else it is plain aligned text; both come from the same rows.  Times are shown in the
local zone, to the second.  A value is cut to what a line can carry; `--json` always has all of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from taskq.printable import UNFIT, printable, printable_lines

CELL_CHARACTERS_MAX = 300
GAP = "  "


@attrs.frozen
class Column:
    """A column: its heading, the key in the row, whether it is a number."""

    heading: str
    key: str
    number: bool = False


QUEUES = (
    Column("queue", "queue"),
    *(Column(state, state, number=True) for state in ("pending", "running", "scheduled", "waiting", "retrying", "failed")),
    Column("workers", "workers", number=True),
)
WORKERS = (
    Column("name", "name"),
    Column("host", "host"),
    Column("pid", "pid", number=True),
    Column("version", "version"),
    Column("running", "running", number=True),
    Column("concurrency", "concurrency", number=True),
    Column("queues", "queues"),
    Column("task types", "task_types"),
)
TASK_TYPES = (
    Column("name", "name"),
    Column("queue", "queue"),
    Column("priority", "priority", number=True),
    Column("attempts", "max_attempts", number=True),
    Column("timeout ms", "timeout_ms", number=True),
    Column("retry", "retry"),
    Column("declared by", "worker"),
    Column("declared", "declared_ms"),
)
TOKENS = (Column("name", "name"), Column("scopes", "scopes"), Column("created", "created_ms"))
ATTEMPTS = (
    Column("attempt", "number", number=True),
    Column("worker", "worker"),
    Column("started", "started_ms"),
    Column("ended", "ended_ms"),
    Column("outcome", "outcome"),
    Column("error", "error"),
)


def print_json(value: Any) -> None:
    """JSON escapes the older control characters by itself; the others are escaped in its own way, so that it reads back as it was."""
    print(UNFIT.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False, default=jsonable)))


def print_text(text: str) -> None:
    """A result with its lines.  It may do nothing but be read, in a pipe too, which may end on a terminal; `--json` has it as it is."""
    print(printable_lines(text))


def jsonable(value: Any) -> Any:
    """What JSON has no word for: bytes as hex digits, anything else as its text."""
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def cell(value: Any, key: str = "") -> str:
    """One value on one line."""
    if value is None or value == "":
        return "-"
    if key.endswith("_ms"):
        return moment(value)
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value)) or "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=jsonable)
    return printable(text.strip().replace("\n", " ⏎ "), CELL_CHARACTERS_MAX)


def moment(ms: int) -> str:
    if not ms:
        return "-"
    import datetime

    return datetime.datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S")


def print_table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> None:
    cells = [[cell(row.get(column.key), column.key) for column in columns] for row in rows]
    if not _draw_with_rich(columns, cells):
        for line in aligned(columns, cells):
            print(line)


def _draw_with_rich(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> bool:
    if not sys.stdout.isatty():
        return False
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.number else "left", overflow="fold")
    for row in cells:
        table.add_row(*(_plain(text) for text in row))
    Console(highlight=False).print(table)
    return True


def _plain(text: str) -> Any:
    """Text that rich shows as it is, whatever brackets are in it."""
    from rich.text import Text

    return Text(text)


def aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a plain table: numbers to the right, the rest to the left, no spaces at the end."""
    widths = [max(len(column.heading), *(len(row[at]) for row in cells), 0) for at, column in enumerate(columns)]
    heading = [column.heading for column in columns]
    return [
        GAP.join(text.rjust(width) if column.number else text.ljust(width) for text, width, column in zip(row, widths, columns, strict=True)).rstrip()
        for row in (heading, *cells)
    ]


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    width = max(len(name) for name, _ in fields)
    for name, text in fields:
        print(f"{name.ljust(width)}{GAP}{printable(text)}")
