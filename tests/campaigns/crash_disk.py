"""What a power loss may leave of files: pure, no file is touched here.

Rules.  A write or truncation is durable when a sync of its file has ended that began after it had ended.  A new name, a rename, an unlink, a new
folder is durable when a sync of the folder has.  What is not durable may have happened or not, each by itself and later ones without earlier
ones; a write may be torn at sectors of 512 bytes, and a file may have the size of a write that never reached it, zeros in its place.  A rename
is whole: the name is the old file or the new one.  The death of a process changes nothing here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import PurePosixPath

import attrs

SECTOR_BYTES = 512
TORN_SHARE = 0.3  # of the writes that were not synced and yet are there
STRETCHED_SHARE = 0.2  # of the files that were not synced
CHANCES = (0.0, 0.1, 0.5, 0.9, 1.0)  # that something happened although it was not synced, one of these for each image


@attrs.define(eq=False)
class Operation:
    """One thing that a process asked of its files.  `kind`: create, mkdir, rename (to `target`), unlink; write (`data` at `offset`, None: at the
    end), truncate (to `offset`); sync; mark (`data`: no operation, but something that somebody knows by then)."""

    kind: str
    path: str
    target: str = ""
    offset: int | None = None
    data: bytes = b""
    at_s: float = 0.0
    ended: bool = False
    inode: Inode | None = None


@attrs.define(eq=False)
class Inode:
    """A file or a folder, whatever it is called."""

    folder: bool = False
    durable: bytearray = attrs.field(factory=bytearray)
    size: int = 0
    pending: list[Operation] = attrs.field(factory=list)

    def sync(self, operations: set[Operation]) -> None:
        for operation in self.pending:
            if operation in operations:
                put(self.durable, operation, slice(0, len(operation.data)))
        self.pending = [operation for operation in self.pending if operation not in operations]

    def image(self, rng: random.Random, chance: float) -> bytes:
        data = bytearray(self.durable)
        for operation in self.pending:
            if rng.random() >= chance:
                continue
            torn = operation.kind == "write" and rng.random() < TORN_SHARE
            for part in sectors(operation) if torn else [slice(0, len(operation.data))]:
                if not torn or rng.random() < 0.5:
                    put(data, operation, part)
        if self.pending and chance and rng.random() < STRETCHED_SHARE:
            data.extend(bytes(max(0, self.size - len(data))))
        return bytes(data)


def sectors(operation: Operation) -> Iterator[slice]:
    """The parts of a write between the boundaries of sectors."""
    begin, size = 0, len(operation.data)
    while begin < size:
        end = min(size, begin + SECTOR_BYTES - (operation.offset + begin) % SECTOR_BYTES)
        yield slice(begin, end)
        begin = end


def put(data: bytearray, operation: Operation, part: slice) -> None:
    offset = operation.offset + part.start
    data.extend(bytes(max(0, offset - len(data))))
    if operation.kind == "truncate":
        del data[offset:]
    else:
        data[offset : offset + part.stop - part.start] = operation.data[part]


class CrashDisk:
    """A disk that is told what begins and what ends, and tells what a power loss at this moment may leave.  `root` is durable.  Without `syncs`
    it is a disk that lies: nothing is ever durable."""

    def __init__(self, root: str, *, syncs: bool = True) -> None:
        self.root = root
        self.syncs = syncs
        self.durable: dict[str, Inode] = {}
        self.names: dict[str, Inode] = {}
        self.pending: list[Operation] = []
        self._syncing: dict[Operation, set[Operation]] = {}

    def begin(self, operation: Operation) -> None:
        getattr(self, f"_{operation.kind}")(operation)

    def end(self, operation: Operation) -> None:
        operation.ended = True
        done = self._syncing.pop(operation, set())
        if operation.inode is not None and operation.kind == "sync":
            operation.inode.sync(done)
        for entry in [entry for entry in self.pending if entry in done]:
            enter(self.durable, entry)
        self.pending = [entry for entry in self.pending if entry not in done]

    def image(self, rng: random.Random) -> dict[str, bytes | None]:
        """The files that may be left, by path, folders as None."""
        chance = rng.choice(CHANCES)
        names = dict(self.durable)
        for entry in self.pending:
            if rng.random() < chance:
                enter(names, entry)
        return {path: None if inode.folder else inode.image(rng, chance) for path, inode in names.items() if self._is_reachable(path, names)}

    def _is_reachable(self, path: str, names: dict[str, Inode]) -> bool:
        above = str(PurePosixPath(path).parent)
        return above == self.root or (above in names and names[above].folder and self._is_reachable(above, names))

    # ---- what begins

    def _create(self, operation: Operation) -> None:
        if operation.path in self.names:
            return
        operation.inode = self.names[operation.path] = Inode()
        self.pending.append(operation)

    def _mkdir(self, operation: Operation) -> None:
        operation.inode = self.names[operation.path] = Inode(folder=True)
        self.pending.append(operation)

    def _rename(self, operation: Operation) -> None:
        operation.inode = self.names[operation.target] = self.names.pop(operation.path)
        self.pending.append(operation)

    def _unlink(self, operation: Operation) -> None:
        self.names.pop(operation.path, None)
        self.pending.append(operation)

    def _write(self, operation: Operation) -> None:
        if (inode := self.names.get(operation.path)) is None:
            return
        if operation.offset is None:
            operation.offset = inode.size
        inode.size = max(inode.size, operation.offset + len(operation.data))
        inode.pending.append(operation)

    def _truncate(self, operation: Operation) -> None:
        if (inode := self.names.get(operation.path)) is not None:
            inode.size = operation.offset
            inode.pending.append(operation)

    def _sync(self, operation: Operation) -> None:
        inode = operation.inode = self.names.get(operation.path)
        if not self.syncs:
            return
        waiting = self.pending if inode is None or inode.folder else inode.pending
        self._syncing[operation] = {
            each for each in waiting if each.ended and (waiting is not self.pending or str(PurePosixPath(each.path).parent) == operation.path)
        }

    def _mark(self, operation: Operation) -> None:
        pass


def enter(names: dict[str, Inode], entry: Operation) -> None:
    """Let a new name, a rename or an unlink happen."""
    if entry.kind in ("rename", "unlink"):
        names.pop(entry.path, None)
    if entry.kind != "unlink":
        names[entry.target or entry.path] = entry.inode
