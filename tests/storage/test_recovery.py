"""Recovery: what a replay leaves in the store, however the journal is cut into stretches."""

from __future__ import annotations

import asyncio
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.task import CANCELLED, COMPLETED, FAILED, PENDING, RETRYING, RUNNING
from taskq.ids import ID_BYTES, slot_of_queue, split
from taskq.storage import recovery as module
from taskq.storage.base import PRUNED_ID_MS, Row, WriteBatch
from taskq.storage.journal import FileJournal
from taskq.storage.memory import MemoryStore
from taskq.storage.recovery import Recovered, recover, scratch
from taskq.storage.rows import Opened, batch_of, decode_record, encode_record, open_record, row_of, task_of
from taskq.storage.stretch import Stretch, part

SLOT = slot_of_queue("q")
NOW_MS = 1_700_000_000_000
SESSION = b"s" * 16


def id_of(number: int) -> bytes:
    """An id whose time rises with the number, as a client makes it."""
    return ((NOW_MS + number) << 80 | (0x8000 | SLOT) << 64 | 1 << 63 | number).to_bytes(ID_BYTES, "big")


def ids(numbers: Any) -> bytes:
    return b"".join(map(id_of, numbers))


def admitted(numbers: range, payload: bytes = b"p", due_ms: int = 0) -> r.Admitted:
    count = len(numbers)
    payloads = [payload + b"%d" % number for number in numbers]
    types, keys = [f"t{number % 2}" for number in numbers], [f"k{number}" if number % 3 == 0 else None for number in numbers]
    retries = [[1_000, 2.0, 9_000], *[None] * (count - 1)]
    return r.Admitted(payloads, SLOT, "q", NOW_MS, numbers[0], ids(numbers), types, [m.MSGPACK], [5], [due_ms], keys, [10], [0], retries)


def granted(numbers: range) -> r.Granted:
    return r.Granted(SLOT, NOW_MS, SESSION, "w", numbers[0], ids(numbers), pack(f">{len(numbers)}Q", *numbers))


def completed(numbers: range) -> r.Completed:
    return r.Completed([b"r%d" % number for number in numbers], SLOT, NOW_MS, ids(numbers), [m.MSGPACK])


def ended(numbers: range, states: list[int]) -> r.Ended:
    count = len(numbers)
    outcomes = ["cancelled" if state == CANCELLED else "failed" for state in states]
    dues_ms = [NOW_MS + 5 if state == RETRYING else 0 for state in states]
    return r.Ended(SLOT, NOW_MS, ids(numbers), outcomes, states, dues_ms, ["E"] * count, [f"no {number}" for number in numbers])


NUMBERS = range(1, 7)
WAYS: dict[str, list[Any]] = {
    "completed": [admitted(NUMBERS), granted(NUMBERS), completed(NUMBERS)],
    "ended": [admitted(NUMBERS), granted(NUMBERS), ended(NUMBERS, [RETRYING, FAILED, PENDING, CANCELLED, RETRYING, FAILED])],
    "promoted": [admitted(NUMBERS, due_ms=NOW_MS + 9), r.Promoted(SLOT, ids(NUMBERS), 70)],
    "dropped": [admitted(NUMBERS), r.Dropped(SLOT, NOW_MS, ids(NUMBERS))],
    "asked to stop": [admitted(NUMBERS), granted(NUMBERS), r.CancelAsked(SLOT, ids(NUMBERS))],
}


def replayed(records: list[Any]) -> list[Row]:
    shard = scratch()
    for record in records:
        shard.replay(record)
    return sorted(row_of(task) for task in shard.tasks.values())


def opened(record: Any) -> Opened:
    return open_record(memoryview(b"".join(encode_record(record))))


