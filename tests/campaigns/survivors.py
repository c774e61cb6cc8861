"""What is left of a storm: the data folder is opened as a start would open it, and compared with what the broker had said."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import attrs
import msgpack

from campaigns.storm import data_of, result_of
from taskq.core.task import CANCELLED, COMPLETED, FAILED
from taskq.errors import StartError
from taskq.storage.base import Row
from taskq.storage.integrity import integrity_check
from taskq.storage.journal import FileJournal
from taskq.storage.recovery import recover
from taskq.storage.sqlite import SqliteStore

ROWS_MAX = 1_000_000
STATES = range(9)
ID, STATE, PAYLOAD, RESULT = 1, 4, 10, 11
FINALLY = {"D": COMPLETED, "F": FAILED, "C": CANCELLED}


@attrs.define
class Told:
    """What the broker said about one task: `said` is E, and D, F or C when it was final; when it said so first."""

    number: int
    said: dict[str, float] = attrs.field(factory=dict)


def told(marks: Iterable[tuple[str, float]]) -> dict[bytes, Told]:
    """Lines of a storm's marks with their times, by task id."""
    found: dict[bytes, Told] = {}
    for line, at_s in marks:
        letter, number, task_id = line.split()
        found.setdefault(bytes.fromhex(task_id), Told(int(number))).said[letter] = at_s
    return found


@attrs.define
class Findings:
    """`lost`: what was said and is not so, with the time at which it was said; `wrong`: rows that nobody can have asked for."""

    lost: list[tuple[float, str]] = attrs.field(factory=list)
    wrong: list[str] = attrs.field(factory=list)
    refused: str = ""
    tasks: int = 0


async def all_rows(store: SqliteStore) -> list[Row]:
    """The rows of all tasks, live ones by seq, then the finished ones."""
    live = await store.load(STATES, 0, ROWS_MAX)
    with closing(sqlite3.connect(store.path)) as connection:
        ids = [task_id for (task_id,) in connection.execute("SELECT id FROM finished ORDER BY place")]
    finished = (await store.find(ids, []))[-len(ids) :] if ids else []
    return [*live, *finished]


async def recovered(data: Path) -> list[Row]:
    """The rows of all tasks after a recovery.  Raises StartError."""
    store, journal = SqliteStore(data / "store.sqlite"), FileJournal(data / "journal")
    try:
        await recover(store, journal)
        journal.close()
        return await all_rows(store)
    finally:
        await store.release()


async def look(data: Path, known: dict[bytes, Told]) -> Findings:
    """Recover twice and compare."""
    findings = Findings()
    try:
        rows = await recovered(data)
        again = await recovered(data)
    except StartError as error:
        findings.refused = f"{type(error).__name__}: {error.message}"
        return findings
    findings.tasks = len(rows)
    if rows != again:
        findings.wrong.append("a second recovery comes out differently")
    findings.wrong += integrity_check(data / "store.sqlite")
    by_id = {row[ID]: row for row in rows}
    if len(by_id) != len(rows):
        findings.wrong.append(f"{len(rows) - len(by_id)} tasks are there twice")
    numbers = Counter(msgpack.unpackb(row[PAYLOAD])["number"] for row in rows)
    findings.wrong += [f"task {number} was made {count} times" for number, count in numbers.items() if count > 1]
    findings.wrong += [words for row in rows if (words := wrong_with(row))]
    for task_id, said in known.items():
        findings.lost += lost(task_id, said, by_id.get(task_id))
    return findings


def wrong_with(row: Row) -> str:
    """What is not as the storm made it; nothing if all is well."""
    payload = msgpack.unpackb(row[PAYLOAD])
    if payload["data"] != data_of(payload["number"]):
        return f"task {row[ID].hex()}: its payload is not that of number {payload['number']}"
    if row[STATE] == COMPLETED and msgpack.unpackb(row[RESULT]) != result_of(payload["number"]):
        return f"task {row[ID].hex()}: its result is not that of number {payload['number']}"
    return ""


def lost(task_id: bytes, said: Told, row: Row | None) -> list[tuple[float, str]]:
    if row is None or msgpack.unpackb(row[PAYLOAD])["number"] != said.number:
        return [(min(said.said.values()), f"task {said.number} ({task_id.hex()}) was acknowledged and is gone")]
    return [
        (at_s, f"task {said.number} ({task_id.hex()}) was said to be in state {FINALLY[letter]} and is in {row[STATE]}")
        for letter, at_s in said.said.items()
        if letter in FINALLY and row[STATE] != FINALLY[letter]
    ]
