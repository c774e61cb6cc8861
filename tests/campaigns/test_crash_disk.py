"""What a power loss may leave, and what it may not: the rules of the disk on which the images of the campaign rest, and the reading of a trace."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from campaigns import trace
from campaigns.crash_disk import SECTOR_BYTES, CrashDisk, Operation

ROOT, FILE = "/disk", "/disk/file"
MANY = 400


def disk(*operations: Operation, syncs: bool = True) -> CrashDisk:
    """A disk on which these happened one after the other."""
    made = CrashDisk(ROOT, syncs=syncs)
    for operation in operations:
        made.begin(operation)
        made.end(operation)
    return made


def create(path: str = FILE) -> Operation:
    return Operation("create", path)


def write(data: bytes, offset: int | None = None, path: str = FILE) -> Operation:
    return Operation("write", path, offset=offset, data=data)


def sync(path: str = FILE) -> Operation:
    return Operation("sync", path)


def images(made: CrashDisk) -> list[dict[str, bytes | None]]:
    rng = random.Random(1)
    return [made.image(rng) for _ in range(MANY)]


def contents(made: CrashDisk, path: str = FILE) -> set[bytes | None]:
    return {image.get(path, b"(no file)") for image in images(made)}


def durable() -> Iterable[Operation]:
    return (create(), sync(ROOT))


def test_what_was_synced_is_in_every_image() -> None:
    assert contents(disk(*durable(), write(b"abc"), write(b"def"), sync())) == {b"abcdef"}


def test_what_was_not_synced_may_be_there_or_not_and_later_writes_without_earlier_ones() -> None:
    found = contents(disk(*durable(), write(b"abc"), sync(), write(b"def"), write(b"ghi")))
    assert found >= {b"abc", b"abcdef", b"abc\0\0\0ghi", b"abcdefghi", b"abc\0\0\0\0\0\0"}
    assert all(each.startswith(b"abc") for each in found)


def test_a_write_is_torn_at_sectors_only() -> None:
    data = b"".join(bytes([number]) * SECTOR_BYTES for number in range(1, 4))
    found = contents(disk(*durable(), write(data, offset=SECTOR_BYTES // 2)))
    parts = [data[begin : begin + SECTOR_BYTES] for begin in (SECTOR_BYTES // 2, SECTOR_BYTES * 3 // 2)]
    assert len(found) > 5
    for each in found:
        for at, part in zip((SECTOR_BYTES, 2 * SECTOR_BYTES), parts, strict=True):
            assert each[at : at + SECTOR_BYTES] in (part, bytes(SECTOR_BYTES), b"")


def test_a_truncation_counts_when_it_is_synced() -> None:
    cut = Operation("truncate", FILE, offset=1)
    assert contents(disk(*durable(), write(b"abc"), sync(), cut)) == {b"abc", b"a"}
    assert contents(disk(*durable(), write(b"abc"), sync(), Operation("truncate", FILE, offset=1), sync())) == {b"a"}


def test_a_new_name_counts_when_its_folder_is_synced_and_not_when_the_file_is() -> None:
    assert contents(disk(create(), write(b"abc"), sync())) == {b"abc", b"(no file)"}
    assert contents(disk(create(), write(b"abc"), sync(), sync(ROOT))) == {b"abc"}
    assert b"" in contents(disk(create(), write(b"abc"), sync(ROOT)))


def test_a_rename_gives_the_old_file_or_the_new_one() -> None:
    fresh = "/disk/file.new"
    made = disk(*durable(), write(b"old"), sync(), create(fresh), write(b"new", path=fresh), sync(fresh), Operation("rename", fresh, target=FILE))
    assert contents(made) == {b"old", b"new"}
    made.begin(folder := sync(ROOT))
    assert contents(made) == {b"old", b"new"}
    made.end(folder)
    assert contents(made) == {b"new"}


def test_a_file_that_was_renamed_before_it_was_synced_may_be_empty() -> None:
    fresh = "/disk/file.new"
    made = disk(*durable(), write(b"old"), sync(), create(fresh), write(b"new", path=fresh), Operation("rename", fresh, target=FILE), sync(ROOT))
    assert contents(made) == {b"", b"new", bytes(3)}


def test_an_unlinked_file_may_come_back() -> None:
    made = disk(*durable(), write(b"abc"), sync(), Operation("unlink", FILE))
    assert contents(made) == {b"abc", b"(no file)"}


def test_a_folder_that_is_not_durable_takes_its_files_with_it() -> None:
    inside = "/disk/folder/file"
    made = disk(Operation("mkdir", "/disk/folder"), create(inside), write(b"abc", path=inside), sync(inside), sync("/disk/folder"))
    assert contents(made, inside) == {b"abc", b"(no file)"}
    made.begin(folder := sync(ROOT))
    made.end(folder)
    assert contents(made, inside) == {b"abc"}


def test_a_sync_covers_only_what_had_ended_before_it_began() -> None:
    made, late, under_way = disk(*durable()), write(b"late"), sync()
    made.begin(under_way)
    made.begin(late)
    made.end(late)
    made.end(under_way)
    assert b"" in contents(made)


def test_a_disk_that_lies_keeps_nothing_for_certain() -> None:
    assert {} in images(disk(create(), write(b"abc"), sync(), sync(ROOT), syncs=False))


# ---- traces ---------------------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys, threading
root = sys.argv[1]
os.mkdir(root + "/folder")
fd = os.open(root + "/folder/new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
os.writev(fd, [b'a"b', bytes(3), b"\\n"])
os.rename(root + "/folder/new", root + "/folder/file")
os.pwrite(fd, b"Z", 1)
os.fdatasync(fd)
os.ftruncate(fd, 5)
threads = [threading.Thread(target=lambda: [os.fsync(fd) for _ in range(50)]) for _ in range(2)]
[thread.start() for thread in threads]
for _ in range(50): os.write(fd, b"")
[thread.join() for thread in threads]
os.write(1, b"mark\\n")
folder = os.open(root + "/folder", os.O_RDONLY)
os.fsync(folder)
try: os.rename(root + "/no", root + "/where")
except OSError: pass
os.unlink(root + "/folder/file")
os.write(fd, b"into nothing")
"""


