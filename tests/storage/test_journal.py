"""What every Journal promises, and what a FileJournal makes of torn, holed, flipped and missing bytes."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.errors import JournalCorrupt, StartError
from taskq.storage import journal as module
from taskq.storage import witness
from taskq.storage.base import Journal, JournalBatch
from taskq.storage.journal import BATCH_HEAD_BYTES, HEAD_BYTES, FileJournal
from taskq.storage.memory import MemoryJournal
from taskq.storage.witness import Witness, write_witness

Found = list[tuple[int, bytes]]
Maker = Callable[[], "FileJournal | MemoryJournal"]


def flat(batches: Sequence[JournalBatch]) -> Found:
    """(lsn, record) of all records."""
    return [(batch.first_lsn + index, bytes(record)) for batch in batches for index, record in enumerate(batch.records)]


def found(journal: Journal, after_lsn: int = 0) -> Found:
    return flat(list(journal.read(after_lsn)))


def record(lsn: int) -> list[bytes | memoryview]:
    return [b"record ", memoryview(b"%d" % lsn)]


def records(first_lsn: int, count: int) -> list[list[bytes | memoryview]]:
    return [record(lsn) for lsn in range(first_lsn, first_lsn + count)]


def expected(first_lsn: int, last_lsn: int) -> Found:
    return [(lsn, b"record %d" % lsn) for lsn in range(first_lsn, last_lsn + 1)]


def started(journal: FileJournal, epoch: int = 1, after_lsn: int = 0) -> FileJournal:
    for _ in journal.read(after_lsn):
        pass
    journal.start(epoch, max(journal.end_lsn, after_lsn) + 1)
    return journal


def filled(folder: Path, batches: Sequence[tuple[int, bool]], segment_bytes: int = 1 << 20) -> Path:
    """A journal with these batches, each (records, synced afterwards), left as by a kill; the path of its newest segment."""
    journal = started(FileJournal(folder, segment_bytes))
    for count, synced in batches:
        journal.write(journal.end_lsn + 1, records(journal.end_lsn + 1, count))
        if synced:
            journal.sync()
    os.close(journal._fd)
    return segments(folder)[-1]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in segments(folder)}


# ---- every journal --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def restart(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    """Each call gives the journal as it is found after the former one was killed: nothing that was written is lost."""
    former: list[FileJournal | MemoryJournal] = []

    def memory() -> MemoryJournal:
        last = former[-1] if former else MemoryJournal()
        assert isinstance(last, MemoryJournal)
        return last.crash(keep_unsynced=len(last.unsynced))

    def again() -> FileJournal | MemoryJournal:
        former.append(FileJournal(tmp_path / "journal", segment_bytes=300) if request.param == "file" else memory())
        return former[-1]

    return again


def test_what_was_written_is_read_back(restart: Maker) -> None:
    journal = restart()
    assert found(journal) == []
    journal.start(3, 1)
    journal.write(1, records(1, 3))
    assert (journal.end_lsn, journal.synced_lsn) == (3, 0)
    journal.sync()
    assert journal.synced_lsn == 3
    journal.write(4, records(4, 50))
    journal.write(54, [])
    journal.write(54, records(54, 1))
    journal.sync()
    again = restart()
    batches = list(again.read(0))
    assert flat(batches) == expected(1, 54)
    assert {batch.epoch for batch in batches} == {3}
    assert (again.cut, again.end_lsn, again.synced_lsn) == (None, 54, 54)


@pytest.mark.parametrize("after_lsn", [0, 1, 2, 3, 10, 29, 30])
def test_reading_begins_behind_the_given_lsn(restart: Maker, after_lsn: int) -> None:
    journal = restart()
    assert found(journal) == []
    journal.start(1, 1)
    for first in range(1, 31, 3):
        journal.write(first, records(first, 3))
    journal.sync()
    assert found(restart(), after_lsn) == expected(after_lsn + 1, 30)


def test_empty_and_many_buffered_records_keep_their_bytes(restart: Maker) -> None:
    journal = restart()
    assert found(journal) == []
    journal.start(1, 1)
    large = os.urandom(9000)
    journal.write(1, [[], [b""], [b"a", large, b"b", large, large], [b"x"] * 3000, [memoryview(large)[1:5000]]])
    journal.sync()
    assert [value for _, value in found(restart())] == [b"", b"", b"a" + large + b"b" + large * 2, b"x" * 3000, large[1:5000]]


def test_lsns_rise_without_gaps_within_an_epoch_and_may_jump_between_epochs(restart: Maker) -> None:
    journal = restart()
    with pytest.raises(RuntimeError):
        journal.start(1, 1)
    assert found(journal) == []
    journal.start(1, 1)
    with pytest.raises(ValueError, match="next LSN is 1"):
        journal.write(2, records(2, 1))
    journal.write(1, records(1, 2))
    journal.sync()
    second = restart()
    assert found(second) == expected(1, 2)
    with pytest.raises(ValueError, match="next_lsn"):
        second.start(2, 2)
    second.start(2, 100)
    assert second.synced_lsn == 99
    second.write(100, records(100, 2))
    second.sync()
    third = restart()
    batches = list(third.read(99))
    assert flat(batches) == expected(100, 101)
    assert [batch.epoch for batch in batches] == [2]
    assert third.end_lsn == 101


def test_dropping_keeps_what_was_not_applied(restart: Maker) -> None:
    journal = restart()
    assert found(journal) == []
    journal.start(1, 1)
    for first in range(1, 101, 5):
        journal.write(first, records(first, 5))
        journal.sync()
    journal.drop(42)
    journal.write(101, records(101, 1))
    journal.sync()
    assert found(restart(), 42) == expected(43, 101)


def test_a_clean_stop_leaves_an_empty_journal(restart: Maker) -> None:
    journal = restart()
    assert found(journal) == []
    journal.start(1, 1)
    journal.write(1, records(1, 5))
    journal.close(empty=True)
    again = restart()
    assert found(again, 5) == []
    again.start(2, 6)
    again.write(6, records(6, 1))
    again.close()
    assert found(restart(), 5) == expected(6, 6)


def test_a_memory_journal_loses_what_was_not_synced() -> None:
    journal = MemoryJournal()
    assert found(journal) == []
    journal.start(1, 1)
    journal.write(1, records(1, 2))
    journal.sync()
    journal.write(3, records(3, 2))
    journal.write(5, records(5, 2))
    assert found(journal.crash()) == expected(1, 2)
    assert found(journal.crash(keep_unsynced=1)) == expected(1, 4)
    assert journal.crash(keep_unsynced=2).end_lsn == 6


# ---- segments -------------------------------------------------------------------------------------------------------------------------


def test_a_full_segment_is_followed_by_a_new_one_and_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    filled(folder, [(1, False)] * 30, segment_bytes=400)
    paths = segments(folder)
    assert len(paths) > 3
    assert paths[0].name == "00000000000000000001.log"
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert found(FileJournal(folder)) == expected(1, 30)


def test_drop_removes_whole_segments_but_never_the_one_being_written(tmp_path: Path) -> None:
    journal = started(FileJournal(tmp_path, segment_bytes=1))
    for lsn in (1, 2, 3):
        journal.write(lsn, records(lsn, 1))
    journal.drop(0)
    assert len(segments(tmp_path)) == 3
    journal.drop(1)
    assert [path.stem[-1] for path in segments(tmp_path)] == ["2", "3"]
    journal.drop(99)
    assert [path.stem[-1] for path in segments(tmp_path)] == ["3"]
    journal.close(empty=True)
    assert segments(tmp_path) == []


def test_segments_that_come_back_after_a_drop_are_skipped(tmp_path: Path) -> None:
    filled(tmp_path, [(1, True)] * 6, segment_bytes=1)
    kept = segments(tmp_path)
    kept[1].unlink()
    kept[0].write_bytes(b"whatever")
    assert found(FileJournal(tmp_path), 3) == expected(4, 6)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    filled(tmp_path, [(2, True)])
    assert found(FileJournal(tmp_path)) == expected(1, 2)
    journal = started(FileJournal(tmp_path), 2)
    journal.close(empty=True)
    assert [path.name for path in segments(tmp_path)] == ["README"]


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", 99)
        filled(tmp_path, [(2, True)])
    with pytest.raises(StartError, match="format 99"):
        found(FileJournal(tmp_path))


def test_all_batches_are_shown_before_the_first_is_given_out(tmp_path: Path) -> None:
    filled(tmp_path, [(2, True), (3, True)])
    shown: list[int] = []
    given = FileJournal(tmp_path).read(1, look=lambda batch: shown.append(batch.first_lsn))
    assert next(given).first_lsn == 2
    assert shown == [2, 3]


# ---- torn tails -----------------------------------------------------------------------------------------------------------------------


def recovers(folder: Path, last_lsn: int) -> FileJournal:
    """The journal is read up to this LSN, can be written again, and reads back whole."""
    journal = FileJournal(folder)
    assert found(journal) == expected(1, last_lsn)
    journal.start(2, journal.end_lsn + 1)
    journal.write(last_lsn + 1, records(last_lsn + 1, 2))
    journal.sync()
    journal.close()
    again = FileJournal(folder)
    assert found(again, last_lsn) == expected(last_lsn + 1, last_lsn + 2)
    assert again.cut is None
    return journal


def test_a_tail_torn_at_any_byte_is_cut(tmp_path: Path) -> None:
    two = filled(tmp_path / "two", [(2, True)]).stat().st_size
    newest = filled(tmp_path / "journal", [(2, True), (1, False)])
    whole = newest.read_bytes()
    for size in range(two, len(whole)):
        for path in segments(newest.parent):
            path.unlink()
        newest.write_bytes(whole[:size])
        write_witness(tmp_path / "journal.witness", Witness(1))
        journal = recovers(newest.parent, 2)
        assert journal.cut == ((newest, two, size - two) if size > two else None)
        assert newest.stat().st_size == two


def test_a_tail_of_zeros_is_cut(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True)])
    with newest.open("ab") as file:
        file.write(bytes(5000))
    assert recovers(tmp_path, 2).cut is not None


def test_a_segment_that_holds_nothing_is_replaced_by_the_next_one(tmp_path: Path) -> None:
    """As after a kill right behind the start, and after one while the segment was made."""
    filled(tmp_path, [(1, True)] * 2, segment_bytes=1)
    for epoch in (2, 3):
        (tmp_path / "new").write_bytes(b"torn")
        journal = FileJournal(tmp_path)
        assert found(journal, 2) == []
        assert journal.cut is None
        journal.start(epoch, 3)
        journal.drop(2)
        journal.release()
        assert [path.name for path in segments(tmp_path)] == [f"{3:020d}.log"]
    journal = started(FileJournal(tmp_path), 4, after_lsn=2)
    journal.write(3, records(3, 1))
    journal.close()
    batches = list(FileJournal(tmp_path).read(2))
    assert (flat(batches), batches[0].epoch) == (expected(3, 3), 4)


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES - 1])
def test_a_segment_has_its_name_only_when_its_header_is_on_disk(tmp_path: Path, size: int) -> None:
    newest = filled(tmp_path, [(1, True)] * 3, segment_bytes=1)
    newest.write_bytes(newest.read_bytes()[:size])
    refused(tmp_path, newest, 0)


def test_a_power_loss_that_kept_later_pages_and_lost_earlier_ones_is_a_torn_tail(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (40, False), (40, False), (40, False)])
    data = newest.read_bytes()
    two = FileOffsets(data).batches[1]
    newest.write_bytes(data[:two] + bytes(300) + data[two + 300 :])
    journal = recovers(tmp_path, 2)
    assert journal.cut == (newest, two, len(data) - two)


def test_an_abandoned_reading_changes_nothing(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (2, False), (2, False)])
    newest.write_bytes(newest.read_bytes()[:-1])
    before = contents(tmp_path)
    journal = FileJournal(tmp_path)
    next(journal.read(0))
    with pytest.raises(RuntimeError):
        journal.start(2, 9)
    assert contents(tmp_path) == before


# ---- corruption -----------------------------------------------------------------------------------------------------------------------


class FileOffsets:
    """Where the batches of an intact segment begin."""

    def __init__(self, data: bytes) -> None:
        mark = data[HEAD_BYTES : HEAD_BYTES + 8]
        self.batches: list[int] = []
        at = data.find(mark, HEAD_BYTES)
        while at >= 0:
            self.batches.append(at)
            at = data.find(mark, at + 1)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def refused(folder: Path, path: Path, offset: int, after_lsn: int = 0) -> None:
    before = contents(folder)
    with pytest.raises(JournalCorrupt) as caught:
        found(FileJournal(folder), after_lsn)
    assert str(path) in caught.value.message
    assert f"offset {offset}:" in caught.value.message
    assert contents(folder) == before


def test_any_flipped_bit_in_a_witnessed_batch_is_refused(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (2, True), (1, False)])
    first, second, third = FileOffsets(newest.read_bytes()).batches
    for at in range(first, third):
        flip(newest, at)
        refused(tmp_path, newest, first if at < second else second)
        flip(newest, at)
    assert found(FileJournal(tmp_path)) == expected(1, 5)


def test_any_flipped_bit_in_the_last_batch_is_cut(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (2, True), (1, True)])
    data = newest.read_bytes()
    third = FileOffsets(data).batches[2]
    for at in range(third, len(data)):
        flip(newest, at)
        journal = FileJournal(tmp_path)
        assert found(journal) == expected(1, 4)
        assert journal.cut == (newest, third, len(data) - third)
        newest.write_bytes(data)


def test_any_flipped_bit_in_a_segment_header_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, [(1, True)] * 3, segment_bytes=1)
    for path in segments(tmp_path):
        for at in range(HEAD_BYTES):
            flip(path, at)
            refused(tmp_path, path, 0)
            flip(path, at)


def test_a_later_segment_is_a_witness(tmp_path: Path) -> None:
    filled(tmp_path, [(1, False)] * 3, segment_bytes=1)
    middle = segments(tmp_path)[1]
    middle.write_bytes(middle.read_bytes()[:-1])
    refused(tmp_path, middle, HEAD_BYTES)


def test_a_segment_of_a_later_epoch_is_a_witness(tmp_path: Path) -> None:
    old = filled(tmp_path, [(3, False)])
    started(FileJournal(tmp_path), 2).close()
    flip(old, old.stat().st_size - 1)
    refused(tmp_path, old, HEAD_BYTES)


def test_the_store_is_a_witness_for_what_it_has_applied(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (2, True)])
    flip(newest, HEAD_BYTES + BATCH_HEAD_BYTES)
    refused(tmp_path, newest, HEAD_BYTES, after_lsn=1)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_segment_is_refused(tmp_path: Path, missing: int) -> None:
    filled(tmp_path, [(1, True)] * 4, segment_bytes=1)
    paths = segments(tmp_path)
    paths[missing].unlink()
    refused(tmp_path, paths[missing + 1], 0)


def test_a_missing_segment_that_was_applied_is_not_missed(tmp_path: Path) -> None:
    filled(tmp_path, [(1, True)] * 4, segment_bytes=1)
    segments(tmp_path)[0].unlink()
    assert found(FileJournal(tmp_path), 1) == expected(2, 4)


def test_a_missing_segment_between_epochs_is_refused(tmp_path: Path) -> None:
    old = filled(tmp_path, [(3, True)])
    journal = started(FileJournal(tmp_path), 2, after_lsn=3)
    journal.write(4, records(4, 1))
    journal.close()
    old.unlink()
    refused(tmp_path, segments(tmp_path)[0], 0)
    assert found(FileJournal(tmp_path), 3) == expected(4, 4)


# ---- what the journal vouches for -------------------------------------------------------------------------------------------------------


def test_a_store_that_has_less_than_it_had_is_refused(tmp_path: Path) -> None:
    """Although no record is missing: what an older copy of the store, or one that lost half of its log, would make of them is not known."""
    journal = started(FileJournal(tmp_path))
    journal.write(1, records(1, 5))
    journal.sync()
    journal.drop(4)
    journal.write(6, records(6, 1))
    journal.close()
    before = contents(tmp_path)
    with pytest.raises(JournalCorrupt, match="ends with LSN 2, but it had LSN 3 to 4"):
        found(FileJournal(tmp_path), 2)
    assert contents(tmp_path) == before
    assert found(FileJournal(tmp_path), 4) == expected(5, 6)


def test_a_store_that_was_deleted_or_replaced_after_an_orderly_stop_is_refused(tmp_path: Path) -> None:
    journal = started(FileJournal(tmp_path / "journal"))
    journal.write(1, records(1, 5))
    journal.close(empty=True)
    for applied_lsn in (0, 4):
        with pytest.raises(JournalCorrupt, match=f"ends with LSN {applied_lsn}, but it had"):
            found(FileJournal(tmp_path / "journal"), applied_lsn)
    assert found(FileJournal(tmp_path / "journal"), 5) == []


def test_a_journal_that_ends_before_the_store_is_refused(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(2, True), (2, True)])
    data = newest.read_bytes()
    second = FileOffsets(data).batches[1]
    newest.write_bytes(data[:second])
    refused(tmp_path, newest, second, after_lsn=3)


def test_an_end_that_a_start_had_already_read_may_be_gone_later(tmp_path: Path) -> None:
    """After an error of a sync it is in memory only: the next start reads it, and the power fails before that one begins a segment of its own."""
    first_bytes = filled(tmp_path / "one", [(2, True)]).stat().st_size
    path = filled(tmp_path / "two", [(2, True), (3, False)])
    whole = path.read_bytes()
    assert found(FileJournal(tmp_path / "two"), 0) == expected(1, 5)
    for size in (first_bytes, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(JournalCorrupt, match=r"are missing at its end|is not valid"):
            list(FileJournal(tmp_path / "two").read(5, replayed_lsn=4))
        assert list(FileJournal(tmp_path / "two").read(5, replayed_lsn=5)) == []


def test_a_missing_newest_segment_is_refused(tmp_path: Path) -> None:
    newest = filled(tmp_path / "journal", [(1, True)] * 3, segment_bytes=1)
    newest.unlink()
    refused(tmp_path / "journal", newest, 0)


def test_a_missing_folder_is_refused_after_a_kill(tmp_path: Path) -> None:
    newest = filled(tmp_path / "journal", [(1, True)])
    newest.unlink()
    newest.parent.rmdir()
    with pytest.raises(JournalCorrupt, match="the segment is missing"):
        found(FileJournal(tmp_path / "journal"), 1)


def test_segments_that_come_back_after_an_orderly_stop_are_of_no_use(tmp_path: Path) -> None:
    """Unlinks that were not synced may be kept or lost in any order."""
    newest = filled(tmp_path / "journal", [(1, True)] * 3, segment_bytes=1)
    oldest = segments(newest.parent)[0]
    data = oldest.read_bytes()
    journal = started(FileJournal(newest.parent), 2)
    journal.close(empty=True)
    oldest.write_bytes(data)
    again = started(FileJournal(newest.parent), 3, after_lsn=3)
    again.write(4, records(4, 1))
    again.close()
    assert found(FileJournal(newest.parent), 3) == expected(4, 4)


def test_any_flipped_bit_in_the_witness_is_refused_and_a_missing_one_vouches_for_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "journal", [(2, True)])
    path = tmp_path / "journal.witness"
    for at in range(path.stat().st_size):
        flip(path, at)
        with pytest.raises(JournalCorrupt, match=r"journal\.witness: damaged at offset 0"):
            found(FileJournal(tmp_path / "journal"))
        flip(path, at)
    path.unlink()
    assert found(FileJournal(tmp_path / "journal")) == expected(1, 2)


def test_a_witness_of_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(witness, "VERSION", 99)
        write_witness(tmp_path / "journal.witness", Witness(1))
    with pytest.raises(StartError, match="format 99"):
        found(FileJournal(tmp_path / "journal"))


def test_everything_is_looked_at_before_anything_is_given_out(tmp_path: Path) -> None:
    newest = filled(tmp_path, [(1, True)] * 3, segment_bytes=1)
    flip(newest, 0)
    with pytest.raises(JournalCorrupt):
        next(FileJournal(tmp_path).read(0))


def test_segments_in_a_wrong_place_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, [(1, True)] * 3, segment_bytes=1)
    last = segments(tmp_path)[-1]
    moved = last.rename(tmp_path / f"{9:020d}.log")
    refused(tmp_path, moved, 0)


def test_a_payload_that_contains_a_journal_is_only_a_payload(tmp_path: Path) -> None:
    """A torn batch with a copy of batches in its payload must not be taken for corruption."""
    copy = filled(tmp_path / "copied", [(2, True), (2, True), (2, True)]).read_bytes()
    journal = started(FileJournal(tmp_path / "journal"))
    journal.write(1, [[copy, copy]])
    journal.close()
    newest = segments(tmp_path / "journal")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    again = FileJournal(tmp_path / "journal")
    assert found(again) == []
    assert again.cut is not None


# ---- random damage ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8),
    segment_bytes=st.sampled_from([1, 250, 1 << 20]),
    data=st.data(),
)
def test_no_power_loss_loses_a_synced_record_or_is_called_corruption(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, bool]], segment_bytes: int, data: st.DataObject
) -> None:
    """A power loss keeps what was synced, and of what came later any mixture of blocks, up to any size of the file."""
    folder = tmp_path_factory.mktemp("journal")
    journal = started(FileJournal(folder, segment_bytes))
    safe = HEAD_BYTES
    for count, synced in batches:
        journal.write(journal.end_lsn + 1, records(journal.end_lsn + 1, count))
        if synced:
            journal.sync()
        if journal.synced_lsn >= journal._segments[-1].last_lsn:
            safe = journal._segment_size
        elif journal.synced_lsn < journal._segments[-1].first_lsn:
            safe = HEAD_BYTES
    os.close(journal._fd)
    newest = segments(folder)[-1]
    whole = newest.read_bytes()
    tail = bytearray(whole[safe : data.draw(st.integers(safe, len(whole)))])
    for start in range(0, len(tail), 32):
        if data.draw(st.booleans()):
            tail[start : start + 32] = bytes(len(tail[start : start + 32]))
    newest.write_bytes(whole[:safe] + tail)
    again = FileJournal(folder)
    survivors = found(again)
    assert survivors == expected(1, len(survivors))
    assert len(survivors) >= journal.synced_lsn
    assert found(FileJournal(folder)) == survivors


@settings(max_examples=150, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=6),
    segment_bytes=st.sampled_from([1, 250, 1 << 20]),
    data=st.data(),
)
def test_a_flipped_bit_anywhere_gives_a_prefix_or_a_refusal_never_a_wrong_record(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, bool]], segment_bytes: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    filled(folder, batches, segment_bytes)
    path = data.draw(st.sampled_from(segments(folder)))
    flip(path, data.draw(st.integers(0, path.stat().st_size - 1)))
    try:
        survivors = found(FileJournal(folder))
    except JournalCorrupt:
        return
    assert survivors == expected(1, len(survivors))
    newest_batch, synced = batches[-1]
    if synced:
        assert len(survivors) >= sum(count for count, _ in batches) - newest_batch - _unwitnessed(batches)


def _unwitnessed(batches: Sequence[tuple[int, bool]]) -> int:
    """Records in front of the last batch that no later batch vouches for: those written since the sync before it."""
    count = 0
    for records_, synced in reversed(batches[:-1]):
        if synced:
            break
        count += records_
    return count


# ---- the operating system -------------------------------------------------------------------------------------------------------------


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than it was given: here it takes at most 7 at a time, and never a whole group of buffers."""
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, buffers: writev(fd, [memoryview(next(filter(len, buffers)))[:7]]))
    journal = started(FileJournal(tmp_path))
    large = bytes(range(256)) * 20
    journal.write(1, [[b"a", large, b"", b"b"], [large]])
    journal.close()
    assert [value for _, value in found(FileJournal(tmp_path))] == [b"a" + large + b"b", large]


