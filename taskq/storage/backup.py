"""Backup: a copy of a data folder, taken while its broker runs or stands still, brought to the state of a clean stop and checked.

The order makes it one moment of a broker that goes on working: first the journal, then a snapshot of the store.  What was acknowledged before
the backup began is in one of them, and replaying the copied journal into the copied store is the recovery that every start runs, which takes
of the journal what the store does not have.  So a backup that was made has been restored once.

Rules.  The source is only read.  A broker is never kept waiting: a snapshot in WAL mode stops no writer.  The epoch of the copy is far ahead,
so that no token which the broker gives out after the backup is ever given out by a restored one.  The target appears at once and whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

from taskq.errors import StartError, StoreCorrupt
from taskq.storage.base import WriteBatch
from taskq.storage.integrity import integrity_check
from taskq.storage.journal import FileJournal
from taskq.storage.recovery import recover
from taskq.storage.sqlite import SqliteStore

STORE, JOURNAL = "store.sqlite", "journal"
# what else a start reads; each may be missing
KEYS = ("secret.key", "tokens.json", "task_types.json")
# more starts than a broker makes between a backup and the day on which it is restored
EPOCHS_AHEAD = 4_096
TRIES = 20


@attrs.frozen
class Backup:
    """What was made.  `tasks`: live tasks and dead letters in it; `lsn`: the last record of the journal that it contains."""

    path: Path
    tasks: int
    lsn: int
    size_bytes: int
    seconds: float


async def backup(data: Path, target: Path) -> Backup:
    """Make `target`, a folder that must not be there yet.  Raises StartError (no data folder, target exists), JournalCorrupt, StoreCorrupt,
    OSError; nothing is left behind then."""
    began_s = time.monotonic()
    if not (data / STORE).is_file():
        raise StartError(f"{data} is no data folder: there is no {STORE}; name the broker's folder with --data")
    if target.exists():
        raise StartError(f"{target} exists; name a folder that does not, each backup has its own")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with _standing_still(data) as still:
            if still:
                _copy_all(data, making)
            else:
                _copy_running(data, making)
        tasks, lsn = await _restore(making)
        _sync_all(making)
        making.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Backup(target, tasks, lsn, size_bytes, time.monotonic() - began_s)


# ---- copying -----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _standing_still(data: Path) -> Iterator[bool]:
    """Whether no broker uses the folder; none can start then until this ends."""
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        still = True
    except BlockingIOError:
        still = False
    try:
        yield still
    finally:
        os.close(fd)


def _copy_all(data: Path, making: Path) -> None:
    """Nobody writes: the files as they are.  SQLite reads what a kill left in the -wal; the -shm means nothing without a process."""
    for name in (STORE, f"{STORE}-wal", *KEYS):
        if (data / name).exists():
            _copy(data / name, making / name)
    (making / JOURNAL).mkdir(mode=0o700)
    for segment in _segments(data):
        _copy(segment, making / JOURNAL / segment.name)


def _copy_running(data: Path, making: Path) -> None:
    """A broker writes meanwhile: the journal as far as it is whole, then a snapshot of the store, which is at least as new as its front."""
    for name in KEYS:
        if (data / name).exists():
            _copy(data / name, making / name)
    with closing(sqlite3.connect(f"{(data / STORE).absolute().as_uri()}?mode=ro", uri=True)) as source:
        end_lsn = _copy_journal(data, making, source)
        os.close(os.open(making / STORE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(sqlite3.connect(making / STORE)) as copy:
            source.backup(copy)
            if end_lsn <= _applied_lsn(copy):  # it was flushed meanwhile: the store has all that was copied, and more
                shutil.rmtree(making / JOURNAL)


def _applied_lsn(store: sqlite3.Connection) -> int:
    found = store.execute("SELECT value FROM meta WHERE name = 'applied_lsn'").fetchone()
    return int(found[0]) if found else 0


def _copy_journal(data: Path, making: Path, source: sqlite3.Connection) -> int:
    """The last LSN that was copied.  A flush meanwhile lets the broker remove segments and say in the journal that the store is further than was
    read: begin again then."""
    folder = making / JOURNAL
    for _ in range(TRIES):
        applied_lsn = _applied_lsn(source)
        folder.mkdir(mode=0o700)
        try:
            for segment in _segments(data):
                _copy(segment, folder / segment.name)
            still = _applied_lsn(source) == applied_lsn
        except FileNotFoundError:
            still = False
        if not still:
            shutil.rmtree(folder)
            continue
        # the newest batch may have been copied while it was written: it is cut here, before a newer store claims to have applied it
        copied = FileJournal(folder)
        for _batch in copied.read(applied_lsn):
            pass
        return copied.end_lsn
    raise StartError(f"{data / JOURNAL}: its files changed faster than they could be copied, {TRIES} times; try again when there is less to do")


def _segments(data: Path) -> list[Path]:
    return sorted((data / JOURNAL).glob("*.log"))


def _copy(source: Path, target: Path) -> None:
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as written, source.open("rb") as read:
        shutil.copyfileobj(read, written, 1 << 20)


# ---- restoring it once ---------------------------------------------------------------------------------------------------------------


async def _restore(making: Path) -> tuple[int, int]:
    """Recover the copy, close it as a clean stop does, and look at all of it; how many tasks there are, and the last LSN."""
    store, journal = SqliteStore(making / STORE), FileJournal(making / JOURNAL)
    try:
        recovered = await recover(store, journal)
        await store.commit(WriteBatch({"epoch": recovered.epoch + EPOCHS_AHEAD}))
        tasks = sum(count.tasks for count in await store.counts())
        if found := integrity_check(store.path):
            raise StoreCorrupt(f"{STORE}: {found[0]}; the store that was copied is damaged, and so is probably the original")
        await store.checkpoint()
        journal.close(empty=True)
    finally:
        journal.release()
        await store.close()
    return tasks, recovered.next_lsn - 1


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