def test_a_trace_tells_what_a_program_did_to_its_files(tmp_path: Path) -> None:
    root, marks, out = tmp_path / "root", tmp_path / "marks", tmp_path / "trace"
    root.mkdir()
    with marks.open("wb") as file:
        subprocess.run(
            [*trace.COMMAND, "-e", f"trace={trace.CALLS}", "-o", str(out), sys.executable, "-c", PROGRAM, str(root)],
            stdout=file,
            check=True,
            timeout=60,
        )
    found = trace.steps(out, root, marks)
    begun = [step.operation for step in found if not step.ends]
    assert [each for each in begun if each.ended] == []
    assert len(found) == 2 * len(begun)
    told = [(each.kind, each.path.removeprefix(str(root)), each.target.removeprefix(str(root)), each.offset, each.data) for each in begun]
    assert [each for each in told if each[0] != "sync" and each[:1] + each[4:] != ("write", b"")] == [
        ("mkdir", "/folder", "", None, b""),
        ("create", "/folder/new", "", None, b""),
        ("truncate", "/folder/new", "", 0, b""),
        ("write", "/folder/new", "", None, b'a"b\0\0\0\n'),
        ("rename", "/folder/new", "/folder/file", None, b""),
        ("write", "/folder/file", "", 1, b"Z"),
        ("truncate", "/folder/file", "", 5, b""),
        ("mark", str(marks), "", None, b"mark\n"),
        ("unlink", "/folder/file", "", None, b""),
    ]
    assert sum(each[:2] == ("sync", "/folder/file") for each in told) == 101
    assert told[-2][:2] == ("sync", "/folder")


def test_a_write_that_the_trace_cuts_is_an_error() -> None:
    with pytest.raises(AssertionError, match="cuts"):
        list(trace.operations_of("write", r'3<\x2f\x61>, "\x61"..., 5) = 5'))
