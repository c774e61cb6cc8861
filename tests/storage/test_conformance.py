"""What every Store promises, checked on every engine, before and after it was closed and opened again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from taskq.core.attempt import ERROR_BYTES_MAX, Attempt
from taskq.core.task import Options, Task
from taskq.ids import make_id, ms_of_id
from taskq.storage.base import AHEAD_ID_MS, COLUMNS, META_COLUMN, PRUNED_ID_MS, Count, Pruned, Retention, Row, Store, WriteBatch
from taskq.storage.memory import Contents, MemoryStore
from taskq.storage.rows import row_of, task_of
from taskq.storage.sqlite import SqliteStore

PENDING, RUNNING, RETRYING, COMPLETED, FAILED = 2, 3, 4, 5, 6
NOTHING = Retention(finished_before_ms=0, failed_before_ms=0, finished_rows_max=1_000_000)
RNG = random.Random(1)

Maker = Callable[[], Store]


def _sqlite(folder: Path) -> Maker:
    return lambda: SqliteStore(folder / "store.db")


def _memory(folder: Path) -> Maker:
    contents = Contents()
    return lambda: MemoryStore(contents)


ENGINES = {"memory": _memory, "sqlite": _sqlite}


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Maker:
    return ENGINES[request.param](tmp_path)


@pytest.fixture
async def store(make: Maker) -> AsyncIterator[Store]:
    store = make()
    await store.open()
    yield store
    await store.close()


def row(seq: int, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "seq": seq,
        "id": make_id(1_000_000 + seq, 7, RNG),
        "queue": "email",
        "task_type": "send",
        "state": PENDING,
        "priority": 5,
        "position": seq,
        "due_ms": 0,
        "finished_ms": 0,
        "key": None,
        "payload": b"payload %d" % seq,
        "result": b"",
        "meta": b"\x00meta\xff",
    }
    assert fields.keys() <= values.keys()
    return tuple((values | fields)[name] for name in COLUMNS)


def seqs(rows: list[Row]) -> list[int]:
    return [found[0] for found in rows]


async def everything(store: Store) -> list[Row]:
    return await store.load(range(9), 0, 1_000_000)


def attempt(n: int, error: str | None = "") -> Attempt:
    return Attempt(n, "w1", 10 * n, 10 * n + 5, "failed", "E", error)


def failing(seq: int, *history: Attempt, finished: bool = False) -> tuple[Row, tuple[Attempt, ...]]:
    """The row of a task that has failed, as a flush makes it, and the texts beside it."""
    state = COMPLETED if finished else RETRYING
    task = Task(make_id(1_000_000, 7, random.Random(seq)), seq, "email", Options("send"), b"", state, 1, history=history)
    return row_of(task), history


async def texts(store: Store, ids: list[bytes]) -> list[list[str | None]]:
    return [[each.error for each in task_of(found, whole=True).history] for found in await store.find(ids, [])]


async def test_long_texts_of_errors_come_from_beside_the_rows_and_from_the_rows_before(make: Maker, store: Store) -> None:
    first, second = failing(1, attempt(1, "a" * 900)), failing(2, attempt(1, "b" * 900))
    await store.commit(WriteBatch(put=[first[0], second[0]], texts={1: first[1], 2: second[1]}))
    ids = [first[0][1], second[0][1]]
    assert await texts(store, ids) == [["a" * 900], ["b" * 900]]
    again = failing(1, attempt(1, None), attempt(2, "c" * 900))
    ended = failing(2, attempt(1, None), attempt(2, "short"), finished=True)
    await store.commit(WriteBatch(put=[again[0]], finish=[ended[0]], delete=[2], texts={1: again[1], 2: ended[1]}))
    await store.close()
    store = make()
    await store.open()
    assert await texts(store, ids) == [["a" * 900, "c" * 900], ["b" * 900, "short"]]
    await store.close()


async def test_the_texts_of_a_task_have_their_bound_and_the_oldest_are_cut_first(store: Store) -> None:
    history: tuple[Attempt, ...] = ()
    for n in range(1, 21):
        history = (*(attempt(each.number, None) for each in history), attempt(n, f"{n:2}" + "\u00e9" * (ERROR_BYTES_MAX // 2 - 1)))
        made, beside = failing(1, *history)
        await store.commit(WriteBatch(put=[made], texts={1: beside}))
    [found] = await texts(store, [made[1]])
    assert [len((text or "").encode()) for text in found] == [0] * 18 + [ERROR_BYTES_MAX] * 2
    assert found[19] and found[19].startswith("20")


async def test_pages_of_tasks_come_without_their_long_texts(store: Store) -> None:
    """Else twenty thousand of them would be six hundred megabytes."""
    rows = [failing(seq, *(attempt(n, "e" * 1_600) for n in range(1, 21))) for seq in range(1, 101)]
    await store.commit(WriteBatch(put=[made for made, _ in rows], texts={made[0]: beside for made, beside in rows}))
    due = await store.due(-1, 0, 1_000)
    assert len(due) == 100 and (isinstance(store, MemoryStore) or max(len(found[META_COLUMN]) for found in due) < 2_000)


async def test_a_new_store_is_empty(make: Maker) -> None:
    store = make()
    assert await store.open() == {}
    assert await store.counts() == []
    assert await everything(store) == []
    assert await store.find([bytes(16)], [("email", "k")]) == []
    assert await store.prune(NOTHING) == Pruned(0, 0)
    await store.close()


async def test_what_was_committed_is_there_after_a_restart(store: Store, make: Maker) -> None:
    rows, ended = [row(1), row(2, key="k", state=RUNNING)], row(3, state=COMPLETED, finished_ms=9)
    await store.commit(WriteBatch(meta={"applied_lsn": 7, "epoch": 1 << 40}, put=rows, finish=[ended]))
    await store.commit(WriteBatch(meta={"applied_lsn": 8}))
    await store.close()
    again = make()
    assert await again.open() == {"applied_lsn": 8, "epoch": 1 << 40}
    assert await everything(again) == rows
    assert await again.find([ended[1]], []) == [ended]
    await again.close()
    await store.open()


async def test_very_many_named_integers_are_kept_and_replaced_at_once(store: Store, make: Maker) -> None:
    numbers = {f"queue_bytes q{number}": number for number in range(1_234)}
    await store.commit(WriteBatch(meta=numbers))
    numbers |= {f"queue_bytes q{number}": 7 for number in range(600)}
    await store.commit(WriteBatch(meta=dict(numbers)))
    await store.close()
    again = make()
    assert await again.open() == numbers
    await again.close()
    await store.open()


async def test_the_newest_id_is_found_up_to_a_bound_and_in_both_tables(store: Store) -> None:
    ids = [make_id(ms, 7, random.Random(ms)) for ms in (1_000, 2_000, 3_000)]
    assert await store.newest_id(ids[-1]) == b""
    await store.commit(WriteBatch(put=[row(1, id=ids[0]), row(3, id=ids[2])], finish=[row(2, id=ids[1], state=COMPLETED, finished_ms=5)]))
    assert [await store.newest_id(task_id) for task_id in ids] == ids
    assert await store.newest_id(bytes(16)) == b""
    assert await store.ids_after(bytes(16), 2) == ids[:2]
    assert await store.ids_after(ids[0], 9) == ids[1:]


async def test_put_replaces_by_seq_and_delete_forgets(store: Store) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 6)]))
    changed = row(2, state=RETRYING, due_ms=99, payload=b"new", key="k")
    await store.commit(WriteBatch(put=[changed, row(9)], delete=[1, 3, 777]))
    assert seqs(await everything(store)) == [2, 4, 5, 9]
    assert (await everything(store))[0] == changed


async def test_a_task_that_ends_leaves_the_live_rows_in_the_same_transaction(store: Store) -> None:
    live = row(1, state=RUNNING)
    await store.commit(WriteBatch(put=[live]))
    ended = row(1, id=live[1], state=COMPLETED, result=b"42", finished_ms=5)
    await store.commit(WriteBatch(delete=[1], finish=[ended]))
    assert await everything(store) == []
    assert await store.find([live[1]], []) == [ended]


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 99, 100, 120, 499, 500, 501, 621, 1723])
async def test_any_number_of_rows_goes_in_and_out(store: Store, count: int) -> None:
    rows = [row(seq) for seq in range(1, count + 1)]
    ended = [row(seq, state=COMPLETED, finished_ms=seq) for seq in range(5001, 5001 + count)]
    await store.commit(WriteBatch(put=rows, finish=ended))
    assert await everything(store) == rows
    assert await store.find([found[1] for found in rows + ended], []) == rows + ended
    await store.commit(WriteBatch(delete=seqs(rows)))
    assert await everything(store) == []


async def test_buffers_of_all_kinds_come_back_as_bytes(store: Store) -> None:
    frame = bytearray(b"..hello..")
    await store.commit(WriteBatch(put=[row(1, payload=memoryview(frame)[2:7], result=bytearray(b"r"), meta=memoryview(b""))]))
    frame[:] = b"overwrite"
    (found,) = await everything(store)
    assert found[10:] == (b"hello", b"r", b"")
    assert all(type(value) is bytes for value in (found[1], *found[10:]))


async def test_large_payloads_and_large_integers_survive(store: Store) -> None:
    big = row(1, payload=bytes(range(256)) * 8192, due_ms=2**53 + 1, position=2**62)
    await store.commit(WriteBatch(put=[big]))
    assert await everything(store) == [big]


async def test_a_batch_that_fails_changes_nothing_and_the_store_goes_on(store: Store) -> None:
    await store.commit(WriteBatch(meta={"applied_lsn": 1}, put=[row(1)]))
    broken = row(3)[:-1]
    with pytest.raises(Exception, match=r"column|bindings|values"):
        await store.commit(WriteBatch(meta={"applied_lsn": 2}, put=[row(2)], delete=[1], finish=[broken]))
    assert seqs(await everything(store)) == [1]
    await store.commit(WriteBatch(put=[row(4)]))
    assert seqs(await everything(store)) == [1, 4]


async def test_counts_group_the_live_rows(store: Store) -> None:
    rows = [row(1), row(2), row(3, priority=9), row(4, queue="a"), row(5, task_type="x", state=RUNNING), row(6, state=FAILED), row(7, state=FAILED)]
    await store.commit(WriteBatch(put=rows, finish=[row(8, state=COMPLETED)]))
    assert sorted(await store.counts(), key=repr) == sorted(
        [
            Count("a", PENDING, 5, "send", 1),
            Count("email", PENDING, 5, "send", 2),
            Count("email", PENDING, 9, "send", 1),
            Count("email", RUNNING, 5, "x", 1),
            Count("email", FAILED, 5, "send", 2),
        ],
        key=repr,
    )


async def test_load_pages_through_the_states_by_seq(store: Store) -> None:
    states = (PENDING, RUNNING, RETRYING)
    rows = [row(seq, state=states[seq % 3]) for seq in range(1, 31)]
    await store.commit(WriteBatch(put=rows[::-1]))
    assert seqs(await store.load([RUNNING, RETRYING], 0, 4)) == [1, 2, 4, 5]
    assert seqs(await store.load([RUNNING, RETRYING], 5, 4)) == [7, 8, 10, 11]
    assert await store.load([PENDING], 0, 100) == rows[2::3]
    assert await store.load([PENDING], 30, 100) == []
    assert await store.load([], 0, 100) == []


async def test_a_line_is_read_by_position(store: Store) -> None:
    rows = [row(seq, position=100 - seq) for seq in range(1, 11)]
    others = [row(20, queue="other"), row(21, priority=4), row(22, task_type="other"), row(23, state=RUNNING), row(24, state=RUNNING)]
    await store.commit(WriteBatch(put=rows + others))
    assert seqs(await store.line("email", 5, "send", PENDING, 0, 3)) == [10, 9, 8]
    assert seqs(await store.line("email", 5, "send", PENDING, 92, 100)) == [7, 6, 5, 4, 3, 2, 1]
    assert seqs(await store.line("email", 5, "send", RUNNING, 0, 100)) == [23, 24]
    assert await store.line("email", 5, "send", PENDING, 99, 100) == []


async def test_timed_tasks_are_read_by_due_time_and_then_by_seq(store: Store) -> None:
    dues = [30, 10, 20, 10, 30, 10, 10]
    rows = [row(seq, state=(0, RETRYING)[seq % 2], due_ms=due_ms) for seq, due_ms in enumerate(dues, 1)]
    others = [row(20, due_ms=10), row(21, state=RUNNING, due_ms=10), row(22, state=FAILED, due_ms=10)]
    large = row(23, state=0, due_ms=20, payload=bytes(100_000), key="ä")
    await store.commit(WriteBatch(put=[*rows, *others, large]))
    assert seqs(await store.due(0, 0, 100)) == [2, 4, 6, 7, 3, 23, 1, 5]
    assert seqs(await store.due(10, 4, 3)) == [6, 7, 3]
    assert seqs(await store.due(10, 4, 2)) == [6, 7]
    assert await store.due(20, 3, 2) == [large, rows[0]]
    assert await store.due(30, 5, 2) == []


async def test_find_by_id_and_key_gives_each_row_once_live_ones_first(store: Store) -> None:
    ended, live = row(1, state=COMPLETED, key="a", finished_ms=3), row(2, key="b")
    namesake, other = row(3, key="a", queue="other"), row(4, key="c")
    await store.commit(WriteBatch(put=[other, live, namesake], finish=[ended]))
    wanted = [("email", "a"), ("email", "b"), ("email", "missing")]
    assert await store.find([ended[1], live[1], bytes(16)], wanted) == [live, ended]
    assert await store.find([], wanted) == [live, ended]
    assert await store.find([namesake[1]], []) == [namesake]
    assert await store.find([], []) == []


async def test_a_task_that_finished_twice_is_found_twice_in_order(store: Store) -> None:
    first = row(1, state=7, finished_ms=3)
    second = row(1, id=first[1], state=COMPLETED, finished_ms=8)
    await store.commit(WriteBatch(finish=[first]))
    await store.commit(WriteBatch(finish=[second]))
    assert await store.find([first[1]], []) == [first, second]


async def test_many_keys_are_found_at_once(store: Store) -> None:
    rows = [row(seq, key=f"k{seq}", queue=f"q{seq % 3}") for seq in range(1, 1301)]
    await store.commit(WriteBatch(put=rows))
    assert await store.find([], [(found[2], found[9]) for found in reversed(rows)]) == rows


async def test_two_tasks_may_have_one_id(store: Store) -> None:
    one = row(1)
    two = row(2, id=one[1], payload=b"a lying client")
    await store.commit(WriteBatch(put=[one, two]))
    assert await store.find([one[1]], []) == [one, two]


# ---- retention ------------------------------------------------------------------------------------------------------------------------


async def finished_ids(store: Store, rows: list[Row]) -> list[int]:
    return seqs(await store.find([ended[1] for ended in rows], []))


async def test_prune_deletes_old_finished_rows_from_the_old_end(store: Store) -> None:
    rows = [row(seq, state=COMPLETED, finished_ms=seq * 10) for seq in range(1, 11)]
    await store.commit(WriteBatch(finish=rows))
    pruned = await store.prune(Retention(finished_before_ms=41, failed_before_ms=0, finished_rows_max=100))
    assert pruned == Pruned(4, ms_of_id(rows[3][1]))
    assert await finished_ids(store, rows) == [5, 6, 7, 8, 9, 10]
    await store.close()
    assert await store.open() == {PRUNED_ID_MS: pruned.id_ms_max}


async def test_prune_keeps_at_most_so_many_finished_rows(store: Store) -> None:
    rows = [row(seq, state=COMPLETED, finished_ms=1000) for seq in range(1, 11)]
    await store.commit(WriteBatch(finish=rows))
    limit = Retention(finished_before_ms=0, failed_before_ms=0, finished_rows_max=7)
    assert await store.prune(limit) == Pruned(3, ms_of_id(rows[2][1]))
    assert await store.prune(limit) == Pruned(0, 0)
    assert await finished_ids(store, rows) == [4, 5, 6, 7, 8, 9, 10]


async def test_prune_stops_at_the_first_young_row_but_not_for_the_cap(store: Store) -> None:
    ends_ms = [10, 90, 10, 10, 90]
    rows = [row(seq, state=COMPLETED, finished_ms=end_ms) for seq, end_ms in enumerate(ends_ms, 1)]
    await store.commit(WriteBatch(finish=rows))
    assert (await store.prune(Retention(50, 0, finished_rows_max=100))).rows == 1
    assert (await store.prune(Retention(50, 0, finished_rows_max=3))).rows == 1
    assert (await store.prune(Retention(50, 0, finished_rows_max=3))).rows == 2
    assert await finished_ids(store, rows) == [5]


async def test_prune_is_bounded_and_can_empty_the_store(store: Store) -> None:
    rows = [row(seq, state=COMPLETED, finished_ms=1) for seq in range(1, 26)]
    dead = [row(seq, state=FAILED, finished_ms=100 - seq) for seq in range(31, 56)]
    await store.commit(WriteBatch(finish=rows, put=dead))
    retention = Retention(finished_before_ms=50, failed_before_ms=1000, finished_rows_max=0, rows_max=10)
    assert [(await store.prune(retention)).rows for _ in range(4)] == [20, 20, 10, 0]
    await store.commit(WriteBatch(finish=[row(90, state=COMPLETED, finished_ms=99)]))
    assert (await store.prune(retention)).rows == 1


async def test_prune_takes_dead_letters_by_age_and_leaves_everything_else(store: Store) -> None:
    queues = ("b", "a", "b", "a")
    dead = [row(seq, state=FAILED, finished_ms=seq * 10, queue=queue) for seq, queue in enumerate(queues, 1)]
    await store.commit(WriteBatch(put=[*dead, row(8), row(9, state=RETRYING)]))
    assert await store.prune(Retention(1000, 31, 100)) == Pruned(3, ms_of_id(dead[2][1]), (("a", 1), ("b", 2)))
    assert seqs(await everything(store)) == [4, 8, 9]


async def test_the_highest_pruned_id_time_never_falls(store: Store) -> None:
    young_id, old_id = make_id(9_000_000, 1, RNG), make_id(1_000, 1, RNG)
    await store.commit(WriteBatch(finish=[row(1, id=young_id, state=COMPLETED, finished_ms=1), row(2, id=old_id, state=COMPLETED, finished_ms=2)]))
    assert (await store.prune(Retention(2, 0, 100))).id_ms_max == 9_000_000
    assert (await store.prune(Retention(3, 0, 100))).id_ms_max == 1_000
    await store.close()
    assert (await store.open())[PRUNED_ID_MS] == 9_000_000


async def test_ids_that_were_ahead_when_their_tasks_were_deleted_have_a_mark_of_their_own(store: Store) -> None:
    timely, ahead, ahead_dead = make_id(1_000, 1, RNG), make_id(9_000, 1, RNG), make_id(9_500, 1, RNG)
    finished = [row(1, id=ahead, state=COMPLETED, finished_ms=1), row(2, id=timely, state=COMPLETED, finished_ms=2)]
    await store.commit(WriteBatch(put=[row(3, id=ahead_dead, state=FAILED, finished_ms=1)], finish=finished))
    pruned = await store.prune(Retention(3, 2, 100, ids_until_ms=1_000))
    assert (pruned.rows, pruned.id_ms_max, pruned.ahead_ms_max) == (3, 1_000, 9_500)
    await store.close()
    meta = await store.open()
    assert (meta[PRUNED_ID_MS], meta[AHEAD_ID_MS]) == (1_000, 9_500)


async def test_checkpoint_and_close_may_be_repeated(store: Store) -> None:
    await store.commit(WriteBatch(put=[row(1)]))
    await store.checkpoint()
    await store.checkpoint()
    await store.close()
    await store.close()
    await store.open()
    assert seqs(await everything(store)) == [1]


async def test_engines_agree_on_a_random_history(tmp_path: Path) -> None:
    """The reference engine and each other one see the same commits and prunes, and answer the same."""
    rng = random.Random(20)
    stores = [maker(tmp_path)() for maker in ENGINES.values()]
    for store in stores:
        await store.open()
    try:
        live: set[int] = set()
        ids: list[bytes] = []
        for step in range(1, 120):
            batch = WriteBatch(meta={"applied_lsn": step})
            for seq in rng.sample(range(1, 60), 8):
                new = row(seq, state=rng.choice((0, PENDING, RUNNING, RETRYING, FAILED)), queue=rng.choice("ab"), key=rng.choice((None, "x", "y")))
                ended = row(seq, state=COMPLETED, finished_ms=step, key=rng.choice((None, "x")))
                ids += [new[1], ended[1]]
                if rng.random() < 0.6:
                    batch.put.append(new)
                    live.add(seq)
                else:
                    batch.delete.append(seq)
                    batch.finish.append(ended)
            retention = Retention(step - 9, rng.choice((0, 5)), rng.randrange(30, 60), rng.randrange(1, 20))
            asked = rng.sample(ids, 10)
            for store in stores:
                await store.commit(batch)
            answers = [
                (
                    await store.prune(retention),
                    await everything(store),
                    sorted(await store.counts(), key=repr),
                    await store.line("a", 5, "send", PENDING, 0, 10),
                    await store.due(0, 0, 10),
                    await store.find(asked, [("a", "x"), ("b", "y")]),
                )
                for store in stores
            ]
            assert all(answer == answers[0] for answer in answers), f"step {step}"
    finally:
        for store in stores:
            await store.close()


async def test_what_can_be_given_back_at_once_is_and_what_is_spare_inside_is_told(store: Store) -> None:
    await store.commit(WriteBatch(put=[row(seq, payload=bytes(2_000)) for seq in range(1, 501)]))
    assert store.log_bytes() >= 0
    assert await store.shrink() >= 0
    assert store.log_bytes() == 0
    await store.commit(WriteBatch(delete=list(range(1, 501))))
    spare = await store.shrink()
    assert spare > 500_000 if store.capabilities.durable else spare == 0
    assert await everything(store) == []