def test_more_buffers_than_one_system_call_takes(tmp_path: Path) -> None:
    journal = started(FileJournal(tmp_path))
    large = bytes(range(256)) * 16
    journal.write(1, [[b"%d" % index, large] for index in range(1500)])
    journal.close()
    assert [value for _, value in found(FileJournal(tmp_path))] == [b"%d" % index + large for index in range(1500)]


def test_after_a_failed_write_nothing_can_be_written_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = started(FileJournal(tmp_path))
    journal.write(1, records(1, 2))
    journal.sync()
    writev = os.writev

    def disk_full(fd: int, buffers: Sequence[bytes]) -> int:
        writev(fd, [memoryview(buffers[0])[:5]])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", disk_full)
        with pytest.raises(OSError, match="No space"):
            journal.write(3, records(3, 1))
    with pytest.raises(OSError):
        journal.write(3, records(3, 1))
    assert found(FileJournal(tmp_path)) == expected(1, 2)


def test_a_failed_sync_is_never_followed_by_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel marks pages clean after a failed write-back, so a second fdatasync would succeed without having written them."""
    journal = started(FileJournal(tmp_path))
    journal.write(1, records(1, 2))

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="Input/output"):
            journal.sync()
    with pytest.raises(OSError):
        journal.sync()
    assert journal.synced_lsn == 0


def test_data_is_synced_before_the_next_segment_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    names: dict[int, str] = {}
    open_ = os.open

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        fd = open_(path, flags, mode)
        names[fd] = Path(path).name
        if flags & os.O_CREAT and not names[fd].endswith(".witness.new"):
            calls.append(f"create {names[fd][-5:]}")
        return fd

    monkeypatch.setattr(os, "open", opened)

    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append(f"fdatasync {names[fd][-5:]}"))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(f"fsync {names[fd]}"))
    folder = tmp_path / "folder"
    journal = started(FileJournal(folder, segment_bytes=1))
    calls.clear()
    journal.write(1, records(1, 1))
    names[journal._fd] = "1.log"
    journal.write(2, records(2, 1))
    names[journal._fd] = "2.log"
    journal.close()
    made = ["create new", "fdatasync new", "fsync folder", "fsync folder.witness.new", f"fsync {tmp_path.name}"]
    assert calls == ["fdatasync 1.log", *made, "fdatasync 2.log"]


def test_a_journal_may_move_from_one_thread_to_another(tmp_path: Path) -> None:
    journal = started(FileJournal(tmp_path))
    for first in (1, 3):
        thread = threading.Thread(target=journal.write, args=(first, records(first, 2)))
        thread.start()
        thread.join()
    journal.close()
    assert found(FileJournal(tmp_path)) == expected(1, 4)
