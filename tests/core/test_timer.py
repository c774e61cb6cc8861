"""Timers: nothing runs early, what is due becomes pending in the order in which it came due."""

from __future__ import annotations

from small_world import Worker, World

from taskq.core import messages as m
from taskq.core.records import Promoted
from taskq.core.timer import PROMOTE_TASKS


def test_a_scheduled_task_is_not_delivered_a_millisecond_early(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", delays_ms=1_000)
    assert world.wake_at_ms == world.now_ms + 1_000
    world.tick(999)
    assert worker.jobs == []
    world.tick(1)
    assert len(worker.jobs) == 1


def test_tasks_become_pending_in_the_order_they_come_due(world: World) -> None:
    late, early, same = world.enqueue(b"late", b"early", b"same", delays_ms=[3_000, 1_000, 1_000])
    world.tick(10_000)
    worker = Worker(world, "w1", "email", credit=3)
    assert [job.id for job in worker.jobs] == [early, same, late]


def test_a_task_that_comes_due_stands_behind_those_that_were_pending(world: World) -> None:
    [timed] = world.enqueue(b"x", delays_ms=1_000)
    [pending] = world.enqueue(b"y")
    world.tick(1_000)
    [late] = world.enqueue(b"z")
    worker = Worker(world, "w1", "email", credit=3)
    assert [job.id for job in worker.jobs] == [pending, timed, late]


def test_a_turn_promotes_a_bounded_number_and_wakes_at_once_for_the_rest(world: World) -> None:
    for _ in range(2):
        world.enqueue(*[b""] * 600, delays_ms=1_000)
    world.now_ms += 1_000
    world.turn(0, [])
    assert sum(len(record.ids) // 16 for record in world.records if type(record) is Promoted) == PROMOTE_TASKS
    assert world.wake_at_ms <= world.now_ms
    world.turn(0, [])
    assert sum(len(record.ids) // 16 for record in world.records if type(record) is Promoted) == 1_200
    assert world.wake_at_ms == 0


def test_the_timer_of_a_task_that_moved_on_does_nothing(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", delays_ms=1_000)
    world.tick(1_000)
    worker.release(worker.jobs[0], delay_ms=5_000)
    world.tick(4_000)
    assert world.task(worker.jobs[0].id).due_ms == world.now_ms + 1_000
    assert len([record for record in world.records if type(record) is Promoted]) == 1


def test_a_task_promoted_while_a_cancel_of_another_is_parked_is_left_alone(world: World) -> None:
    [task_id] = world.enqueue(b"x", delays_ms=1_000)
    world.hold_loads = True
    seq = world.client.say(m.Cancel(task_id + world.new_id()))
    world.run()
    world.tick(1_000)
    assert world.get(task_id)["state"] == "pending"
    world.hold_loads = False
    world.run()
    assert list(world.client.answers[seq].outcomes) == [m.CANCEL_DONE, m.CANCEL_NOT_FOUND]


def test_timers_survive_a_restart(world: World) -> None:
    [task_id] = world.enqueue(b"x", delays_ms=5_000)
    world.restart()
    world.tick(4_999)
    assert world.get(task_id)["state"] == "scheduled"
    world.tick(1)
    assert world.get(task_id)["state"] == "pending"


def test_timers_of_cancelled_tasks_do_not_stay_until_they_would_have_come_due(world: World) -> None:
    kept = world.enqueue(b"kept", delays_ms=5_000)
    for _ in range(2):
        ids = world.enqueue(*[b""] * 900, delays_ms=1_000_000)
        world.client.say(m.Cancel(b"".join(ids)))
        world.run()
    world.tick(1)
    assert len(world.shard.timers) < 1_000
    world.tick(5_000)
    assert world.get(*kept)["state"] == "pending"


def test_waits_that_were_answered_do_not_stay_until_they_would_have_ended(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1_500)
    ids = [task_id for _ in range(3) for task_id in world.enqueue(*[b""] * 500)]
    for task_id in ids:
        world.client.say(m.Get(task_id, 60_000))
    world.run()
    for job in worker.jobs:
        worker.ack(job)
    world.tick(1)
    assert len(world.shard.timers) < 1_000
