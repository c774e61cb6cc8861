"""The contracts of storage: a Store is a durable map of rows that knows no rule about tasks, a Journal is a durable list of records.

A row is a tuple in the order of `COLUMNS`.  `rows.py` turns tasks into rows and back.  All engines pass `tests/storage/test_conformance.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import attrs

Row: TypeAlias = tuple[Any, ...]

# seq is the row key; `position` orders a line; `meta` is everything else, as bytes that only rows.py understands
# blobs (id, payload, result, meta) may be given as any contiguous buffer and come back as bytes
COLUMNS = ("seq", "id", "queue", "task_type", "state", "priority", "position", "due_ms", "finished_ms", "key", "payload", "result", "meta")
META_COLUMN = COLUMNS.index("meta")

# the named integers that `prune` raises to the highest id time it deleted, in its own transaction: of ids up to `ids_until_ms`, and of those ahead
PRUNED_ID_MS, AHEAD_ID_MS = "pruned_id_ms", "ahead_id_ms"
ID_MS_MAX = (1 << 48) - 1


@attrs.frozen
class Capabilities:
    """What an engine can do.  `durable`: it is there after a restart.  `shared`: several brokers may use it at once."""

    name: str
    durable: bool
    shared: bool = False


@attrs.define
class WriteBatch:
    """One transaction.  `meta` replaces named integers (applied_lsn, next_seq, epoch …).  `put`: insert or replace rows of live tasks and dead
    letters, by seq.  `delete`: seqs that leave them.  `finish`: append to the finished tasks, in this order.  A seq is in one list only,
    but a finished seq may also be in `delete`.  `texts`: the histories, by seq, of rows that get their texts in the transaction (texts.py)."""

    meta: dict[str, int] = attrs.field(factory=dict)
    put: list[Row] = attrs.field(factory=list)
    delete: list[int] = attrs.field(factory=list)
    finish: list[Row] = attrs.field(factory=list)
    texts: dict[int, Sequence[Any]] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self.put) + len(self.delete) + len(self.finish)


@attrs.frozen
class Count:
    """How many live rows share this queue, state, priority and task type."""

    queue: str
    state: int
    priority: int
    task_type: str
    tasks: int


@attrs.frozen
class Retention:
    """What a prune may delete: finished rows older than one limit, dead letters older than the other, finished rows over the cap (oldest
    first); at most `rows_max` rows of each kind in one call, so that a prune is short.  Ids of a time after `ids_until_ms` are ahead."""

    finished_before_ms: int
    failed_before_ms: int
    finished_rows_max: int
    rows_max: int = 10_000
    ids_until_ms: int = ID_MS_MAX


@attrs.frozen
class Pruned:
    """How many rows were deleted, and the highest id times (ms) among them (0 if none; meta remembers them as `PRUNED_ID_MS` and `AHEAD_ID_MS`).
    `failed`: how many of them were dead letters, as (queue, rows) by queue."""

    rows: int
    id_ms_max: int
    failed: tuple[tuple[str, int], ...] = ()
    ahead_ms_max: int = 0


class Store(Protocol):
    """A durable map of rows.  Calls are made one at a time by one owner, in order; each is atomic.  Errors of the engine pass through: the
    caller stops the process, because the outcome of a failed commit is unknown."""

    capabilities: Capabilities

    async def open(self) -> dict[str, int]:
        """Open or create; the named integers of `meta` (empty when new).  Raises StoreCorrupt."""
        ...

    async def counts(self) -> list[Count]:
        """Live rows and dead letters, counted by queue, state, priority and task type."""
        ...

    async def load(self, states: Sequence[int], after_seq: int, limit: int) -> list[Row]:
        """Live rows in any of these states, seq > after_seq, by seq, at most `limit`."""
        ...

    async def line(self, queue: str, priority: int, task_type: str, state: int, after_position: int, limit: int) -> list[Row]:
        """Live rows of one line, position > after_position, by position, at most `limit`; long texts of errors may be left out (texts.py)."""
        ...

    async def due(self, after_ms: int, after_seq: int, limit: int) -> list[Row]:
        """Live rows in the states scheduled and retrying with (due_ms, seq) > (after_ms, after_seq), in this order, at most
        `limit`; long texts of errors may be left out."""
        ...

    async def find(self, ids: Sequence[bytes], keys: Sequence[tuple[str, str]]) -> list[Row]:
        """Rows with one of these ids or one of these (queue, key) pairs, live or finished, each row once: the live ones by seq, then the
        finished ones in the order in which they finished."""
        ...

    async def newest_id(self, until: bytes) -> bytes:
        """The highest id up to this one, live or finished; b"" if there is none."""
        ...

    async def ids_after(self, after: bytes, limit: int) -> list[bytes]:
        """The first ids above this one, live or finished, in order; at most so many."""
        ...

    async def commit(self, batch: WriteBatch) -> None:
        """All of the batch or nothing; on return it survives power loss."""
        ...

    async def prune(self, retention: Retention) -> Pruned:
        """Delete what the retention allows, in one transaction of its own that also raises `PRUNED_ID_MS`: an id that is older and not found
        may have been finished."""
        ...

    async def checkpoint(self) -> bool:
        """Bring the engine's own log into its main file and sync both; a no-op where there is none.  False if a reader kept it from that: what
        was committed is as durable as before, in the log."""
        ...

    async def shrink(self) -> int:
        """Give back to the file system what can be given back at once, which may be nothing; how many bytes its files can take without growing."""
        ...

    def log_bytes(self) -> int:
        """The size of the engine's own log, which it will still copy into its main file; cheap, and on any thread."""
        ...

    async def close(self) -> None: ...

    async def release(self) -> None:
        """Let go of the files as they are, with nothing written: they are damaged, or do not belong together."""
        ...


