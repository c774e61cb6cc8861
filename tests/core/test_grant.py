"""Grants: who gets what, in which order, and why a task waits."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time

import pytest
from small_world import Worker, World, enqueue_of

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.consumer import Consumer
from taskq.core.followers import CLEAN_MIN, Followers
from taskq.core.grant import TURN_TASKS
from taskq.core.records import Granted
from taskq.ids import slot_of_id, slot_of_queue


def test_a_pending_task_goes_to_the_worker_that_has_credit(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"hello")
    [job] = worker.jobs
    assert (job.id, job.payload, job.task_type, job.attempt, job.delivery) == (task_id, b"hello", "send_email", 1, 1)
    assert world.task(task_id).token == int.from_bytes(job.token, "big")


def test_enqueue_and_delivery_happen_in_one_turn(world: World) -> None:
    Worker(world, "w1", "email", credit=1)
    world.client.say(m.Enqueue([b"x"], "email", bytes(16), ["send_email"]))
    world.client.collect()
    [(_, command)] = world.mail
    world.mail = []
    effects = world.turn(0, [command])
    assert [type(record).__name__ for record in effects.records] == ["Admitted", "Granted"]


def test_a_worker_never_gets_more_than_its_credit(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=3)
    world.enqueue(*[b"x"] * 10)
    assert len(worker.jobs) == 3
    worker.allow(2)
    assert [job.delivery for job in worker.jobs] == [1, 2, 3, 4, 5]


def test_credit_never_falls(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=3)
    worker.say(m.Credit(1))
    world.enqueue(*[b"x"] * 10)
    assert len(worker.jobs) == 3


def test_credit_without_a_subscription_brings_nothing(world: World) -> None:
    worker = Worker(world, "w1", credit=5)
    world.enqueue(b"x")
    assert worker.jobs == []


def test_no_worker_takes_more_than_its_share_while_others_wait(world: World) -> None:
    workers = [Worker(world, f"w{number}", "email", credit=100) for number in range(3)]
    world.enqueue(*[b"x"] * 10)
    assert sorted(len(worker.jobs) for worker in workers) == [2, 4, 4]


def test_what_one_worker_cannot_take_goes_to_the_others(world: World) -> None:
    small, large = Worker(world, "w1", "email", credit=1), Worker(world, "w2", "email", credit=100)
    world.enqueue(*[b"x"] * 10)
    assert (len(small.jobs), len(large.jobs)) == (1, 9)


def test_single_tasks_go_round_the_workers(world: World) -> None:
    workers = [Worker(world, f"w{number}", "email", credit=100) for number in range(3)]
    for _ in range(6):
        world.enqueue(b"x")
    assert [len(worker.jobs) for worker in workers] == [2, 2, 2]


def test_the_credit_of_a_session_is_one_over_all_shards() -> None:
    world = World(shards=4)
    worker = Worker(world, "w1", "a", "b", "c", "d", credit=3)
    for queue in ("a", "b", "c", "d"):
        world.enqueue(b"x", queue=queue)
    assert [job.delivery for job in worker.jobs] == [1, 2, 3]


def test_the_first_of_a_workers_queues_goes_first(world: World) -> None:
    [wanted] = world.enqueue(b"x", queue="first")
    worker = Worker(world, "w1", "first", "second")
    world.client.say(enqueue_of(b"y", queue="second"))
    worker.allow(1)
    assert [job.id for job in worker.jobs] == [wanted]


def test_a_worker_only_gets_types_that_it_runs(world: World) -> None:
    worker = Worker(world, "w1", "email", runs=["send_sms"], credit=5)
    world.enqueue(b"x")
    [sms] = world.enqueue(b"y", task_type="send_sms")
    assert [job.id for job in worker.jobs] == [sms]


def test_a_worker_that_unsubscribes_gets_nothing_more(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    worker.ask(m.Consume([], [], 1))
    world.enqueue(b"x")
    assert worker.jobs == []
    worker.take("email")
    assert len(worker.jobs) == 1


def test_first_deliveries_of_a_priority_follow_the_order_of_commit(world: World) -> None:
    ids = [task_id for number in range(20) for task_id in world.enqueue(b"%d" % number, task_type=f"t{number % 3}")]
    worker = Worker(world, "w1", "email", runs=["t0", "t1", "t2"])
    for _ in range(7):
        worker.allow(3)
    assert [job.id for job in worker.jobs] == ids


def test_urgent_tasks_go_first(world: World) -> None:
    low, high, middle = (world.enqueue(b"x", priorities=priority)[0] for priority in (9, 0, 5))
    worker = Worker(world, "w1", "email", credit=3)
    assert [job.id for job in worker.jobs] == [high, middle, low]


def test_a_choked_connection_gets_nothing_until_it_reads_again(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    consumer = world.shared.consumers[worker.identity]
    consumer.choked = True
    world.enqueue(b"x")
    assert worker.jobs == []
    consumer.choked = False
    worker.session.ready()
    world.run()
    assert len(worker.jobs) == 1


def test_a_worker_that_is_late_is_not_given_the_tasks_that_were_just_taken_from_it(world: World) -> None:
    stopped = Worker(world, "w1", "email", credit=5)
    world.enqueue(b"x")
    stopped.beat()
    world.live(20_000)
    assert len(stopped.jobs) == 1
    other = Worker(world, "w2", "email", credit=5)
    assert len(other.jobs) == 1


def test_a_worker_that_was_late_gets_tasks_again_as_soon_as_it_is_heard(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    world.live(20_000)
    world.enqueue(b"x")
    assert worker.jobs == []
    worker.beat()
    assert len(worker.jobs) == 1


def test_a_worker_that_was_late_gets_tasks_again_as_soon_as_its_keeper_is_heard(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    world.live(20_000)
    world.enqueue(b"x")
    worker.ask(m.Keepalive(worker.identity, worker.secret, 0))
    assert len(worker.jobs) == 1


def test_workers_that_come_and_go_leave_nothing_behind_in_a_queue_without_tasks(world: World) -> None:
    for number in range(100):
        Worker(world, f"w{number}", "email", credit=1).disconnect()
    last = Worker(world, "last", "email", credit=1)
    [crew] = world.shard.followers.own.values()
    assert len(crew.members) <= CLEAN_MIN and len(crew.turns) <= CLEAN_MIN
    world.enqueue(b"x")
    assert len(last.jobs) == 1


def test_subscriptions_that_come_and_go_leave_nothing_behind(world: World) -> None:
    for number in range(100):
        Worker(world, f"w{number}", f"own-{number}", "email", credit=1).disconnect()
    last = Worker(world, "last", "own", "email", credit=1)
    followers = world.shard.followers
    assert len(followers.own) <= CLEAN_MIN and len(followers.rows) <= 2 * CLEAN_MIN
    assert all(row.ranks.total() == len(row.crews) <= CLEAN_MIN for row in followers.rows.values())
    world.enqueue(b"x")
    assert len(last.jobs) == 1


def test_a_turn_asks_no_more_workers_than_it_has_tasks_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        Worker(world, f"w{number}", "email", credit=2)
    asked: list[Consumer] = []
    room = Consumer.room
    monkeypatch.setattr(Consumer, "room", property(lambda self: asked.append(self) or room.fget(self)))
    world.enqueue(b"x", b"y")
    assert len(set(map(id, asked))) <= 3


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Consumer]:
    """Each look at a session, or at whether it takes a queue, by whom matching."""
    seen: list[Consumer] = []
    room = Consumer.room
    monkeypatch.setattr(Consumer, "room", property(lambda self: seen.append(self) or room.fget(self)))
    return seen


LOOKS_MAX = 12


def names(count: int) -> list[str]:
    return [f"queue-{number}" for number in range(count)]


def test_credit_costs_the_same_however_many_queues_a_worker_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(world, "w", *names(2_000), credit=1)
    followed: list[object] = []
    follow = Followers.follow
    monkeypatch.setattr(Followers, "follow", lambda self, crew: followed.append(crew) or follow(self, crew))
    for number in range(20):
        world.enqueue(b"x", queue=f"queue-{number}")
        worker.allow(1)
    assert len(worker.jobs) == 20 and len(followed) <= 40


def test_a_task_for_busy_workers_is_no_look_at_all_of_them_and_neither_is_their_next_credit(world: World, looks: list[Consumer]) -> None:
    workers = [Worker(world, f"w{number}", *names(50), credit=1) for number in range(100)]
    for number in range(100):
        world.enqueue(b"x", queue=f"queue-{number % 50}")
    assert all(len(worker.jobs) == 1 for worker in workers)
    for number in range(50):
        looks.clear()
        world.enqueue(b"y", queue=f"queue-{number}")
        assert len(looks) <= LOOKS_MAX
    for worker in workers[:50]:
        looks.clear()
        worker.allow(1)
        assert len(looks) <= LOOKS_MAX
    assert all(len(worker.jobs) == 2 for worker in workers[:50])


def test_workers_with_a_queue_of_their_own_each_are_not_all_looked_at_for_a_task_in_the_one_that_they_share(
    world: World, looks: list[Consumer]
) -> None:
    workers = [Worker(world, f"w{number}", f"own-{number}", "shared", credit=1) for number in range(100)]
    for _ in range(50):
        looks.clear()
        world.enqueue(b"x", queue="shared")
        assert len(looks) <= LOOKS_MAX
    assert sum(len(worker.jobs) for worker in workers) == 50


def test_crews_of_different_size_share_by_the_number_of_their_sessions(world: World) -> None:
    many = [Worker(world, f"m{number}", "email", "sms", credit=100) for number in range(3)]
    one = Worker(world, "one", "email", credit=100)
    for _ in range(40):
        world.enqueue(b"x")
    assert [len(worker.jobs) for worker in (*many, one)] == [10, 10, 10, 10]


def test_a_worker_with_room_for_one_takes_it_from_the_queue_that_it_prefers_of_many_with_tasks(world: World) -> None:
    worker = Worker(world, "w", *names(50))
    for number in (30, 7, 41):
        world.enqueue(b"x", b"y", queue=f"queue-{number}")
    worker.allow(1)
    worker.allow(2)
    worker.allow(5)
    assert [slot_of_id(job.id) for job in worker.jobs] == [slot_of_queue(f"queue-{number}") for number in (7, 7, 30, 30, 41, 41)]


def test_a_session_that_subscribes_anew_gets_nothing_by_its_old_subscription(world: World) -> None:
    worker = Worker(world, "w", "email", credit=5)
    worker.take("sms")
    world.enqueue(b"x")
    [wanted] = world.enqueue(b"y", queue="sms")
    assert [job.id for job in worker.jobs] == [wanted]
    worker.take("email")
    assert len(worker.jobs) == 2


def test_workers_that_cannot_run_the_task_are_passed_over_however_many_they_are(world: World) -> None:
    others = [Worker(world, f"w{number}", "email", runs=["send_sms"], credit=2) for number in range(20)]
    able = Worker(world, "able", "email", credit=2)
    world.enqueue(b"x")
    assert len(able.jobs) == 1 and not any(other.jobs for other in others)


def test_the_preference_of_who_is_gone_counts_no_more(world: World) -> None:
    Worker(world, "gone", "second", "first", credit=1).disconnect()
    [wanted] = world.enqueue(b"x", queue="first")
    world.enqueue(b"y", queue="second")
    worker = Worker(world, "w", "first", "second", credit=0)
    worker.allow(1)
    assert [job.id for job in worker.jobs] == [wanted]


def test_a_grant_is_recorded_with_its_tokens_and_numbers(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x", b"y")
    record = world.records[-1]
    assert type(record) is Granted
    assert (record.session, record.worker, record.first) == (worker.identity, "w1", 1)
    assert record.tokens == b"".join(job.token for job in worker.jobs)


def test_the_attempt_is_told_with_the_delivery(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    world.enqueue(b"x")
    worker.fail(worker.jobs[0], how=m.RETRY_AFTER, after_ms=1_000)
    world.tick(1_000)
    assert [job.attempt for job in worker.jobs] == [1, 2]


# ---- why a task waits ------------------------------------------------------------------------------------------------------------------


def test_the_blocker_names_what_is_missing(world: World) -> None:
    [task_id] = world.enqueue(b"x")

    def blocker() -> str:
        return str(world.get(task_id)["blocker"])

    assert blocker() == "no connected worker has task type send_email: no worker is connected"
    worker = Worker(world, "w1", "sms", credit=1)
    assert blocker() == "no connected worker takes queue email"
    worker.take("email", runs=["other"])
    assert blocker() == "no connected worker has task type send_email"
    busy = Worker(world, "w2", "email")
    assert blocker() == "all 1 workers that can run it are busy"
    busy.allow(1)
    assert world.get(task_id)["state"] == "running"
    assert blocker() == ""


def test_the_blocker_tells_of_workers_that_are_silent(world: World) -> None:
    Worker(world, "w1", "email", credit=1)
    world.live(15_000)
    [task_id] = world.enqueue(b"x")
    assert world.get(task_id)["blocker"] == "none of the 1 workers that can run it is heard of"


def test_the_blocker_of_a_timed_task_is_its_time(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x", delays_ms=2_500)
    assert world.get(task_id)["blocker"] == "scheduled, due in 2.5 s"
    world.tick(2_500)
    worker.fail(worker.jobs[0], how=m.RETRY_AFTER, after_ms=4_000)
    assert world.get(task_id)["blocker"] == "waiting to be retried, due in 4.0 s"


def test_ten_thousand_task_types_in_one_queue_cost_no_long_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"type-{number}" for number in range(10_000)]
    for at in range(0, 10_000, 1_000):
        world.client.ask(enqueue_of(*[b"x"] * 1_000, task_types=names[at : at + 1_000]))
    worker = Worker(world, "w")
    turns: list[float] = []
    turn = world.turn

    def timed(index: int, commands: Sequence[fx.Command]) -> fx.Effects:
        began = process_time()
        effects = turn(index, commands)
        turns.append(process_time() - began)
        return effects

    monkeypatch.setattr(world, "turn", timed)
    worker.take("email", runs=names)
    worker.allow(100_000)
    assert [job.task_type for job in worker.jobs] == names
    assert len(turns) >= 10_000 // TURN_TASKS and sorted(turns)[len(turns) // 2] < 0.05


def test_fifty_subscriptions_with_as_many_types_each_cost_no_long_turn(world: World) -> None:
    names = [f"type-{number}" for number in range(5_000)]
    workers = [Worker(world, f"w{number}", "email", runs=[*names, f"own-{number}"]) for number in range(50)]
    for at in range(0, 5_000, 1_000):
        world.client.ask(enqueue_of(*[b"x"] * 1_000, task_types=names[at : at + 1_000]))
    began = process_time()
    for _ in range(20):
        for worker in workers:
            worker.allow(5)
    assert sum(len(worker.jobs) for worker in workers) == 5_000
    assert process_time() - began < 10
