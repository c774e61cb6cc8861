"""FileJournal: the durable point of a broker, a segmented append-only log on local disk.

    segment = segment header, batch*                                         file name: the first LSN in 20 decimal digits, ".log"
    segment header = magic 8s, version u16, epoch u64, first_lsn u64, previous_lsn u64, mark 8s, crc32c u32
    batch   = mark 8s, epoch u64, first_lsn u64, synced_lsn u64, applied_lsn u64, records u32, body_bytes u32, crc32c u32, body
    body    = one u32 length for each record, then the bytes of all records               (numbers are little-endian)

Rules.  A segment gets its name when its header is synced, and the older segment was synced before that header: so whatever stands in front of
an existing segment had been synced.  The mark is random for each segment and opens each of its batches: a payload that contains a copy of
a batch is never taken for one.  A bad batch is a torn tail and is cut, unless it is known to have been synced: by a later segment, by a later
batch of this segment that claims `synced_lsn` ≥ its first LSN, or because the store has applied it.  Then it is corruption: JournalCorrupt,
files untouched.  Limit: the newest batches have no witness, a bit flip there is cut like a torn tail.

The journal vouches for the store as well: each batch says what the store had applied when it was written, and a segment that opens an epoch
that the store had applied all before it.  A store that has less is an older copy, or lost the end of its log.  Beside the folder lies a
small file, the *witness* (witness.py): it names the newest segment, or the LSN at which an orderly stop emptied the journal.

The journal knows nothing of what its records mean.  Every method blocks; one thread at a time calls them.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from struct import Struct, pack, unpack_from
from typing import TypeAlias

import attrs
from crc32c import crc32c

from taskq.errors import JournalCorrupt, StartError
from taskq.storage.base import JournalBatch
from taskq.storage.files import make_folder, sync_path
from taskq.storage.witness import Witness, read_witness, write_witness

Buffer: TypeAlias = bytes | memoryview

MAGIC = b"taskqJNL"
VERSION = 2
SEGMENT_BYTES = 64 * 1024 * 1024
COPY_BYTES_MAX = 4096  # smaller buffers are joined (one copy is cheaper than one more iovec), larger ones are written where they lie
IOVECS_MAX = 1024  # the kernel's limit for one writev

_HEAD = Struct("<8sHQQQ8s")
_BATCH = Struct("<8sQQQQII")
_CRC = Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
BATCH_HEAD_BYTES = _BATCH.size + _CRC.size
_NAME = re.compile(r"\d{20}\.log")
_UNNAMED = "new"  # a segment whose header is not synced yet


@attrs.frozen
class _Head:
    """A segment's header: all batches of the segment share its epoch and its mark; `previous_lsn` is the last LSN in front of it."""

    epoch: int
    first_lsn: int
    previous_lsn: int
    mark: bytes


@attrs.frozen
class _Batch:
    """A valid batch as it stands in the file; `end` is the offset behind it."""

    first_lsn: int
    synced_lsn: int
    applied_lsn: int
    records: list[memoryview]
    end: int


@attrs.define
class _Segment:
    path: Path
    first_lsn: int
    last_lsn: int = 0


def _pack_head(head: _Head) -> bytes:
    fields = _HEAD.pack(MAGIC, VERSION, head.epoch, head.first_lsn, head.previous_lsn, head.mark)
    return fields + _CRC.pack(crc32c(fields))


def _unpack_head(data: bytes, path: Path) -> _Head | None:
    """The header, None if it is damaged."""
    if len(data) < HEAD_BYTES or _CRC.unpack_from(data, _HEAD.size)[0] != crc32c(data[: _HEAD.size]):
        return None
    magic, version, epoch, first_lsn, previous_lsn, mark = _HEAD.unpack_from(data)
    if version != VERSION:
        raise StartError(f"{path}: journal format {version}, but this taskq reads format {VERSION}; start it with the version that wrote it")
    return _Head(epoch, first_lsn, previous_lsn, mark) if magic == MAGIC else None


def _join_small(buffers: list[Buffer]) -> list[Buffer]:
    """The same bytes in few buffers: runs of small ones are joined, large ones are left uncopied."""
    if max(map(len, buffers)) < COPY_BYTES_MAX:
        return [b"".join(buffers)]
    pieces: list[Buffer] = []
    small: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < COPY_BYTES_MAX:
            small.append(buffer)
            continue
        pieces += (b"".join(small), buffer)
        small.clear()
    return [*pieces, b"".join(small)]