@attrs.frozen
class JournalBatch:
    """A batch read back: records[i] has LSN first_lsn + i."""

    epoch: int
    first_lsn: int
    records: list[memoryview]


class Journal(Protocol):
    """A durable list of records, written in batches by one thread.  Every method blocks.  An OSError from write or sync leaves the outcome
    unknown: the caller stops the process."""

    def read(self, after_lsn: int, replayed_lsn: int = 0, look: Callable[[JournalBatch], None] | None = None) -> Iterator[JournalBatch]:
        """The batches of the records with LSN > after_lsn, in order; a batch that reaches below begins with LSN after_lsn + 1.  A torn tail is
        cut (and the cut synced) and told in `cut`.  What is given out is durable.  Raises JournalCorrupt with path and offset before anything is
        given out, also if a store that has no more than after_lsn had more before, or if the journal does not reach as far as the store; but up to
        `replayed_lsn` a start had it from this journal, whose end may have been in memory only then.  `look` is called with every batch before the
        first is given out.  Must be read to its end before `start`."""
        ...

    def start(self, epoch: int, next_lsn: int) -> None:
        """Begin a new segment under a new epoch; never appends to an old one.  The store has everything up to next_lsn - 1, durably.  LSNs may
        jump forward: next_lsn is the highest of the journal's end and the store's applied_lsn, plus 1."""
        ...

    def write(self, first_lsn: int, records: Sequence[Sequence[bytes | memoryview]]) -> None:
        """Append one batch (level os on return).  A record is a list of buffers that are written one behind the other, uncopied where large."""
        ...

    def sync(self) -> None:
        """fdatasync (level fsync on return) for all that was written."""
        ...

    def roll(self) -> None:
        """Go on in a new segment, if the one being written has a record, so that `drop` can forget that."""
        ...

    def drop(self, applied_lsn: int) -> None:
        """The store has everything up to applied_lsn, durably: forget segments whose last LSN is at most that, but never the one being
        written."""
        ...

    def close(self, *, empty: bool = False) -> None:
        """Close; with `empty`, after a clean stop whose store holds everything, remove all segments."""
        ...

    def release(self) -> None:
        """Let go of the files as they are, with nothing written or synced: what a kill would do."""
        ...
