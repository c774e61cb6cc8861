"""The time that ids carry, when somebody's clock is wrong: no enqueue is refused for it, and none runs twice."""

from __future__ import annotations

import random

import pytest
from small_world import NOW_MS, Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core.idtime import IdTime
from taskq.ids import NIL, make_id

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
WRONG = (90_000, HOUR_MS, DAY_MS, 366 * DAY_MS)


@pytest.mark.parametrize("wrong_ms", [*WRONG, *(-wrong_ms for wrong_ms in WRONG)])
def test_an_id_from_a_clock_that_is_wrong_is_taken_and_known_again(world: World, wrong_ms: int) -> None:
    task_id = world.new_id(age_ms=-wrong_ms)
    assert world.client.ask(enqueue_of(b"x", ids=task_id)).outcomes == bytes([m.CREATED])
    assert world.client.ask(enqueue_of(b"x", ids=task_id)).outcomes == bytes([m.EXISTS])
    assert world.client.ask(enqueue_of(b"y", ids=task_id)).errors[0][1] == "ID_CONFLICT"


def test_an_id_that_is_ahead_is_known_again_after_its_task_has_ended_and_left_memory(world: World) -> None:
    task_id = world.new_id(age_ms=-HOUR_MS)
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", ids=task_id)
    worker.ack(*worker.jobs)
    world.flushed()
    assert not world.in_memory(task_id)
    assert world.client.ask(enqueue_of(b"x", ids=task_id)).outcomes == bytes([m.EXISTS])
    assert world.client.ask(enqueue_of(b"y", ids=task_id)).errors[0][1] == "ID_CONFLICT"


def test_an_id_that_was_ahead_is_known_again_after_a_restart_when_its_time_has_come(world: World) -> None:
    task_id = world.new_id(age_ms=-5 * MINUTE_MS)
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", ids=task_id)
    worker.ack(*worker.jobs)
    world.restart()
    world.now_ms += 5 * MINUTE_MS
    assert world.client.ask(enqueue_of(b"x", ids=task_id)).outcomes == bytes([m.EXISTS])
    assert world.client.ask(enqueue_of(b"y", ids=task_id)).errors[0][1] == "ID_CONFLICT"


@pytest.mark.parametrize("stepped_ms", [-HOUR_MS, -DAY_MS, HOUR_MS, DAY_MS])
def test_a_step_of_the_machines_clock_makes_no_id_of_a_connected_client_odd(world: World, stepped_ms: int) -> None:
    world.wall = lambda steady_ms: steady_ms + stepped_ms
    world.now_ms += 2 * MINUTE_MS
    world.hold_loads = True
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id())).outcomes == bytes([m.CREATED])
    assert world.client.ask(enqueue_of(b"x", ids=NIL)).outcomes == bytes([m.CREATED])
    assert world.loads == []


def test_a_broker_that_starts_with_its_clock_set_back_tells_a_time_after_all_ids_whose_tasks_were_deleted() -> None:
    ids = IdTime.starting(NOW_MS, 0, NOW_MS - HOUR_MS)
    assert ids.now_ms(NOW_MS - HOUR_MS) == NOW_MS + 1
    assert not ids.may_be_pruned(make_id(ids.now_ms(NOW_MS - HOUR_MS), 0, random.Random(1)), NOW_MS)


def test_a_start_with_a_right_clock_has_no_lead() -> None:
    assert IdTime.starting(NOW_MS, NOW_MS + DAY_MS, NOW_MS).lead_ms == 0


def test_who_is_ahead_makes_the_ids_of_nobody_else_too_old(world: World) -> None:
    """A client that takes no notice of WELCOME.now_ms, and whose tasks were deleted."""
    world.shared.ids.note_pruned(world.now_ms - HOUR_MS, world.now_ms + DAY_MS)
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id()), resent=True).outcomes == bytes([m.CREATED])
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id(age_ms=-DAY_MS))).errors[0][1] == "ID_TOO_OLD"
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id(age_ms=-DAY_MS - 1))).outcomes == bytes([m.CREATED])


def test_an_id_that_was_ahead_when_its_task_was_deleted_never_runs_again_after_its_time_has_come(world: World) -> None:
    task_id = world.new_id(age_ms=-HOUR_MS)
    world.shared.ids.note_pruned(0, world.now_ms + HOUR_MS)
    world.now_ms += HOUR_MS
    assert world.client.ask(enqueue_of(b"x", ids=task_id), resent=True).errors[0][1] == "ID_TOO_OLD"
    world.now_ms += 1
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id()), resent=True).outcomes == bytes([m.CREATED])