def _pack_batch(head: _Head, first_lsn: int, synced_lsn: int, applied_lsn: int, records: Sequence[Sequence[Buffer]]) -> list[Buffer]:
    lengths = [sum(map(len, record)) for record in records]
    table = pack(f"<{len(lengths)}I", *lengths)
    fields = _BATCH.pack(head.mark, head.epoch, first_lsn, synced_lsn, applied_lsn, len(lengths), len(table) + sum(lengths))
    pieces = _join_small([table, *chain.from_iterable(records)])
    crc = crc32c(fields)
    for piece in pieces:
        crc = crc32c(piece, crc)
    return [fields + _CRC.pack(crc), *pieces]


def _unpack_batch(fd: int, at: int, size: int, head: _Head) -> _Batch | None:
    """The batch at this offset of a file of `size` bytes, None if there is no valid one of this segment."""
    fields = os.pread(fd, BATCH_HEAD_BYTES, at)
    if len(fields) < BATCH_HEAD_BYTES:
        return None
    mark, epoch, first_lsn, synced_lsn, applied_lsn, count, body_bytes = _BATCH.unpack_from(fields)
    start = at + BATCH_HEAD_BYTES
    if mark != head.mark or epoch != head.epoch or start + body_bytes > size or count * 4 > body_bytes:
        return None
    body = _pread(fd, body_bytes, start)
    if crc32c(body, crc32c(fields[: _BATCH.size])) != _CRC.unpack_from(fields, _BATCH.size)[0]:
        return None
    bounds = list(accumulate(unpack_from(f"<{count}I", body), initial=4 * count))
    view = memoryview(body)
    return _Batch(first_lsn, synced_lsn, applied_lsn, [view[begin:end] for begin, end in pairwise(bounds)], start + body_bytes)


def _pread(fd: int, count: int, at: int) -> bytes:
    """All `count` bytes, or fewer where the file ends: a single pread may give fewer."""
    data = os.pread(fd, count, at)
    while len(data) < count and (more := os.pread(fd, count - len(data), at + len(data))):
        data += more
    return data


def _write_all(fd: int, buffers: list[Buffer]) -> int:
    """Write everything, however little the kernel takes at a time; the number of bytes."""
    total = 0
    while buffers:
        done = os.writev(fd, buffers[:IOVECS_MAX])
        total += done
        at = 0
        while at < len(buffers) and done >= len(buffers[at]):
            done -= len(buffers[at])
            at += 1
        buffers = buffers[at:]
        if done:
            buffers[0] = memoryview(buffers[0])[done:]
    return total


