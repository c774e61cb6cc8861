"""The journal's folder, as the kernel keeps it: what a process sees, what has reached the disk, and what a power loss leaves of the rest.

The real FileJournal runs on it: `System` stands in the place of `os` in its modules, a `SimPath` in the place of its folder; its witness lies in
the folder above.  Nothing that was
not synced is sure.  Of the writes to a file since its last sync a power loss keeps nothing, everything, a prefix that ends anywhere in a sector,
or any subset of the sectors, later ones without earlier ones too.  A file that was made or removed since the last sync of the folder may be
there or not.  After an error of a sync, its writes may never reach the disk, whatever is synced later, although they can still be read.

A folder belongs to one process: `crash` gives the next one its folder, and whatever the dead process would still do has no effect.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from types import SimpleNamespace
from typing import Any

import attrs
from crc32c import crc32c

SECTOR_BYTES = 512
STEPS = ("write", "sync", "folder sync", "create", "truncate", "rename", "unlink")
JOURNAL = "journal"


class Killed(BaseException):
    """The process died in the middle of this call."""


@attrs.define(eq=False)
class File:
    """`data` as it is read, `durable` as it was at the last sync, `writes` since then: (offset, bytes), or (size, None) for a cut."""

    data: bytearray = attrs.field(factory=bytearray)
    durable: bytes = b""
    writes: list[tuple[int, bytes | None]] = attrs.field(factory=list)

    def write(self, at: int, data: bytes | None) -> None:
        self.writes.append((at, data))
        _put(self.data, at, data)

    def sync(self) -> None:
        data = bytearray(self.durable)
        for at, piece in self.writes:
            _put(data, at, piece)
        self.durable, self.writes = bytes(data), []

    def after_power_loss(self, rng: random.Random) -> File:
        if not self.writes:
            return File(bytearray(self.durable), self.durable)
        left = bytearray(self.durable)
        for at, piece in FATES[rng.randrange(len(FATES))](self.writes, rng):
            _put(left, at, piece)
        return File(left, bytes(left))


def _put(data: bytearray, at: int, piece: bytes | None) -> None:
    if piece is None:
        del data[at:]
    else:
        data.extend(bytes(max(0, at - len(data))))
        data[at : at + len(piece)] = piece


Writes = Iterable[tuple[int, "bytes | None"]]


def _nothing(writes: Writes, rng: random.Random) -> Writes:
    return ()


def _everything(writes: Writes, rng: random.Random) -> Writes:
    return writes


def _prefix(writes: Writes, rng: random.Random) -> Writes:
    """In the order of the writes, up to a byte; perhaps zeros in the rest of its sector, as far as it was written."""
    writes = list(writes)
    keep = rng.randrange(sum(len(piece or b"") for _, piece in writes) + 1)
    for at, piece in writes:
        if piece is not None and len(piece) > keep:
            zeros = min(-(at + keep) % SECTOR_BYTES, len(piece) - keep)
            yield at, piece[:keep] + bytes(zeros if rng.random() < 0.5 else 0)
            return
        keep -= len(piece or b"")
        yield at, piece


def _sectors(writes: Writes, rng: random.Random) -> Writes:
    """Each sector came to the disk or did not."""
    for at, piece in writes:
        if piece is None:
            if rng.random() < 0.5:
                yield at, piece
            continue
        begin = 0
        while begin < len(piece):
            end = min(len(piece), begin + SECTOR_BYTES - (at + begin) % SECTOR_BYTES)
            if rng.random() < 0.5:
                yield at + begin, piece[begin:end]
            begin = end


FATES: tuple[Callable[[Writes, random.Random], Writes], ...] = (_nothing, _everything, _prefix, _prefix, _sectors)


class Folder:
    """See the module.  `step` is told of each step before and after it, and may raise; `room` says how many bytes may still be written."""

    def __init__(self, disk: Any) -> None:
        self.disk = disk
        self.entries: dict[str, File] = {}
        self.durable: dict[str, File] = {}
        self.dead = False

    def step(self, when: str, name: str) -> None:
        if self.dead:
            raise Killed(name)
        self.disk.reached(f"{when} {name}")

    def crash(self, power: bool, rng: random.Random) -> Folder:
        self.dead = True
        left = Folder(self.disk)
        if not power:
            left.entries, left.durable = self.entries, self.durable
            return left
        for name in sorted({*self.entries, *self.durable}):
            sure = name in self.entries and self.entries[name] is self.durable.get(name)
            kept = self.entries.get(name) if sure or rng.random() < 0.5 else self.durable.get(name)
            if kept is not None:
                left.entries[name] = kept.after_power_loss(rng)
        left.durable = dict(left.entries)
        return left

    # ---- what the process does

    def create(self, name: str) -> None:
        self.step("before", "create")
        self.entries[name] = File()
        self.step("after", "create")

    def rename(self, name: str, new_name: str) -> None:
        self.step("before", "rename")
        self.entries[new_name] = self.entries.pop(name)
        self.step("after", "rename")

    def unlink(self, name: str) -> None:
        self.step("before", "unlink")
        del self.entries[name]
        self.step("after", "unlink")

    def sync(self, folder: str) -> None:
        self.step("before", "folder sync")
        others = {name: file for name, file in self.durable.items() if parent_of(name) != folder}
        self.durable = others | {name: file for name, file in self.entries.items() if parent_of(name) == folder}
        self.step("after", "folder sync")

    def sync_file(self, file: File) -> None:
        try:
            self.step("before", "sync")
        except OSError:
            if self.disk.rng.random() < 0.7:
                file.writes = []  # the kernel has marked these pages as clean
            raise
        file.sync()
        self.step("after", "sync")

    def write(self, file: File, at: int, data: bytes) -> int:
        self.step("before", "write")
        taken = self.disk.take_room(len(data))
        if len(data) > 1 and self.disk.armed == "in write":
            file.write(at, data[: self.disk.rng.randrange(1, min(taken, len(data)) + 1)])
            self.step("in", "write")
        file.write(at, data[:taken])
        self.step("after", "write")
        return taken

    def truncate(self, file: File, size: int) -> None:
        self.step("before", "truncate")
        file.write(size, None)
        self.step("after", "truncate")

    # ---- what is there

    def end_lsn(self, applied_lsn: int, *, durable: bool = False) -> int:
        """The last LSN that a start would know, which has applied so much.  Reads the format with eyes of its own."""
        end, files = applied_lsn, self.durable if durable else self.entries
        for name in sorted(name for name in files if name.endswith(".log")):
            first, last = read_segment(files[name].durable if durable else bytes(files[name].data))
            if last > end and first <= end + 1:
                end = last
        return end


HEAD, BATCH, CRC = Struct("<8sHQQQ8s"), Struct("<8sQQQQII"), Struct("<I")


def read_segment(data: bytes) -> tuple[int, int]:
    """(first, last) LSN of the valid batches at the beginning of a segment; (0, 0) if there is none."""
    at = HEAD.size + CRC.size
    if len(data) < at or crc32c(data[: HEAD.size]) != CRC.unpack_from(data, HEAD.size)[0]:
        return 0, 0
    _, _, _, first, _, mark = HEAD.unpack_from(data)
    following = first
    while at + BATCH.size + CRC.size <= len(data):
        of, _, lsn, _, _, records, size = BATCH.unpack_from(data, at)
        body = data[at + BATCH.size + CRC.size :][:size]
        found = crc32c(body, crc32c(data[at : at + BATCH.size]))
        if of != mark or lsn != following or len(body) < size or found != CRC.unpack_from(data, at + BATCH.size)[0]:
            break
        at, following = at + BATCH.size + CRC.size + size, following + records
    return (first, following - 1) if following > first else (0, 0)


def parent_of(name: str) -> str:
    return name.rpartition("/")[0]


@attrs.frozen
class SimPath:
    """The journal's folder, the one above it (without a name), or a file in one of them; `where` is the path from the upper one."""

    folder: Folder
    where: str = JOURNAL

    @property
    def name(self) -> str:
        return self.where.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.name.partition(".")[0]

    @property
    def parent(self) -> SimPath:
        return SimPath(self.folder, parent_of(self.where))

    @property
    def parents(self) -> tuple[SimPath, ...]:
        return (self.parent,)

    @property
    def is_folder(self) -> bool:
        return self.where in ("", JOURNAL)

    def with_name(self, name: str) -> SimPath:
        return self.parent / name

    def __truediv__(self, name: str) -> SimPath:
        return SimPath(self.folder, f"{self.where}/{name}".lstrip("/"))

    def __lt__(self, other: SimPath) -> bool:
        return self.where < other.where

    def __str__(self) -> str:
        return self.where

    def exists(self) -> bool:
        return self.is_folder or self.where in self.folder.entries

    def mkdir(self, **options: Any) -> None:
        """It is always there."""

    def iterdir(self) -> Iterator[SimPath]:
        return iter([SimPath(self.folder, name) for name in self.folder.entries if parent_of(name) == self.where])

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.exists():
            self.folder.unlink(self.where)

    def rename(self, target: SimPath) -> None:
        self.folder.rename(self.where, target.where)

    def stat(self) -> Any:
        return SimpleNamespace(st_size=len(self.folder.entries[self.where].data))

    def read_bytes(self) -> bytes:
        if not self.exists():
            raise FileNotFoundError(errno.ENOENT, self.where)
        return bytes(self.folder.entries[self.where].data)


