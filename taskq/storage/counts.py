"""How many live rows of each queue, state, priority and task type the SQLite store has: kept in the table `counts`, in the same transactions.

To count ten million rows at a start takes longer than a start may.  A transaction notes what goes and comes in `Changes`; what is there before a
row is replaced is asked of SQLite, hundreds of rows at a time, and not at all for rows that are newer than all that it has.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from taskq.storage.base import COLUMNS, Count, Row
from taskq.storage.seal import BrokenSeal, seal_of_number

LINE = ("queue", "state", "priority", "task_type")
IDS_MAX = 500
_LINE = ", ".join(LINE)
_SAME = " AND ".join(f"{name} = ?" for name in LINE)
COUNT_ALL = f"SELECT {_LINE}, count(*) FROM tasks GROUP BY {_LINE}"
GET = f"SELECT {_LINE}, tasks, seal FROM counts"
GET_ONE = f"SELECT tasks FROM counts WHERE {_SAME}"
SET = f"INSERT OR REPLACE INTO counts ({_LINE}, tasks, seal) VALUES (?, ?, ?, ?, ?, ?)"
DROP = f"DELETE FROM counts WHERE {_SAME}"

LINE_OF = itemgetter(*map(COLUMNS.index, LINE))


@cache
def count_some(rows: int) -> str:
    return f"SELECT {_LINE}, count(*) FROM tasks WHERE seq IN ({', '.join('?' * rows)}) GROUP BY {_LINE}"


class Changes:
    """What one transaction changes: told before it is done, written at its end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._newest = connection.execute("SELECT max(seq) FROM tasks").fetchone()[0] or 0
        self._by: Counter[tuple[Any, ...]] = Counter()

    def go(self, seqs: Sequence[int]) -> None:
        """Rows with these seqs will be deleted or replaced, as far as they are there."""
        for begin in range(0, len(seqs), IDS_MAX):
            some = seqs[begin : begin + IDS_MAX]
            for *line, tasks in self._connection.execute(count_some(len(some)), some).fetchall():
                self._by[tuple(line)] -= tasks

    def come(self, rows: Sequence[Row]) -> None:
        """These rows, by seq, will be put."""
        if rows[0][0] <= self._newest:
            self.go([row[0] for row in rows])
        self._by.update(map(LINE_OF, rows))

    def write(self) -> None:
        for line, change in self._by.items():
            if change:
                before = self._connection.execute(GET_ONE, line).fetchone()
                _set(self._connection, line, change + (before[0] if before else 0))


def _set(connection: sqlite3.Connection, line: tuple[Any, ...], tasks: int) -> None:
    if tasks:
        connection.execute(SET, (*line, tasks, seal_of_number(repr(line), tasks)))
    else:
        connection.execute(DROP, line)


def count_all(connection: sqlite3.Connection) -> None:
    """Make them anew from the rows."""
    for *line, tasks in connection.execute(COUNT_ALL).fetchall():
        _set(connection, tuple(line), tasks)


def check_counts(connection: sqlite3.Connection) -> None:
    """Count the rows, and compare.  Raises BrokenSeal."""
    counted = {tuple(line): tasks for *line, tasks in connection.execute(COUNT_ALL)}
    if counted != {tuple(line): tasks for *line, tasks, _ in connection.execute(GET)}:
        raise BrokenSeal("table counts does not say what table tasks has")


def read_counts(connection: sqlite3.Connection) -> list[Count]:
    """Raises BrokenSeal."""
    rows = connection.execute(GET).fetchall()
    for *line, tasks, seal in rows:
        if seal_of_number(repr(tuple(line)), tasks) != seal:
            raise BrokenSeal(f"the count of {line} in table counts is not as it was written")
    return [Count(*row[:5]) for row in rows]