def test_every_kind_of_record_is_in_one_of_the_ways() -> None:
    assert {type(record) for way in WAYS.values() for record in way} == set(r.KIND_OF)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_record_in_two_parts_says_what_the_whole_does(way: str, cut: int) -> None:
    parts = [each for record in WAYS[way] for each in (part(record, 0, cut), part(record, cut, len(NUMBERS)))]
    assert replayed(parts) == replayed(WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out_is_missed_by_no_other_task(way: str) -> None:
    stretch = Stretch()
    for record in WAYS[way]:
        stretch.add(opened(record), 1)
    out = frozenset(map(id_of, (1, 3, 4)))
    rest = replayed(list(stretch.without(out)))
    assert rest == [row for row in replayed(WAYS[way]) if row[1] not in out]
    assert list(stretch.without(frozenset(map(id_of, NUMBERS)))) == []
    assert list(stretch.without(frozenset())) == WAYS[way]


def test_only_a_task_that_comes_and_completes_in_the_stretch_passes() -> None:
    stretch = Stretch()
    for record in (
        completed(range(1, 3)),
        admitted(range(3, 9)),
        granted(range(3, 7)),
        completed(range(3, 5)),
        ended(range(5, 7), [CANCELLED, FAILED]),
    ):
        stretch.add(opened(record), 1)
    assert stretch.passing() == {id_of(3), id_of(4)}


# ---- from the journal into a store -------------------------------------------------------------------------------------------------


def written(folder: Path, records: list[Any]) -> FileJournal:
    """A journal that was left behind with these records, one in a batch."""
    journal = FileJournal(folder / "journal")
    assert list(journal.read(0)) == []
    journal.start(1, 1)
    for record in records:
        journal.write(journal.end_lsn + 1, [encode_record(record)])
    journal.sync()
    journal.release()
    return FileJournal(folder / "journal")


class Watched(MemoryStore):
    """It remembers the transactions."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[WriteBatch] = []

    async def commit(self, batch: WriteBatch) -> None:
        await asyncio.sleep(0)
        self.batches.append(batch)
        await super().commit(batch)


def flow(tasks: int, step: int = 10) -> list[Any]:
    """Tasks in their way through a broker: some come, those before run, those before them complete; every seventh still runs at the end."""
    records: list[Any] = []
    for begin in range(1, tasks, step):
        now, before = range(begin, begin + step), range(begin - step, begin)
        records.append(admitted(now))
        if before[0] > 0:
            records += [granted(before), *(completed(range(number, number + 1)) for number in before if number % 7)]
    return records


async def recovered(folder: Path, records: list[Any], kept: int | None = None) -> tuple[Recovered, Watched, dict[bytes, int]]:
    store = Watched()
    found = await recover(store, written(folder, records), kept)
    everybody = [task_id for record in records if type(record) is r.Admitted for task_id in split(record.ids, ID_BYTES)]
    return found, store, {row[1]: row[4] for row in await store.find(everybody, [])}


@pytest.mark.parametrize("flush_tasks", [1, 7, 45, 10_000])
async def test_however_it_is_cut_a_replay_leaves_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush_tasks: int) -> None:
    records = flow(200)
    monkeypatch.setattr(module, "FLUSH_TASKS", flush_tasks)
    _, store, _ = await recovered(tmp_path, records)
    numbers = [id_of(number) for number in range(1, 201)]
    rows = sorted(row_of(task_of(row)) for row in await store.find(numbers, []))
    assert rows == replayed(records)


async def test_a_task_that_the_first_prune_would_delete_gets_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = flow(400)
    monkeypatch.setattr(module, "FLUSH_TASKS", 200)
    found, store, states = await recovered(tmp_path / "kept", records, kept=100)
    everything, _, all_states = await recovered(tmp_path / "all", records)
    done = [id_of(number) for number in range(1, 391) if number % 7]
    missing = all_states.keys() - states.keys()
    assert len(missing) > 100
    assert missing <= set(done[:-100])
    assert all(all_states[task_id] == COMPLETED for task_id in missing)
    assert {task_id: all_states[task_id] for task_id in states} == states
    assert found.pruned_id_ms == store.contents.meta[PRUNED_ID_MS] == int.from_bytes(max(missing)[:6], "big")
    assert (found.next_seq, found.next_lsn, found.queue_bytes) == (everything.next_seq, everything.next_lsn, everything.queue_bytes)


async def test_where_fewer_completed_than_are_kept_each_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_TASKS", 60)
    found, store, states = await recovered(tmp_path, flow(200), kept=200)
    assert len(states) == 200
    assert found.pruned_id_ms == 0
    assert PRUNED_ID_MS not in store.contents.meta


async def test_large_payloads_are_flushed_before_many_of_them_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_BYTES", 100_000)
    _, store, states = await recovered(tmp_path, [admitted(range(number, number + 1), payload=bytes(40_000)) for number in range(1, 31)])
    assert len(states) == 30
    assert max(sum(len(row[10]) for row in batch.put) for batch in store.batches) < 150_000
    assert not any(batch.delete for batch in store.batches)


async def test_tasks_that_a_replay_loads_from_the_store_count_for_the_length_of_a_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a hundred bytes can name tasks of a mebibyte."""
    monkeypatch.setattr(module, "FLUSH_BYTES", 100_000)
    numbers, store = range(1, 31), Watched()
    shard = scratch()
    shard.replay(admitted(numbers, payload=bytes(40_000)))
    await store.commit(batch_of(shard.take_dirty(), {"next_seq": 31}))
    await recover(store, written(tmp_path, [granted(range(number, number + 1)) for number in numbers]))
    assert max(sum(len(row[10]) for row in batch.put) for batch in store.batches[1:]) < 150_000
    assert {row[4] for row in await store.find([id_of(number) for number in numbers], [])} == {RUNNING}


async def test_a_replay_keeps_the_texts_of_errors_that_the_store_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_TASKS", 1)
    one = range(1, 2)
    fail = [r.Ended(SLOT, NOW_MS + n, ids(one), ["failed"], [PENDING], [0], ["E"], [f"{n}" * 900]) for n in range(3)]
    _, store, _ = await recovered(tmp_path, [admitted(one), *(each for record in fail for each in (granted(one), record))])
    [row] = await store.find([id_of(1)], [])
    assert [attempt.error for attempt in task_of(row, whole=True).history] == ["0" * 900, "1" * 900, "2" * 900]
    assert [attempt.error for attempt in task_of(row).history] == [None, None, None]


async def test_tasks_that_still_run_at_the_end_of_a_stretch_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(module, "FLUSH_TASKS", 60)
    monkeypatch.setattr(Watched, "find", lambda store, task_ids, keys: asked.append(len(task_ids)) or MemoryStore.find(store, task_ids, keys))
    await recover(Watched(), written(tmp_path, flow(200)))
    assert asked == []


def test_a_batch_of_rows_may_hold_views(tmp_path: Path) -> None:
    """A large payload of a record is a view of what was read, and a row is made of it without a copy."""
    data = b"".join(encode_record(admitted(range(1, 2), payload=bytes(5_000))))
    shard = scratch()
    shard.replay(decode_record(memoryview(data)))
    (row,) = batch_of(shard.take_dirty(), {}).put
    assert isinstance(row[10], memoryview)
    assert row[10].obj is data
