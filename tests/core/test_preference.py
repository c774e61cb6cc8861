"""Preference: which of its queues a worker is given tasks from, whatever shards they live in."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from small_world import Worker, World

from taskq.core import messages as m
from taskq.core.task import PENDING
from taskq.ids import split

SHARDS = (1, 2, 4, 8)
QUEUES = tuple(f"queue-{number}" for number in range(12))


@pytest.fixture(params=SHARDS, ids=lambda count: f"{count} shards")
def wide(request: pytest.FixtureRequest) -> World:
    return World(shards=request.param)


def queues_of(world: World, worker: Worker, since: int = 0) -> list[str]:
    """The queues of what was delivered to it, in order."""
    delivered = [record for record in world.records if type(record).__name__ == "Granted" and record.session == worker.identity]
    ids = [task_id for record in delivered for task_id in split(record.ids, 16)]
    return [world.task(task_id).queue for task_id in ids][since:]


def test_credit_one_by_one_is_spent_on_the_preferred_queue(wide: World) -> None:
    for critical, default in (QUEUES[:2], QUEUES[1::-1], QUEUES[3:5]):
        worker = Worker(wide, "w", critical, default)
        wide.enqueue(*[b"x"] * 20, queue=default)
        wide.enqueue(*[b"x"] * 20, queue=critical)
        for _ in range(40):
            worker.allow(1)
        assert queues_of(wide, worker) == [critical] * 20 + [default] * 20
        worker.disconnect()


def test_credit_for_all_is_spent_in_order_of_preference(wide: World) -> None:
    for queue in QUEUES:
        wide.enqueue(*[b"x"] * 5, queue=queue)
    worker = Worker(wide, "w", *QUEUES[::-1], credit=1_000)
    assert queues_of(wide, worker) == [queue for queue in QUEUES[::-1] for _ in range(5)]


def test_a_preferred_queue_that_fills_again_and_again_goes_first_each_time(wide: World) -> None:
    critical, default = QUEUES[:2]
    worker = Worker(wide, "w", critical, default)
    wide.enqueue(*[b"x"] * 60, queue=default)
    for _ in range(100):
        wide.enqueue(b"x", queue=critical)
        worker.allow(1)
    assert set(queues_of(wide, worker)) == {critical}


def test_what_comes_for_a_worker_that_waits_is_delivered_at_once(wide: World) -> None:
    worker = Worker(wide, "w", *QUEUES, credit=len(QUEUES))
    for queue in QUEUES[::-1]:
        wide.enqueue(b"x", queue=queue)
    assert queues_of(wide, worker) == list(QUEUES[::-1])


def test_tasks_that_the_worker_cannot_run_hold_up_no_less_preferred_queue(wide: World) -> None:
    wide.enqueue(*[b"x"] * 5, queue=QUEUES[0], task_type="foreign")
    wide.enqueue(*[b"x"] * 5, queue=QUEUES[1])
    worker = Worker(wide, "w", QUEUES[0], QUEUES[1])
    for _ in range(5):
        worker.allow(1)
    assert queues_of(wide, worker) == [QUEUES[1]] * 5


def test_a_session_that_subscribes_anew_is_told_by_its_new_order(wide: World) -> None:
    worker = Worker(wide, "w", *QUEUES[:4])
    for queue in QUEUES[:4]:
        wide.enqueue(*[b"x"] * 3, queue=queue)
    worker.allow(1)
    worker.take(*QUEUES[3::-1])
    worker.allow(4)
    assert queues_of(wide, worker) == [QUEUES[0], *[QUEUES[3]] * 3, QUEUES[2]]


@pytest.mark.parametrize("credit", [1, 1_000])
def test_queues_of_one_rank_take_turns(wide: World, credit: int) -> None:
    worker = Worker(wide, "w")
    worker.ask(m.Consume(list(QUEUES), ["send_email"], 10, [0]))
    for _ in QUEUES:
        for queue in QUEUES:
            wide.enqueue(*[b"x"] * credit, queue=queue)
        worker.allow(credit)
    assert Counter(queues_of(wide, worker)) == Counter(dict.fromkeys(QUEUES, credit))


def test_ranks_are_kept_and_queues_within_one_take_turns(wide: World) -> None:
    worker = Worker(wide, "w")
    worker.ask(m.Consume(list(QUEUES), ["send_email"], 10, [1] * 6 + [0] * 6))
    for queue in QUEUES:
        wide.enqueue(*[b"x"] * 4, queue=queue)
    for _ in range(48):
        worker.allow(1)
    got = queues_of(wide, worker)
    for at in range(0, 48, 6):
        assert set(got[at : at + 6]) == set(QUEUES[6:] if at < 24 else QUEUES[:6])


def test_workers_with_opposite_preferences_each_get_their_own(wide: World) -> None:
    wide.enqueue(*[b"x"] * 50, queue=QUEUES[0])
    wide.enqueue(*[b"x"] * 50, queue=QUEUES[1])
    one, other = Worker(wide, "a", QUEUES[0], QUEUES[1]), Worker(wide, "b", QUEUES[1], QUEUES[0])
    for _ in range(50):
        one.allow(1)
        other.allow(1)
    assert set(queues_of(wide, one)) == {QUEUES[0]} and set(queues_of(wide, other)) == {QUEUES[1]}


def test_with_random_credit_and_tasks_the_most_preferred_that_wait_are_delivered(wide: World) -> None:
    rng = random.Random(14)
    workers = [Worker(wide, f"w{number}", *rng.sample(QUEUES, rng.randint(1, 12))) for number in range(4)]
    for _ in range(400):
        if rng.random() < 0.5:
            wide.enqueue(*[b"x"] * rng.choice([1, 3, 20]), queue=rng.choice(QUEUES))
            continue
        worker = rng.choice(workers)
        consumer = worker.session.consumer
        assert consumer is not None
        waiting = {name: queue.counts[PENDING] for shard in wide.shards for name, queue in shard.queues.items()}
        expected: list[str] = []
        for name in consumer.queues:
            expected += [name] * waiting.get(name, 0)
        before, more = len(worker.jobs), rng.choice([1, 2, 30])
        room = consumer.room
        worker.allow(more)
        assert queues_of(wide, worker, before) == expected[: room + more]
    wide.check()


def test_ranks_that_do_not_fit_the_queues_are_refused(wide: World) -> None:
    worker = Worker(wide, "w")
    refused = worker.ask(m.Consume(list(QUEUES), ["send_email"], 10, [0, 1]))
    assert (refused.code, refused.field) == ("BAD_REQUEST", "ranks")
