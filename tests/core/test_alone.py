"""Tasks that were there when two workers died: they run alone, and everything else goes on."""

from __future__ import annotations

import pytest
from small_world import Peer, Worker, World

from taskq.core import messages as m
from taskq.core.task import FAILED, PENDING, RUNNING


def die(world: World, worker: Worker, cause: str = "SIGKILL") -> None:
    """The keeper tells of the death of a worker that had started all that it was given."""
    keeper = Peer(world, "keeper", "keeper")
    keeper.ask(m.Keepalive(worker.identity, worker.secret, worker.received))
    keeper.ask(m.Died(worker.identity, worker.secret, cause))
    worker.disconnect()


def twice_crashed(world: World, tasks: int = 1, queue: str = "email") -> list[bytes]:
    ids = world.enqueue(*[b"x"] * tasks, queue=queue)
    for name in ("first", "second"):
        worker = Worker(world, name, queue, credit=tasks)
        assert len(worker.jobs) == tasks
        die(world, worker)
    return ids


def test_after_two_crashes_tasks_run_one_at_a_time_and_nothing_beside_them(world: World) -> None:
    ids = twice_crashed(world, 3)
    worker = Worker(world, "w1", "email", credit=9)
    [fresh] = world.enqueue(b"fresh")
    for number, task_id in enumerate([*ids, fresh]):
        assert [job.id for job in worker.jobs[number:]] == [task_id]
        worker.ack(worker.jobs[number])
    world.check()


def test_only_the_guilty_one_becomes_a_dead_letter(world: World) -> None:
    poison, *innocent = twice_crashed(world, 5)
    worker = Worker(world, "w1", "email", credit=9)
    [job] = worker.jobs
    assert job.id == poison
    die(world, worker)
    heir = Worker(world, "w2", "email", credit=9)
    for number in range(4):
        heir.ack(heir.jobs[number])
    assert world.task(poison).state == FAILED
    assert [job.id for job in heir.jobs] == innocent


def test_tasks_with_one_crash_still_run_side_by_side(world: World) -> None:
    world.enqueue(*[b"x"] * 3)
    die(world, Worker(world, "w1", "email", credit=9))
    assert len(Worker(world, "w2", "email", credit=9).jobs) == 3


def test_a_busy_worker_is_kept_for_it_and_gets_nothing_new_until_it_is_idle(world: World) -> None:
    [task_id] = twice_crashed(world, queue="images")
    worker = Worker(world, "w1", "email", credit=9)
    world.enqueue(b"x", b"x")
    worker.take("email", "images")
    assert len(worker.jobs) == 2
    world.enqueue(b"late")
    worker.ack(worker.jobs[0])
    assert len(worker.jobs) == 2, "it is kept"
    worker.ack(worker.jobs[1])
    world.live(500)
    assert worker.jobs[2].id == task_id and len(worker.jobs) == 3
    worker.ack(worker.jobs[2])
    world.live(500)
    assert worker.jobs[3].payload == b"late"


def test_an_idle_worker_is_preferred_to_a_busy_one(world: World) -> None:
    [task_id] = twice_crashed(world, queue="images")
    busy, idle = Worker(world, "w1", "email", credit=9), Worker(world, "w2", credit=9)
    world.enqueue(b"x")
    busy.take("email", "images")
    idle.take("email", "images")
    assert [job.id for job in idle.jobs] == [task_id]
    world.enqueue(b"y")
    assert len(busy.jobs) == 2, "nobody waits for the one that runs alone"


def test_half_of_the_workers_go_on_with_everything_else(world: World) -> None:
    twice_crashed(world, 4)
    workers = [Worker(world, f"w{number}", credit=9) for number in range(4)]
    for worker in workers:
        worker.take("email")
    world.enqueue(*[b"fresh"] * 8)
    assert sorted(len(worker.jobs) for worker in workers) == [1, 1, 4, 4]


def test_a_worker_that_is_kept_and_goes_away_keeps_nobody_waiting(world: World) -> None:
    [task_id] = twice_crashed(world, queue="images")
    worker = Worker(world, "w1", "email", credit=9)
    world.enqueue(b"x")
    worker.take("email", "images")
    heir = Worker(world, "w2", credit=9)
    worker.disconnect()
    heir.take("images")
    assert [job.id for job in heir.jobs] == [task_id]


@pytest.mark.parametrize("stored", [True, False])
def test_a_restart_forgets_neither_who_waits_nor_who_runs_alone(world: World, stored: bool) -> None:
    first, second = twice_crashed(world, 2)
    worker = Worker(world, "w1", "email", credit=9)
    assert [job.id for job in worker.jobs] == [first]
    if stored:
        world.flushed()
    world.restart()
    worker.resume(world, worker.jobs[0])
    worker.allow(9)
    worker.take("email")
    world.enqueue(b"fresh")
    assert len(worker.jobs) == 1 and world.task(first).state == RUNNING and world.task(second).state == PENDING
    worker.ack(worker.jobs[0])
    world.live(1_000)
    assert [job.id for job in worker.jobs[1:]] == [second]
    world.check()


def test_more_of_them_than_a_load_takes_are_all_found_after_a_restart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.core.queue.LOAD_TASKS", 2)
    ids = twice_crashed(world, 5)
    fresh = world.enqueue(*[b"fresh"] * 3)
    world.restart()
    worker = Worker(world, "w1", "email", credit=9)
    for number in range(8):
        worker.ack(worker.jobs[number])
        world.live(500)
    assert sorted(job.id for job in worker.jobs) == sorted([*ids, *fresh])
    world.check()


def test_one_that_waits_can_be_cancelled(world: World) -> None:
    first, second = twice_crashed(world, 2)
    world.client.ask(m.Cancel(first))
    world.check()
    worker = Worker(world, "w1", "email", credit=9)
    assert [job.id for job in worker.jobs] == [second]


def test_it_is_said_why_it_waits(world: World) -> None:
    [task_id] = twice_crashed(world)
    worker = Worker(world, "w1", "images", credit=9)
    world.enqueue(b"x", queue="images", task_type="send_email")
    worker.take("email")
    assert world.get(task_id)["blocker"] == "it was running when 2 workers died, and waits for one that is idle, to run alone"
    [behind] = world.enqueue(b"y")
    assert world.get(behind)["blocker"] == "all 1 workers that can run it are busy"
