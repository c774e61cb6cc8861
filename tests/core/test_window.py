"""The hot window: cold means clean, and what was loaded is in order and there once."""

from __future__ import annotations

import pytest
from small_world import Worker, World, at_once

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.book import QUEUES_MANY
from taskq.core.queue import Queue
from taskq.core.task import PENDING, RUNNING
from taskq.core.window import spill
from taskq.storage.rows import batch_of, task_of


def test_finished_tasks_leave_memory_after_the_flush(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x", keys="k")
    worker.ack(*worker.jobs)
    assert world.in_memory(task_id)
    world.flushed()
    assert world.shard.tasks == {}
    assert world.shard.keys == {}


def test_cold_tasks_leave_memory_after_the_flush_and_hot_ones_stay(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 5)
    assert all(narrow.in_memory(task_id) for task_id in ids)
    narrow.flushed()
    assert [narrow.in_memory(task_id) for task_id in ids] == [True, True, False, False, False]


def test_a_task_that_changed_while_it_was_written_stays(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 3)
    taken = narrow.shard.take_dirty()
    batch = batch_of(taken, {})
    narrow.client.ask(m.Cancel(ids[2]))
    at_once(narrow.store.commit(batch))
    narrow.mail.append((0, fx.Command(0, 0, fx.Flushed(taken, narrow.shard.flushes))))
    narrow.run()
    assert narrow.in_memory(ids[2])
    narrow.flushed()
    assert not narrow.in_memory(ids[2])
    assert narrow.get(ids[2])["state"] == "cancelled"


def test_a_running_or_timed_task_stays_in_memory(world: World) -> None:
    Worker(world, "w1", "email", credit=1)
    ids = world.enqueue(b"x", b"y", delays_ms=[0, 9_000])
    world.flushed()
    assert all(world.in_memory(task_id) for task_id in ids)


def test_a_cold_tail_is_delivered_in_order(narrow: World) -> None:
    ids = narrow.enqueue(*[b"%d" % number for number in range(30)])
    narrow.flushed()
    worker = Worker(narrow, "w1", "email")
    for _ in range(10):
        worker.allow(3)
        narrow.check()
    assert [job.id for job in worker.jobs] == ids
    assert [job.payload for job in worker.jobs] == [b"%d" % number for number in range(30)]


def test_cold_tasks_that_were_not_written_yet_are_written_before_they_are_loaded(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 9)
    worker = Worker(narrow, "w1", "email", credit=9)
    assert [job.id for job in worker.jobs] == ids


def test_arrivals_while_a_load_is_under_way_stay_behind_it(narrow: World) -> None:
    early = narrow.enqueue(*[b"x"] * 5)
    narrow.hold_loads = True
    worker = Worker(narrow, "w1", "email", credit=50)
    late = narrow.enqueue(*[b"y"] * 5)
    assert [job.id for job in worker.jobs] == early[:2]
    narrow.hold_loads = False
    narrow.run()
    assert [job.id for job in worker.jobs] == early + late


def test_a_line_is_not_asked_for_twice_at_a_time(narrow: World) -> None:
    narrow.enqueue(*[b"x"] * 9)
    narrow.hold_loads = True
    worker = Worker(narrow, "w1", "email", credit=1)
    worker.allow(1)
    narrow.tick(1)
    assert len(narrow.loads) == 1


def test_a_loaded_row_that_memory_knows_better_is_left_out(narrow: World) -> None:
    """One task was cancelled after the rows had been read, one is hot already."""
    ids = narrow.enqueue(*[b"x"] * 6)
    narrow.flushed()
    rows = [task_of(row) for row in at_once(narrow.store.line("email", 5, "send_email", PENDING, 0, 4))]
    assert [row.id for row in rows] == ids[:4]
    narrow.client.ask(m.Cancel(ids[3]))
    load = fx.LineLoad("email", 5, "send_email", 0, 4)
    narrow.turn(0, [fx.Command(0, 0, fx.LineLoaded(load, rows))])
    narrow.check()
    worker = Worker(narrow, "w1", "email", credit=9)
    assert [job.id for job in worker.jobs] == [*ids[:3], *ids[4:]]


def test_a_load_that_brings_nothing_is_not_asked_for_again_and_again(narrow: World) -> None:
    worker = Worker(narrow, "w1", "email", credit=2)
    narrow.enqueue(*[b"x"] * 4)
    ran = worker.jobs
    worker.beat()
    worker.release(ran[0])
    narrow.restart()
    worker.resume(narrow, ran[1])
    worker.release(ran[1])
    Worker(narrow, "w2", "email")
    narrow.hold_loads = True
    narrow.tick(1)
    assert len(narrow.loads) <= 1
    narrow.answer_loads()
    narrow.run()
    assert {task.state for task in narrow.shard.tasks.values()} == {PENDING}


def test_after_a_restart_pending_tasks_are_cold_and_come_in_order(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 7)
    narrow.restart()
    assert narrow.shard.tasks == {}
    worker = Worker(narrow, "w1", "email", credit=7)
    assert [job.id for job in worker.jobs] == ids


def test_a_task_given_back_while_the_tail_is_being_loaded_is_delivered_once_and_first(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 6)
    worker = Worker(narrow, "w1", "email")
    narrow.hold_loads = True
    worker.allow(2)
    first, second = worker.jobs
    worker.release(second)
    worker.release(first)
    narrow.hold_loads = False
    other = Worker(narrow, "w2", "email", credit=10)
    narrow.run()
    assert [job.id for job in other.jobs] == ids


def test_the_budget_is_one_over_all_queues() -> None:
    world = World(budget_bytes=1_000_000)
    for queue in ("a", "b"):
        world.enqueue(*[b"x" * 500] * 900, queue=queue)
        world.enqueue(*[b"x" * 500] * 900, queue=queue)
    lines = [world.shard.queues[queue].line(5, "send_email") for queue in ("a", "b")]
    assert [line.hot for line in lines] == [1_000, 1_000]
    assert world.shared.budget.bytes_used == 2_000 * 1_000
    world.check()


def test_a_lease_keeps_its_task_hot(narrow: World) -> None:
    worker = Worker(narrow, "w1", "email", credit=1)
    narrow.enqueue(*[b"x"] * 3)
    narrow.flushed()
    assert narrow.task(worker.jobs[0].id).state == RUNNING
    assert narrow.in_memory(worker.jobs[0].id)


def test_a_task_that_a_newer_flush_has_taken_stays_until_that_one_is_committed(narrow: World) -> None:
    """The news of the first flush comes late, when the second one has begun: a row that was read in between would be taken for the task."""
    ids = narrow.enqueue(*[b"x"] * 3)
    narrow.begin_flush()
    narrow.client.ask(m.Cancel(ids[2]))
    narrow.begin_flush()
    narrow.run()
    assert narrow.in_memory(ids[2])
    narrow.end_flush()
    narrow.run()
    assert not narrow.in_memory(ids[2])


def test_a_flush_looks_at_the_queues_of_its_tasks_and_at_no_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(QUEUES_MANY + 50):
        world.enqueue(b"x", queue=f"queue-{number}")
    world.flushed()
    looked_at: list[str] = []
    length = Queue.length
    monkeypatch.setattr(Queue, "length", property(lambda self: looked_at.append(self.name) or length.fget(self)))
    for number in range(3):
        world.enqueue(b"y", queue=f"queue-{number}")
    looked_at.clear()
    world.flush()
    world.run()
    assert sorted(set(looked_at)) == ["queue-0", "queue-1", "queue-2"]


def test_queues_that_are_empty_are_left_out_as_soon_as_there_are_many(world: World) -> None:
    [last] = [world.enqueue(b"x", queue=f"queue-{number}")[0] for number in range(QUEUES_MANY)][-1:]
    world.client.ask(m.Cancel(last))
    world.flushed()
    assert len(world.shard.queues) == QUEUES_MANY
    world.enqueue(b"x", queue="one-more")
    world.flushed()
    assert f"queue-{QUEUES_MANY - 1}" not in world.shard.queues and len(world.shard.queues) == QUEUES_MANY == world.shared.names.count


def test_what_is_spilled_leaves_memory_with_its_flush_and_is_delivered_in_order(world: World) -> None:
    payloads = [bytes([n]) * 50_000 for n in range(8)]
    stored, fresh = world.enqueue(*payloads[:4]), []
    world.flushed()
    fresh = world.enqueue(*payloads[4:])
    world.shared.budget.tight = True
    spill(world.shard)
    assert [world.in_memory(task_id) for task_id in stored] == [True, False, False, False]
    assert all(world.in_memory(task_id) for task_id in fresh)
    world.flushed()
    assert not any(world.in_memory(task_id) for task_id in fresh)
    world.check()
    worker = Worker(world, "w1", "email", credit=100)
    for _ in range(8):
        world.flushed()
    assert [job.payload for job in worker.jobs] == payloads


def test_what_comes_back_after_a_spill_stands_behind_what_waited_before_it(world: World) -> None:
    payloads = [bytes([n]) * 50_000 for n in range(8)]
    world.enqueue(*payloads)
    first, second = Worker(world, "w1", "email", credit=4), Worker(world, "w2", "email", credit=4)
    first.release(*first.jobs)
    world.flushed()
    spill(world.shard)
    second.release(second.jobs[-1])
    world.check()
    third = Worker(world, "w3", "email", credit=100)
    for _ in range(8):
        world.flushed()
    assert [job.payload for job in third.jobs] == [*payloads[:4], payloads[7]]