@attrs.define(eq=False)
class _Open:
    """`file`: None for a folder, whose name is `where`."""

    folder: Folder
    where: str
    file: File | None
    at: int = 0


@attrs.frozen
class _Writer:
    """What `fdopen` gives."""

    system: System
    fd: int

    def fileno(self) -> int:
        return self.fd

    def write(self, data: bytes) -> None:
        while data:
            data = data[self.system.writev(self.fd, [data]) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.system.close(self.fd)


class System:
    """What the journal asks of `os`."""

    O_RDONLY, O_WRONLY, O_CREAT, O_EXCL, O_TRUNC, O_NOFOLLOW = os.O_RDONLY, os.O_WRONLY, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_NOFOLLOW

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._last_fd = 2

    def open(self, path: SimPath, flags: int, mode: int = 0) -> int:
        there = path.exists()
        if there and flags & self.O_EXCL:
            raise FileExistsError(errno.EEXIST, path.where)
        if not there and flags & self.O_CREAT:
            path.folder.create(path.where)
        elif flags & self.O_TRUNC:
            path.folder.truncate(path.folder.entries[path.where], 0)
        self._last_fd += 1
        self._open[self._last_fd] = _Open(path.folder, path.where, None if path.is_folder else path.folder.entries[path.where])
        return self._last_fd

    def fdopen(self, fd: int, mode: str) -> _Writer:
        return _Writer(self, fd)

    def close(self, fd: int) -> None:
        del self._open[fd]

    def fsync(self, fd: int) -> None:
        opened = self._open[fd]
        if opened.file is None:
            opened.folder.sync(opened.where)
        else:
            opened.folder.sync_file(opened.file)

    fdatasync = fsync

    def writev(self, fd: int, buffers: Sequence[Any]) -> int:
        opened = self._of(fd)
        written = opened.folder.write(opened.file, opened.at, b"".join(buffers))
        opened.at += written
        return written

    def pread(self, fd: int, count: int, at: int) -> bytes:
        return bytes(self._of(fd).file.data[at : at + count])

    def fstat(self, fd: int) -> Any:
        return SimpleNamespace(st_size=len(self._of(fd).file.data))

    def ftruncate(self, fd: int, size: int) -> None:
        opened = self._of(fd)
        opened.folder.truncate(opened.file, size)

    def _of(self, fd: int) -> Any:
        return self._open[fd]
