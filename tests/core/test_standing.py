"""No worker stands: what a session may still take follows from what it holds and has confirmed, and one that stands all the same is named."""

from __future__ import annotations

import pytest
from small_world import HEARTBEAT_MS, LEASE_MS, Worker, World

from taskq.core import messages as m
from taskq.core.standing import BEATS_MAX
from taskq.core.task import RUNNING
from taskq.errors import SessionTaken


def pulse(world: World, worker: Worker, *, beats: int = 1, **fields: int) -> m.Beat:
    """Time passes, and the worker lists what it holds; the last answer."""
    told = m.Beat()
    for _ in range(beats):
        world.live(HEARTBEAT_MS)
        told = worker.ask(m.Heartbeat(**{"received": worker.received, "tokens": b"".join(worker.held), **fields}))
        for token in [token for token in worker.held if token in told.lost]:
            del worker.held[token]
    return told


def robbed(world: World, name: str = "w1") -> Worker:
    """A worker that spent its credit on a task which was taken back, since it never said that it has it; a second task waits."""
    worker = Worker(world, name, "email", credit=1)
    first, _ = world.enqueue(b"1", b"2")
    while world.task(first).state == RUNNING:
        worker.ask(m.Heartbeat(0, b""))
        world.live(HEARTBEAT_MS)
    return worker


# ---- the account -------------------------------------------------------------------------------------------------------------------------


def test_a_credit_that_never_arrived_is_made_good_by_the_next_heartbeat(world: World) -> None:
    worker = Worker(world, "w1", "email")
    world.enqueue(b"1", b"2", b"3")
    pulse(world, worker, allowed=2)
    assert [job.payload for job in worker.jobs] == [b"1", b"2"]
    pulse(world, worker, beats=4, allowed=2)
    assert len(worker.jobs) == 2


def test_what_was_allowed_never_falls(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    pulse(world, worker, allowed=1)
    world.enqueue(b"1", b"2", b"3")
    assert len(worker.jobs) == 2


def test_a_worker_that_lost_everything_takes_tasks_again_with_its_next_heartbeat(world: World) -> None:
    worker = robbed(world)
    told = pulse(world, worker)
    assert len(told.lost) == 8 and not worker.held
    worker.say(m.Heartbeat(worker.received, b"", allowed=worker.received + 1))
    world.run()
    assert len(worker.jobs) == 2


@pytest.mark.parametrize("shards", [1, 4])
def test_the_answer_to_a_heartbeat_says_how_much_was_sent(shards: int) -> None:
    world = World(shards=shards)
    worker = Worker(world, "w1", "email", "other", credit=3)
    assert pulse(world, worker).delivered == 0
    world.enqueue(b"1", b"2")
    world.enqueue(b"3", queue="other")
    assert pulse(world, worker).delivered == 3
    worker.ack(*worker.jobs)
    assert pulse(world, worker).delivered == 3
    world.enqueue(b"4")
    worker.disconnect()
    worker.resume(world, received=2)
    assert worker.ask(m.Heartbeat(2, b"")).delivered == 2


def test_a_connection_that_was_taken_over_cannot_speak_for_the_account(world: World) -> None:
    worker = Worker(world, "w1", "email")
    old = worker.session
    worker.resume(world)
    worker.take("email")
    world.enqueue(b"1")
    with pytest.raises(SessionTaken):
        old.receive(99, False, m.Heartbeat(0, b"", allowed=5), world.now_ms)
    world.run()
    assert not worker.jobs


# ---- who stands all the same ---------------------------------------------------------------------------------------------------------------


def test_a_worker_that_knows_nothing_of_what_was_taken_back_gets_it_one_by_one(world: World) -> None:
    worker = robbed(world)
    pulse(world, worker, beats=BEATS_MAX + 2)
    assert [job.delivery for job in worker.jobs] == [1, 2]
    (notice,) = world.notices
    assert "worker w1" in notice and "queue email" in notice and "1 deliveries were taken back" in notice
    worker.ack(worker.jobs[1])
    pulse(world, worker, beats=BEATS_MAX + 2)
    assert len(worker.jobs) == 2 and len(world.notices) == 2, "nothing more is owed, so it is only named"


def test_the_leases_that_ended_with_a_silence_are_owed_as_well(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"1", b"2")
    worker.beat()
    world.live(LEASE_MS + 2 * HEARTBEAT_MS)
    worker.held.clear()
    pulse(world, worker, beats=BEATS_MAX + 2)
    assert len(worker.jobs) == 2


def test_who_allows_nothing_is_named_once_and_given_nothing(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"1", b"2")
    worker.ack(*worker.jobs)
    pulse(world, worker, beats=20)
    assert len(worker.jobs) == 1
    (notice,) = world.notices
    assert "worker w1" in notice and "CREDIT" in notice
    worker.allow(1)
    worker.ack(worker.jobs[1])
    world.enqueue(b"3")
    pulse(world, worker, beats=20)
    assert len(world.notices) == 2, "it has worked meanwhile, and stands anew"


@pytest.mark.parametrize("wait", ["nothing", "another queue", "another type"])
def test_who_can_run_nothing_that_waits_does_not_stand(world: World, wait: str) -> None:
    worker = Worker(world, "w1", "email")
    if wait == "another queue":
        world.enqueue(b"1", queue="other")
    elif wait == "another type":
        world.enqueue(b"1", task_type="other")
    pulse(world, worker, beats=20)
    assert not world.notices


def test_who_runs_something_does_not_stand(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"1", b"2")
    pulse(world, worker, beats=20)
    assert not world.notices and len(worker.jobs) == 1


def test_who_waits_with_room_and_was_forgotten_is_offered_the_tasks_again(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    for consumer in world.shared.consumers.values():
        for crew in consumer.crews.values():
            crew.turns.clear()
    world.enqueue(b"1")
    assert not worker.jobs
    pulse(world, worker, beats=2 * BEATS_MAX)
    assert len(worker.jobs) == 1
    (notice,) = world.notices
    assert "it would take 1" in notice