def _corrupt(path: Path, offset: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(f"{path}: damaged at offset {offset}: {what}; it had been synced, so the files were left untouched")


class FileJournal:
    """A Journal in the files of one folder.

    After `read`: `cut` is (path, offset, bytes) of the torn tail that was cut off, or None; `end_lsn` the last LSN that is known of, 0 if none.
    `synced_lsn` is the last LSN known to be on disk, `bytes_written` counts since `start`.
    """

    def __init__(self, path: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.path = path
        self.segment_bytes = segment_bytes
        self.cut: tuple[Path, int, int] | None = None
        self.end_lsn = 0
        self.synced_lsn = 0
        self.bytes_written = 0
        self._applied_lsn = self._vouched_lsn = 0
        self._was_read = False
        self._segments: list[_Segment] = []
        self._head = _Head(0, 0, 0, b"")
        self._fd = -1
        self._segment_size = 0

    # ---- recovery -----------------------------------------------------------------------------------------------------------------

    def read(self, after_lsn: int, replayed_lsn: int = 0, look: Callable[[JournalBatch], None] | None = None) -> Iterator[JournalBatch]:
        # after an error of a sync the end may never reach the disk, but is read until the power fails: what a start did with it vouches for nothing
        self._vouched_lsn = 0 if after_lsn == replayed_lsn else after_lsn
        make_folder(self.path)
        paths = sorted(path for path in self.path.iterdir() if _NAME.fullmatch(path.name))
        if paths:
            sync_path(paths[-1])  # after a kill its end may be in the page cache only; older segments were synced before it was made
        self._segments = [_Segment(path, int(path.stem)) for path in paths]
        for batch in self._read_segments(after_lsn):  # all of it is looked at before any of it is given out
            if look is not None:
                look(batch)
        self._check_ends(after_lsn)
        yield from self._read_segments(after_lsn)
        self._settle()

    def _read_segments(self, after_lsn: int) -> Iterator[JournalBatch]:
        self.end_lsn = 0
        for segment, following in zip(self._segments, [*self._segments[1:], None], strict=False):
            if following is not None and following.first_lsn - 1 <= after_lsn:
                segment.last_lsn = following.first_lsn - 1  # the store has all of it: of no use any more, whatever its condition
                continue
            yield from self._read_segment(segment, after_lsn, newest=following is None)

    def _read_segment(self, segment: _Segment, after_lsn: int, *, newest: bool) -> Iterator[JournalBatch]:
        fd = os.open(segment.path, os.O_RDONLY)
        try:
            head = _unpack_head(os.pread(fd, HEAD_BYTES, 0), segment.path)
            if head is None:
                raise _corrupt(segment.path, 0, "the segment's header is not valid")
            self._check_chain(segment.path, head, after_lsn)
            self.end_lsn = head.previous_lsn
            yield from self._read_batches(fd, os.fstat(fd).st_size, segment, head, after_lsn, newest)
        finally:
            os.close(fd)

    def _check_chain(self, path: Path, head: _Head, after_lsn: int) -> None:
        if head.first_lsn != int(path.stem):
            raise _corrupt(path, 0, f"the header says that it begins with LSN {head.first_lsn}")
        if head.previous_lsn > max(self.end_lsn, after_lsn):
            raise _corrupt(path, 0, f"a segment is missing in front of it: LSN {max(self.end_lsn, after_lsn) + 1} to {head.previous_lsn}")
        if head.previous_lsn < self.end_lsn:
            raise _corrupt(path, 0, f"it follows LSN {head.previous_lsn}, but the segment in front of it ends with LSN {self.end_lsn}")

    def _read_batches(self, fd: int, size: int, segment: _Segment, head: _Head, after_lsn: int, newest: bool) -> Iterator[JournalBatch]:
        at, lsn = HEAD_BYTES, head.first_lsn
        while at < size:
            batch = _unpack_batch(fd, at, size, head)
            if batch is None or batch.first_lsn != lsn:
                if not newest or lsn <= self._vouched_lsn or _is_witnessed(fd, at, size, head, lsn):
                    raise _corrupt(segment.path, at, f"the batch with LSN {lsn} is not valid")
                self.cut = (segment.path, at, size - at)
                return
            at, lsn = batch.end, lsn + len(batch.records)
            self.end_lsn = segment.last_lsn = lsn - 1
            self._applied_lsn = max(self._applied_lsn, batch.applied_lsn)
            if self.end_lsn > after_lsn:
                skip = max(0, after_lsn + 1 - batch.first_lsn)
                yield JournalBatch(head.epoch, batch.first_lsn + skip, batch.records[skip:])

    def _check_ends(self, after_lsn: int) -> None:
        """The store has what the journal says that it had, and the journal reaches as far as the store and the witness say."""
        witness = read_witness(self._witness_path)
        if witness.segment and witness.segment not in [segment.first_lsn for segment in self._segments]:
            raise _corrupt(self._name(witness.segment), 0, "the segment is missing")
        had = max(self._applied_lsn, witness.emptied_lsn)
        if had > after_lsn:
            raise JournalCorrupt(
                f"{self.path}: the store ends with LSN {after_lsn}, but it had LSN {after_lsn + 1} to {had}: its file is missing or an older copy, "
                "or its -wal file is missing or damaged; the files were left untouched; a backup belongs into a data folder of its own"
            )
        if self._segments and self.end_lsn < self._vouched_lsn != witness.emptied_lsn:
            newest = self._segments[-1].path
            raise _corrupt(newest, newest.stat().st_size, f"LSN {self.end_lsn + 1} to {after_lsn}, which the store has, are missing at its end")

    def _settle(self) -> None:
        """Cut the torn tail, durably.  A segment that holds nothing stays until the next one is there."""
        if self.cut:
            _truncate(self._segments[-1].path, self.cut[1])
        sync_path(self.path)
        self.synced_lsn = self.end_lsn
        self._was_read = True

    # ---- writing ------------------------------------------------------------------------------------------------------------------

    def start(self, epoch: int, next_lsn: int) -> None:
        if not self._was_read:
            raise RuntimeError("the journal must be read to its end before it is started")
        if next_lsn <= self.end_lsn:
            raise ValueError(f"next_lsn is {next_lsn}, but the journal holds records up to {self.end_lsn}")
        self.end_lsn = self.synced_lsn = self._applied_lsn = next_lsn - 1
        self._open_segment(epoch)

    def _open_segment(self, epoch: int) -> None:
        first_lsn, unnamed = self.end_lsn + 1, self.path / _UNNAMED
        segment = _Segment(self._name(first_lsn), first_lsn)
        head = _Head(epoch, first_lsn, self.end_lsn, secrets.token_bytes(8))
        fd = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._segment_size = _write_all(fd, [_pack_head(head)])
            os.fdatasync(fd)
            unnamed.rename(segment.path)  # in the place of one that held nothing, perhaps
            sync_path(self.path)
            write_witness(self._witness_path, Witness(first_lsn))
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._head = fd, head
        self._segments = [*(old for old in self._segments if old.first_lsn != first_lsn), segment]

    def write(self, first_lsn: int, records: Sequence[Sequence[Buffer]]) -> None:
        if first_lsn != self.end_lsn + 1:
            raise ValueError(f"the next LSN is {self.end_lsn + 1}, not {first_lsn}")
        if not records:
            return
        if self._segments[-1].last_lsn and self._segment_size >= self.segment_bytes:
            self._roll()
        pieces = _pack_batch(self._head, first_lsn, self.synced_lsn, self._applied_lsn, records)
        written = self._guard(_write_all, pieces)
        self._segment_size += written
        self.bytes_written += written
        self.end_lsn += len(records)
        self._segments[-1].last_lsn = self.end_lsn

    def sync(self) -> None:
        if self.synced_lsn == self.end_lsn:
            return
        self._guard(_data_sync)
        self.synced_lsn = self.end_lsn

    def roll(self) -> None:
        if self._segments[-1].last_lsn:
            self._roll()

    def _roll(self) -> None:
        self.sync()
        os.close(self._fd)
        self._fd = -1
        self._open_segment(self._head.epoch)

    def _guard(self, operation: Callable[..., int], *arguments: list[Buffer]) -> int:
        """After an error nothing may be written behind the unknown bytes, so the file is closed and every later call fails as well."""
        if self._fd < 0:
            raise OSError(errno.EBADF, "the journal is closed, or an earlier write failed")
        try:
            return operation(self._fd, *arguments)
        except OSError:
            fd, self._fd = self._fd, -1
            os.close(fd)
            raise

    def drop(self, applied_lsn: int) -> None:
        self._applied_lsn = max(self._applied_lsn, applied_lsn)
        while len(self._segments) > 1 and self._segments[0].last_lsn <= applied_lsn:
            self._remove(self._segments[0])  # not synced: a segment that comes back after a power loss is skipped by its LSNs

    def close(self, *, empty: bool = False) -> None:
        if self._fd >= 0:
            self.sync()
            os.close(self._fd)
            self._fd = -1
        if empty:
            write_witness(self._witness_path, Witness(emptied_lsn=self.end_lsn))
            for segment in list(self._segments):
                self._remove(segment)
            sync_path(self.path)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _name(self, first_lsn: int) -> Path:
        return self.path / f"{first_lsn:020d}.log"

    @property
    def _witness_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.witness")

    def _remove(self, segment: _Segment) -> None:
        segment.path.unlink()
        self._segments.remove(segment)


def _data_sync(fd: int) -> int:
    os.fdatasync(fd)
    return 0


def _truncate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_witnessed(fd: int, at: int, size: int, head: _Head, lsn: int) -> bool:
    """True if a valid batch at or behind this offset claims that `lsn` had been synced when it was written."""
    rest = _pread(fd, size - at, at)
    found = rest.find(head.mark)
    while found >= 0:
        batch = _unpack_batch(fd, at + found, size, head)
        if batch is not None and batch.first_lsn > lsn and batch.synced_lsn >= lsn:
            return True
        found = rest.find(head.mark, found + 1)
    return False
