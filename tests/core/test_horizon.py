"""The horizon: of many timed tasks only the next are in memory, and none is early, late, out of order or lost."""

from __future__ import annotations

import pytest
from small_world import Worker, World

from taskq.core import horizon
from taskq.core import messages as m
from taskq.core.book import EVERYTHING


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> World:
    """No memory for waiting tasks; timed ones are loaded two at a time."""
    monkeypatch.setattr(horizon, "NEAR_TASKS", 2)
    return World(budget_bytes=0, shards=2)


def far(world: World) -> int:
    return sum(shard.horizon != EVERYTHING for shard in world.shards)


def test_timed_tasks_that_are_too_many_for_the_memory_leave_it_but_for_the_next(crowded: World) -> None:
    ids = crowded.enqueue(*[b"x"] * 40, delays_ms=[1_000 * (40 - place) for place in range(40)])
    crowded.flushed()
    crowded.check()
    kept = [place for place, task_id in enumerate(ids) if crowded.in_memory(task_id)]
    assert far(crowded) and 2 <= len(kept) <= 8 and kept == list(range(40 - len(kept), 40))


def test_far_tasks_come_near_in_the_order_of_their_due_times_and_none_is_early(crowded: World) -> None:
    worker = Worker(crowded, "w1", "email", credit=100)
    ids = crowded.enqueue(*[b"x"] * 40, delays_ms=[1_000 * (40 - place) for place in range(40)])
    for second in range(1, 41):
        crowded.tick(999)
        worker.beat()
        assert len(worker.jobs) == second - 1
        crowded.tick(1)
        crowded.check()
    assert [job.id for job in worker.jobs] == ids[::-1]
    assert not far(crowded)


def test_many_that_are_due_at_one_moment_are_all_delivered_in_order(crowded: World) -> None:
    worker = Worker(crowded, "w1", "email", credit=100)
    ids = [task_id for _ in range(4) for task_id in crowded.enqueue(*[b"x"] * 10, delays_ms=5_000)]
    crowded.flushed()
    crowded.tick(5_000)
    assert [job.id for job in worker.jobs] == ids


def test_a_task_that_the_store_does_not_have_yet_comes_near_all_the_same(crowded: World) -> None:
    crowded.enqueue(*[b"x"] * 20, delays_ms=60_000)
    crowded.flushed()
    [soon] = crowded.enqueue(b"soon", delays_ms=1_000)
    worker = Worker(crowded, "w1", "email", credit=1)
    crowded.tick(1_000)
    assert [job.id for job in worker.jobs] == [soon]


def test_a_far_task_can_be_shown_and_cancelled(crowded: World) -> None:
    ids = crowded.enqueue(*[b"x"] * 40, delays_ms=[1_000 * (place + 1) for place in range(40)])
    crowded.flushed()
    assert not crowded.in_memory(ids[-1])
    assert crowded.get(ids[-1])["state"] == "scheduled"
    assert list(crowded.client.ask(m.Cancel(ids[-1])).outcomes) == [m.CANCEL_DONE]
    worker = Worker(crowded, "w1", "email", credit=100)
    for _ in range(9):
        crowded.live(5_000)
        worker.beat()
    assert [job.id for job in worker.jobs] == ids[:-1]


def test_after_a_restart_only_the_next_timed_tasks_are_loaded(crowded: World) -> None:
    crowded.enqueue(*[b"x"] * 40, delays_ms=[1_000 * (place + 1) for place in range(40)])
    crowded.restart()
    worker = Worker(crowded, "w1", "email", credit=100)
    assert 2 <= sum(len(shard.tasks) for shard in crowded.shards) <= 8
    for _ in range(9):
        crowded.live(5_000)
        worker.beat()
    assert len(worker.jobs) == 40


def test_a_shard_that_had_all_its_timed_tasks_keeps_them_when_another_loads(crowded: World) -> None:
    """The shards are asked for together, and the page ends before what the first one has."""
    queues = {crowded.ring.of_queue(f"q{number}"): f"q{number}" for number in range(20)}
    crowded.enqueue(*[b"x"] * 40, queue=queues[0], delays_ms=1_000)
    crowded.restart()
    assert [shard.horizon == EVERYTHING for shard in crowded.shards] == [False, True]
