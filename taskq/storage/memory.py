"""The reference engines: a Store and a Journal in plain Python containers, deterministic, for tests, simulations and brokers without a disk.

Both outlive the object that serves them, as a disk would: `MemoryStore(contents)` opens what an earlier store left, and
`MemoryJournal.crash(keep_unsynced)` is the journal that a broker would find after a power loss.  They know no rule about tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

import attrs

from taskq.ids import ms_of_id
from taskq.storage.base import AHEAD_ID_MS, COLUMNS, META_COLUMN, PRUNED_ID_MS, Capabilities, Count, JournalBatch, Pruned, Retention, Row, WriteBatch
from taskq.storage.texts import completed

SEQ, ID, QUEUE, TASK_TYPE, STATE, PRIORITY, POSITION, DUE_MS, FINISHED_MS, KEY = range(10)
# states as in core/task.py: scheduled and retrying, and of a dead letter
_TIMED = (0, 4)
_FAILED = 6


@attrs.define
class Contents:
    """What a MemoryStore holds: rows of live tasks and dead letters by seq, finished rows in their order."""

    meta: dict[str, int] = attrs.field(factory=dict)
    tasks: dict[int, Row] = attrs.field(factory=dict)
    finished: list[Row] = attrs.field(factory=list)


def _own(rows: Iterable[Row]) -> list[Row]:
    """The rows with every buffer copied to bytes, as an engine on disk gives them back."""
    views = (memoryview, bytearray)
    return [tuple(bytes(value) if isinstance(value, views) else value for value in row) for row in rows]


def _check(rows: list[Row]) -> None:
    for row in rows:
        if len(row) != len(COLUMNS):
            raise ValueError(f"a row has {len(COLUMNS)} columns, not {len(row)}")


class MemoryStore:
    """A Store in dicts.  `contents` is its disk."""

    capabilities = Capabilities("memory", durable=False)

    def __init__(self, contents: Contents | None = None) -> None:
        self.contents = Contents() if contents is None else contents

    async def open(self) -> dict[str, int]:
        return dict(self.contents.meta)

    async def counts(self) -> list[Count]:
        lines = Counter((row[QUEUE], row[STATE], row[PRIORITY], row[TASK_TYPE]) for row in self.contents.tasks.values())
        return [Count(*line, tasks) for line, tasks in sorted(lines.items())]

    async def load(self, states: Sequence[int], after_seq: int, limit: int) -> list[Row]:
        rows = (row for seq, row in self.contents.tasks.items() if seq > after_seq and row[STATE] in states)
        return sorted(rows, key=lambda row: row[SEQ])[:limit]

    async def line(self, queue: str, priority: int, task_type: str, state: int, after_position: int, limit: int) -> list[Row]:
        wanted = (queue, priority, task_type, state)
        lines = (row for row in self.contents.tasks.values() if (row[QUEUE], row[PRIORITY], row[TASK_TYPE], row[STATE]) == wanted)
        return sorted((row for row in lines if row[POSITION] > after_position), key=lambda row: (row[POSITION], row[SEQ]))[:limit]

    async def due(self, after_ms: int, after_seq: int, limit: int) -> list[Row]:
        timed = (row for row in self.contents.tasks.values() if row[STATE] in _TIMED and (row[DUE_MS], row[SEQ]) > (after_ms, after_seq))
        return sorted(timed, key=lambda row: (row[DUE_MS], row[SEQ]))[:limit]

    async def find(self, ids: Sequence[bytes], keys: Sequence[tuple[str, str]]) -> list[Row]:
        by_id, by_key = {bytes(id_) for id_ in ids}, set(keys)
        live = sorted(self.contents.tasks.values(), key=lambda row: row[SEQ])
        return [row for row in (*live, *self.contents.finished) if row[ID] in by_id or (row[QUEUE], row[KEY]) in by_key]

    async def newest_id(self, until: bytes) -> bytes:
        rows = (*self.contents.tasks.values(), *self.contents.finished)
        return max((row[ID] for row in rows if row[ID] <= until), default=b"")

    async def ids_after(self, after: bytes, limit: int) -> list[bytes]:
        rows = (*self.contents.tasks.values(), *self.contents.finished)
        return sorted(row[ID] for row in rows if row[ID] > after)[:limit]

    async def commit(self, batch: WriteBatch) -> None:
        put, finish = _own(batch.put), _own(batch.finish)
        _check(put + finish)
        contents = self.contents
        put, finish = ([self._completed(row, batch) for row in rows] for rows in (put, finish))
        contents.meta.update(batch.meta)
        for seq in batch.delete:
            contents.tasks.pop(seq, None)
        contents.tasks.update((row[SEQ], row) for row in put)
        contents.finished.extend(finish)

    def _completed(self, row: Row, batch: WriteBatch) -> Row:
        history, before = batch.texts.get(row[SEQ]), self.contents.tasks.get(row[SEQ])
        return row if history is None else completed(row, history, None if before is None else before[META_COLUMN])

    async def prune(self, retention: Retention) -> Pruned:
        contents = self.contents
        old = takewhile(lambda row: row[FINISHED_MS] < retention.finished_before_ms, contents.finished)
        over = len(contents.finished) - retention.finished_rows_max
        cut = min(retention.rows_max, max(over, sum(1 for _ in old)))
        failed = [row for row in contents.tasks.values() if row[STATE] == _FAILED and row[FINISHED_MS] < retention.failed_before_ms]
        failed.sort(key=lambda row: (row[FINISHED_MS], row[SEQ]))
        gone = contents.finished[:cut] + failed[: retention.rows_max]
        del contents.finished[:cut]
        for row in failed[: retention.rows_max]:
            del contents.tasks[row[SEQ]]
        times_ms = [ms_of_id(row[ID]) for row in gone]
        id_ms_max = max((ms for ms in times_ms if ms <= retention.ids_until_ms), default=0)
        ahead_ms_max = max((ms for ms in times_ms if ms > retention.ids_until_ms), default=0)
        for name, ms in ((PRUNED_ID_MS, id_ms_max), (AHEAD_ID_MS, ahead_ms_max)):
            if ms:
                contents.meta[name] = max(contents.meta.get(name, 0), ms)
        failed_by_queue = Counter(row[QUEUE] for row in failed[: retention.rows_max])
        return Pruned(len(gone), id_ms_max, tuple(sorted(failed_by_queue.items())), ahead_ms_max)

    async def checkpoint(self) -> bool:
        """Nothing to do."""
        return True

    async def shrink(self) -> int:
        return 0

    def log_bytes(self) -> int:
        return 0

    async def close(self) -> None:
        """Nothing to do: the contents stay for the next store."""

    async def release(self) -> None:
        """Nothing to let go of."""


class MemoryJournal:
    """A Journal in two lists of batches: `synced` survives a power loss, `unsynced` survives the death of the process only."""

    def __init__(self, synced: Iterable[JournalBatch] = ()) -> None:
        self.synced = list(synced)
        self.unsynced: list[JournalBatch] = []
        self.cut: None = None
        self.end_lsn = self.synced_lsn = _end(self.synced)
        self.bytes_written = 0
        self._epoch = 0
        self._was_read = False

    def crash(self, keep_unsynced: int = 0) -> MemoryJournal:
        """The journal as it would be found after a power loss in which the first `keep_unsynced` of the unsynced batches reached the disk by
        themselves; all of them after a mere kill."""
        return MemoryJournal(self.synced + self.unsynced[:keep_unsynced])

    def read(self, after_lsn: int, replayed_lsn: int = 0) -> Iterator[JournalBatch]:
        for batch in list(self.synced):
            skip = max(0, after_lsn + 1 - batch.first_lsn)
            if skip < len(batch.records):
                yield JournalBatch(batch.epoch, batch.first_lsn + skip, batch.records[skip:])
        self._was_read = True

    def start(self, epoch: int, next_lsn: int) -> None:
        if not self._was_read:
            raise RuntimeError("the journal must be read to its end before it is started")
        if next_lsn <= self.end_lsn:
            raise ValueError(f"next_lsn is {next_lsn}, but the journal holds records up to {self.end_lsn}")
        self._epoch = epoch
        self.end_lsn = self.synced_lsn = next_lsn - 1

    def write(self, first_lsn: int, records: Sequence[Sequence[bytes | memoryview]]) -> None:
        if first_lsn != self.end_lsn + 1:
            raise ValueError(f"the next LSN is {self.end_lsn + 1}, not {first_lsn}")
        if not records:
            return
        joined = [b"".join(record) for record in records]
        self.unsynced.append(JournalBatch(self._epoch, first_lsn, [memoryview(record) for record in joined]))
        self.end_lsn += len(joined)
        self.bytes_written += sum(map(len, joined))

    def sync(self) -> None:
        self.synced += self.unsynced
        self.unsynced = []
        self.synced_lsn = self.end_lsn

    def roll(self) -> None:
        """Nothing to do: there are no files."""

    def drop(self, applied_lsn: int) -> None:
        self.synced = [batch for batch in self.synced if batch.first_lsn + len(batch.records) - 1 > applied_lsn]

    def close(self, *, empty: bool = False) -> None:
        self.sync()
        if empty:
            self.synced = []

    def release(self) -> None:
        """Nothing to let go of."""


def _end(batches: list[JournalBatch]) -> int:
    return batches[-1].first_lsn + len(batches[-1].records) - 1 if batches else 0
