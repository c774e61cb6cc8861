"""The disk guard on a disk whose free space the test says: when it refuses, when it admits again, and what becomes of the ballast."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from taskq.actors import disk
from taskq.actors.disk import Ballast, DiskGuard
from taskq.config import MIB
from taskq.core.admission import Admission, disk_bytes

FLOOR, BALLAST = 100 * MIB, 4 * MIB


class Desk:
    """A guard, and what it sees."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.owed, self.spare = 1_000 * MIB, 0, 0
        self.reclaimed: list[int] = []
        monkeypatch.setattr(disk, "free_bytes", lambda folder: self.free)
        monkeypatch.setattr(disk, "RECLAIM_S", 0.0)
        self.admission = Admission()
        self.guard = DiskGuard(Ballast(folder, BALLAST), FLOOR, self.admission, lambda: self.owed, lambda: self.spare, self._reclaim)

    def _reclaim(self, short: int) -> None:
        self.reclaimed.append(short // MIB)

    def look(self, free: int, owed: int = 0, spare: int = 0) -> str:
        """The code of the refusal, if there is one, with so many MiB free."""
        self.free, self.owed, self.spare = free * MIB, owed * MIB, spare * MIB
        self.guard.look()
        refusal = self.admission.refusal
        return refusal.code if refusal else ""

    async def ballast(self) -> bool:
        """Whether it is there, after what is being done about it is done."""
        await self.guard.stop()
        return self.guard.ballast.exists


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


async def test_below_the_floor_new_work_is_refused_until_there_is_clearly_more_space(desk: Desk) -> None:
    assert desk.look(free=101) == ""
    assert desk.look(free=100) == "DISK_LOW"
    assert desk.look(free=109) == "DISK_LOW"
    assert desk.look(free=111) == ""


async def test_what_is_admitted_and_not_written_everywhere_yet_counts_as_taken(desk: Desk) -> None:
    assert desk.look(free=150, owed=49) == ""
    assert desk.look(free=150, owed=50) == "DISK_LOW"


async def test_a_writer_cannot_reach_the_wall_between_two_looks(desk: Desk) -> None:
    assert desk.look(free=150) == ""
    tasks = 0
    while desk.admission.refusal is None:
        desk.admission.spend(1_000, 1_000_000)
        tasks += 1_000
    assert 50 * MIB < disk_bytes(tasks, 1_000 * tasks) < 50 * MIB + disk_bytes(1_001, 1_001_000)
    assert desk.look(free=150) == ""


async def test_near_the_floor_the_journal_and_the_store_give_back_what_they_can(desk: Desk) -> None:
    desk.look(free=151)
    assert desk.reclaimed == []
    desk.look(free=149)
    assert desk.reclaimed == [0]


async def test_what_is_short_after_that_is_asked_of_finished_tasks(desk: Desk) -> None:
    desk.look(free=130)
    desk.look(free=130)
    desk.look(free=130, owed=20, spare=10)
    desk.look(free=130, spare=25)
    assert desk.reclaimed == [0, 20, 30, 0]


async def test_a_disk_that_is_well_again_begins_with_what_costs_nobody_anything(desk: Desk) -> None:
    for free in (130, 130, 200, 130):
        desk.look(free=free)
    assert desk.reclaimed == [0, 20, 0]


async def test_no_finished_task_goes_for_a_disk_that_something_else_fills(desk: Desk) -> None:
    for _ in range(3):
        assert desk.look(free=25, spare=50) == "DISK_LOW"
    assert desk.reclaimed == [0, 0, 0]


async def test_between_two_requests_to_give_back_there_is_time_to_do_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RECLAIM_S", 3600.0)
    for _ in range(5):
        desk.look(free=130)
    assert desk.reclaimed == [0]


async def test_space_inside_the_store_counts_but_some_must_be_free_outside(desk: Desk) -> None:
    assert desk.look(free=50, spare=61) == ""
    assert desk.look(free=24, spare=1_000) == "DISK_LOW"


async def test_the_ballast_is_real_space_that_only_the_owner_can_read(desk: Desk, tmp_path: Path) -> None:
    desk.look(free=1_000)
    assert await desk.ballast()
    found = os.stat(tmp_path / "ballast")
    assert found.st_size == BALLAST and found.st_blocks * 512 >= BALLAST and stat.S_IMODE(found.st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["ballast"]


async def test_the_ballast_is_given_up_when_the_disk_is_full_and_made_again_when_there_is_space(desk: Desk) -> None:
    desk.look(free=1_000)
    assert await desk.ballast()
    desk.look(free=4)
    assert await desk.ballast()
    desk.look(free=3)
    assert not await desk.ballast()
    desk.look(free=107)
    assert not await desk.ballast()
    desk.look(free=108)
    assert await desk.ballast()


async def test_a_ballast_for_which_there_is_no_space_is_no_error(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    desk.look(free=1_000)
    assert not await desk.ballast() and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    desk.guard.ballast.make()
    assert desk.guard.ballast.exists


async def test_a_start_on_a_full_disk_gives_up_the_ballast_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ballast(tmp_path, BALLAST).make()
    (tmp_path / "ballast.new").write_bytes(b"of a start that was killed")
    monkeypatch.setattr(disk, "free_bytes", lambda folder: BALLAST)
    Ballast(tmp_path, BALLAST).save_start()
    assert [path.name for path in tmp_path.iterdir()] == ["ballast"]
    monkeypatch.setattr(disk, "free_bytes", lambda folder: BALLAST - 1)
    Ballast(tmp_path, BALLAST).save_start()
    assert list(tmp_path.iterdir()) == []


async def test_a_ballast_of_another_size_is_made_anew_and_none_is_none(tmp_path: Path) -> None:
    Ballast(tmp_path, BALLAST).make()
    assert Ballast(tmp_path, BALLAST).exists
    assert not Ballast(tmp_path, 2 * BALLAST).exists
    Ballast(tmp_path, BALLAST).make()
    assert not Ballast(tmp_path, 0).exists


async def test_the_limits_are_taken_from_the_size_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, floor, ballast in ((64 * MIB, int(6.4 * MIB), int(1.28 * MIB)), (1 << 40, 512 * MIB, 64 * MIB)):
        monkeypatch.setattr(os, "statvfs", lambda folder, size=size: os.statvfs_result((4096, 4096, size // 4096, 0, 0, 0, 0, 0, 0, 255)))
        guard = DiskGuard(Ballast(tmp_path, "auto"), "auto", Admission(), lambda: 0, lambda: 0, lambda short: None)
        assert (guard.floor, guard.ballast.size) == (floor, ballast)
        monkeypatch.undo()


async def test_without_a_floor_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 0)
    admission = Admission()
    DiskGuard(Ballast(tmp_path, 0), 0, admission, lambda: 0, lambda: 0, lambda short: None).look()
    await asyncio.sleep(0)
    assert admission.refusal is None
