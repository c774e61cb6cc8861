"""Cancel: what does not run ends at once, what runs is asked to stop."""

from __future__ import annotations

import pytest
from small_world import Worker, World

from taskq.core import messages as m
from taskq.core.task import CANCELLED, PENDING
from taskq.ids import split


def cancel(world: World, *ids: bytes) -> list[int]:
    told = world.client.ask(m.Cancel(b"".join(ids)))
    assert type(told) is m.Cancelled, told
    return list(told.outcomes)


def test_a_pending_task_is_cancelled_at_once_and_never_delivered(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    assert cancel(world, task_id) == [m.CANCEL_DONE]
    worker = Worker(world, "w1", "email", credit=1)
    assert worker.jobs == []
    assert world.get(task_id)["state"] == "cancelled"
    assert world.get(task_id)["finished_ms"] == world.now_ms


def test_a_scheduled_task_is_cancelled_and_its_timer_does_nothing(world: World) -> None:
    [task_id] = world.enqueue(b"x", delays_ms=1_000)
    assert cancel(world, task_id) == [m.CANCEL_DONE]
    world.tick(1_000)
    assert world.task(task_id).state == CANCELLED


def test_a_running_task_is_asked_to_stop(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x")
    assert cancel(world, task_id) == [m.CANCEL_REQUESTED]
    assert worker.revoked == [worker.jobs[0].token]
    assert world.get(task_id)["cancel_requested"]


@pytest.mark.parametrize("report", ["fail", "release", "snooze", "died"])
def test_whatever_the_worker_reports_but_success_makes_it_cancelled(world: World, report: str) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x")
    cancel(world, task_id)
    [job] = worker.jobs
    if report == "died":
        worker.ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
    else:
        {"fail": worker.fail, "release": worker.release, "snooze": lambda job: worker.release(job, delay_ms=100)}[report](job)
    assert world.task(task_id).state == CANCELLED
    assert world.task(task_id).history[-1].outcome == "cancelled"


def test_a_final_task_stays_what_it_is(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x")
    worker.ack(*worker.jobs)
    assert cancel(world, task_id) == [m.CANCEL_ALREADY_FINAL]
    world.flushed()
    assert cancel(world, task_id) == [m.CANCEL_ALREADY_FINAL]


def test_an_unknown_task_is_not_found(world: World) -> None:
    assert cancel(world, world.new_id()) == [m.CANCEL_NOT_FOUND]


def test_each_id_of_a_frame_has_its_own_outcome_even_twice_and_over_slots() -> None:
    world = World(shards=4)
    worker = Worker(world, "w1", "b", credit=1)
    [idle], [running], unknown = world.enqueue(b"x", queue="a"), world.enqueue(b"x", queue="b"), world.new_id("c")
    assert worker.jobs[0].id == running
    assert cancel(world, unknown, running, idle, idle) == [m.CANCEL_NOT_FOUND, m.CANCEL_REQUESTED, m.CANCEL_DONE, m.CANCEL_DONE]
    world.check()


def test_a_cancel_of_more_tasks_than_a_frame_may_have_is_refused(world: World) -> None:
    told = world.client.ask(m.Cancel(world.new_id() * 1_001))
    assert (type(told), told.code, told.field) == (m.Error, "BAD_REQUEST", "ids")


def test_a_cold_pending_task_is_cancelled_and_the_count_of_its_line_is_right(narrow: World) -> None:
    ids = narrow.enqueue(*[b"%d" % number for number in range(5)])
    narrow.flushed()
    assert not narrow.in_memory(ids[3])
    assert cancel(narrow, ids[3]) == [m.CANCEL_DONE]
    line = narrow.shard.queues["email"].line(5, "send_email")
    assert (line.waiting, line.hot, line.cold) == (4, 2, 2)
    worker = Worker(narrow, "w1", "email", credit=10)
    assert [job.id for job in worker.jobs] == [*ids[:3], ids[4]]


def test_a_cold_task_that_became_hot_while_its_cancel_was_parked_is_cancelled_once(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 5)
    narrow.flushed()
    narrow.hold_loads = True
    seq = narrow.client.say(m.Cancel(ids[4]))
    narrow.run()
    parked, narrow.loads = narrow.loads, []
    narrow.hold_loads = False
    worker = Worker(narrow, "w1", "email", credit=4)
    assert narrow.task(ids[4]).state == PENDING
    narrow.loads = parked
    narrow.run()
    assert narrow.client.answers[seq].outcomes == bytes([m.CANCEL_DONE])
    worker.allow(5)
    assert [job.id for job in worker.jobs] == ids[:4]


def test_a_cold_task_that_was_delivered_while_its_cancel_was_parked_is_asked_to_stop(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 5)
    narrow.flushed()
    narrow.hold_loads = True
    seq = narrow.client.say(m.Cancel(ids[4]))
    narrow.run()
    parked, narrow.loads = narrow.loads, []
    narrow.hold_loads = False
    worker = Worker(narrow, "w1", "email", credit=5)
    narrow.loads = parked
    narrow.run()
    assert narrow.client.answers[seq].outcomes == bytes([m.CANCEL_REQUESTED])
    assert worker.revoked == [worker.jobs[-1].token]


def test_a_parked_cancel_does_not_hold_up_others(world: World) -> None:
    world.hold_loads = True
    world.client.say(m.Cancel(world.new_id()))
    [task_id] = world.enqueue(b"x")
    assert cancel(world, task_id) == [m.CANCEL_DONE]


def test_a_cancel_waits_behind_the_parked_enqueue_of_its_task(world: World) -> None:
    world.hold_loads = True
    task_id = world.new_id()
    world.client.say(m.Enqueue([b"x"], "email", task_id, ["send_email"]), resent=True)
    seq = world.client.say(m.Cancel(task_id))
    world.run()
    world.hold_loads = False
    world.run()
    assert split(world.client.answers[seq].outcomes, 1) == [bytes([m.CANCEL_DONE])]
    assert world.task(task_id).state == CANCELLED


def test_a_task_that_leaves_memory_while_its_cancel_is_parked_for_another_is_still_found(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 3)
    narrow.hold_loads = True
    seq = narrow.client.say(m.Cancel(ids[2] + narrow.new_id()))
    narrow.run()
    narrow.flushed()
    assert not narrow.in_memory(ids[2])
    narrow.hold_loads = False
    narrow.run()
    assert list(narrow.client.answers[seq].outcomes) == [m.CANCEL_DONE, m.CANCEL_NOT_FOUND]
