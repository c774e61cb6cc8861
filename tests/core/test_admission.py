"""Admission: who refuses, who takes it back, and that finishing work is never refused."""

from __future__ import annotations

from typing import Any

import pytest
from small_world import PASS_MS, Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core.access import Grant
from taskq.core.admission import Admission, Lateness, disk_bytes
from taskq.core.names import share_of
from taskq.errors import DiskLow, Draining, Overloaded


def test_the_first_reason_is_the_answer_until_it_is_taken_back() -> None:
    admission = Admission()
    admission.refuse("journal", Overloaded("first"))
    admission.refuse("journal", Overloaded("again"))
    admission.refuse("drain", Draining())
    assert str(admission.refusal) == "first"
    admission.admit("journal")
    assert isinstance(admission.refusal, Draining)
    admission.admit("drain")
    admission.admit("drain")
    assert admission.refusal is None


def test_an_overloaded_broker_says_when_to_come_back_and_keeps_nothing(world: World) -> None:
    world.shared.admission.refuse("store", Overloaded(retry_after_ms=500))
    told = world.client.ask(enqueue_of(b"x"))
    assert (told.code, told.retryable, told.retry_after_ms) == ("OVERLOADED", True, 500)
    assert world.records == []


def test_finishing_work_is_never_refused(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    world.shared.admission.refuse("store", Overloaded())
    assert worker.ack(*worker.jobs) == bytes([m.REPORT_OK])


def test_a_draining_broker_delivers_nothing(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    world.shared.admission.draining = True
    worker = Worker(world, "w1", "email", credit=1)
    assert worker.jobs == []
    assert world.get(task_id)["state"] == "pending"


# ---- the limits of a queue


def limited(**limits: int) -> World:
    return World(shards=2, **limits)


def outcomes(told: m.Enqueued) -> list[int]:
    return list(told.outcomes)


def test_a_full_queue_refuses_what_is_new_and_keeps_what_it_has() -> None:
    world = limited(queue_tasks_max=3)
    ids = world.enqueue(b"1", b"2", b"3")
    told = world.client.ask(enqueue_of(b"4"))
    assert (told.code, told.retryable, told.retry_after_ms) == ("QUEUE_FULL", True, 1_000)
    assert "queue email may have 3 unfinished tasks (queue_tasks_max)" in told.message
    assert [world.get(task_id)["state"] for task_id in ids] == ["pending"] * 3
    assert len(world.enqueue(b"elsewhere", queue="other")) == 1
    world.check()


def test_of_a_frame_as_much_is_taken_as_has_room_and_each_of_the_rest_is_told() -> None:
    world = limited(queue_tasks_max=3)
    told = world.client.ask(enqueue_of(b"1", b"2", b"3", b"4", b"5"))
    assert outcomes(told) == [m.CREATED] * 3 + [m.REFUSED] * 2
    assert [(at, code) for at, code, *_ in told.errors] == [(3, "QUEUE_FULL"), (4, "QUEUE_FULL")]
    assert [payload for record in world.records for payload in record.payloads] == [b"1", b"2", b"3"]


def test_delayed_and_running_tasks_count_and_finished_ones_do_not() -> None:
    world = limited(queue_tasks_max=3)
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"runs")
    [delayed] = world.enqueue(b"delayed", delays_ms=1_000)
    world.enqueue(b"waits")
    assert world.client.ask(enqueue_of(b"x")).code == "QUEUE_FULL"
    worker.ack(*worker.jobs)
    world.enqueue(b"instead of the first")
    assert world.client.ask(enqueue_of(b"x")).code == "QUEUE_FULL"
    world.client.ask(m.Cancel(delayed))
    world.enqueue(b"instead of the delayed")
    world.check()


def test_the_bytes_of_a_queue_are_limited_too() -> None:
    world = limited(queue_bytes_max=100)
    [first] = world.enqueue(bytes(60))
    told = world.client.ask(enqueue_of(bytes(30), bytes(20)))
    assert outcomes(told) == [m.CREATED, m.REFUSED] and "(queue_bytes_max)" in told.errors[0][2]
    assert world.client.ask(enqueue_of(bytes(11))).code == "QUEUE_FULL"
    world.enqueue(bytes(10))
    world.client.ask(m.Cancel(first))
    world.enqueue(bytes(60))
    assert world.client.ask(enqueue_of(b"x")).code == "QUEUE_FULL"
    world.check()


def test_the_limits_of_a_queue_are_exact_after_a_restart() -> None:
    world = limited(queue_tasks_max=4, queue_bytes_max=100)
    worker = Worker(world, "w1", "email", credit=1)
    ids = world.enqueue(bytes(30), bytes(20), bytes(10))
    worker.ack(*worker.jobs)
    world.restart()
    assert outcomes(world.client.ask(enqueue_of(bytes(60), bytes(11)))) == [m.CREATED, m.REFUSED]
    world.enqueue(bytes(10))
    assert world.client.ask(enqueue_of(b"")).code == "QUEUE_FULL"
    world.client.ask(m.Cancel(ids[1]))
    world.restart()
    world.enqueue(bytes(20))
    assert world.client.ask(enqueue_of(b"")).code == "QUEUE_FULL"
    world.check()


def test_a_task_that_exists_needs_no_room() -> None:
    world = limited(queue_tasks_max=1)
    frame = enqueue_of(b"1", ids=world.new_id())
    world.client.ask(frame)
    world.shared.admission.refuse("disk", DiskLow())
    assert outcomes(world.client.ask(frame, resent=True)) == [m.EXISTS]
    assert world.client.ask(enqueue_of(b"2", ids=world.new_id()), resent=True).code == "DISK_LOW"
    mixed = enqueue_of(b"1", b"2", ids=frame.ids + world.new_id())
    assert outcomes(world.client.ask(mixed, resent=True)) == [m.EXISTS, m.REFUSED]


def test_a_broker_has_only_so_many_queues_and_empty_ones_make_place() -> None:
    world = limited(queues_max=3)
    ids = [world.enqueue(b"x", queue=f"q{number}")[0] for number in range(3)]
    told = world.client.ask(enqueue_of(b"x", queue="q3"))
    assert (told.code, told.field, told.retryable) == ("QUEUES_FULL", "queue", True) and "(queues_max)" in told.message and told.retry_after_ms
    world.enqueue(b"x", queue="q0")
    world.client.ask(m.Cancel(ids[1]))
    world.flushed()
    world.enqueue(b"x", queue="q3")
    assert world.client.ask(enqueue_of(b"x", queue="q4")).code == "QUEUES_FULL"
    assert world.shared.names.count == sum(len(shard.queues) for shard in world.shards) == 3
    world.restart()
    assert world.client.ask(enqueue_of(b"x", queue="q4")).code == "QUEUES_FULL"


def with_token(world: World, name: str) -> Any:
    session = world.client.session
    session.grant = Grant(name, (("admin", "*"),))
    return world.client


def test_a_token_brings_no_more_queues_than_its_share_and_takes_no_name_of_others() -> None:
    world = limited(queues_max=800)
    for number in range(200):
        with_token(world, "greedy").ask(enqueue_of(b"x", queue=f"q{number}"))
    told = with_token(world, "greedy").ask(enqueue_of(b"x", queue="q200"))
    assert (told.code, told.retryable) == ("QUEUES_FULL", True) and "token greedy may bring 200" in told.message
    assert outcomes(with_token(world, "greedy").ask(enqueue_of(b"x", queue="q0"))) == [m.CREATED]
    assert outcomes(with_token(world, "other").ask(enqueue_of(b"x", queue="q200"))) == [m.CREATED]
    assert world.shared.names.brought == {"greedy": 200, "other": 1}


def test_a_token_whose_queues_run_empty_may_bring_others() -> None:
    world = limited(queues_max=400)
    asked = [with_token(world, "greedy").ask(enqueue_of(b"x", queue=f"q{number}")) for number in range(100)]
    assert world.client.ask(enqueue_of(b"x", queue="more")).code == "QUEUES_FULL"
    for told in asked[:10]:
        world.client.ask(m.Cancel(told.ids))
    world.flushed()
    assert world.shared.names.brought == {"greedy": 90}
    assert outcomes(world.client.ask(enqueue_of(b"x", queue="more"))) == [m.CREATED]
    world.check()


def test_what_is_refused_brings_no_queue() -> None:
    world = limited(queue_bytes_max=1)
    assert with_token(world, "greedy").ask(enqueue_of(b"xx", queue="q")).code == "QUEUE_FULL"
    assert world.shared.names.count == 0


@pytest.mark.parametrize(("queues_max", "share"), [(1, 1), (100, 100), (401, 100), (10_000, 2_500)])
def test_the_share_of_a_token_is_a_quarter_but_not_less_than_a_hundred(queues_max: int, share: int) -> None:
    assert share_of(queues_max) == share


# ---- the leases of a worker


def test_a_worker_has_at_most_so_many_tasks_whatever_it_asks_for() -> None:
    world = World(shards=3, leases_max=3)
    for queue in ("one", "two", "three"):
        world.enqueue(*[b"x"] * 4, queue=queue)
    worker = Worker(world, "w1", "one", "two", "three", credit=1_000_000)
    assert len(worker.held) == 3
    done = 0
    while worker.held:
        worker.ack(*list(worker.held.values())[:1])
        done += 1
        world.live(500)
        assert len(worker.held) <= 3
    assert done == 12


def test_a_shard_whose_tasks_wait_for_leases_of_other_shards_looks_again_by_itself() -> None:
    world = World(shards=2, leases_max=1)
    first = "one"
    second = next(name for name in ("two", "three", "four", "five") if world.ring.of_queue(name) != world.ring.of_queue(first))
    world.enqueue(b"x", queue=first)
    worker = Worker(world, "w1", first, second, credit=10)
    world.enqueue(b"x", queue=second)
    assert len(worker.held) == 1
    assert world.turn(world.ring.of_queue(second), []).wake_at_ms == world.now_ms + PASS_MS
    worker.ack(*worker.jobs)
    world.live(PASS_MS)
    assert len(worker.jobs) == 2


# ---- time and disk


def test_a_loop_that_is_late_for_five_seconds_sheds_enqueues_and_a_hiccup_does_not() -> None:
    late = Lateness(200)
    assert late.turn(40_000, 1_000) is None
    assert late.turn(0, 1_100) is None
    assert [late.turn(300, now_ms) for now_ms in range(2_000, 7_000, 500)] == [None] * 10
    refusal = late.turn(300, 7_000)
    assert refusal is not None and (refusal.code, refusal.retry_after_ms) == ("OVERLOADED", 1_000)
    assert late.turn(200, 7_300) is None and late.turn(300, 7_700) is None


def test_what_is_admitted_between_two_looks_at_the_disk_is_charged(world: World) -> None:
    admission = world.shared.admission
    admission.room_bytes = disk_bytes(10, 1_000)
    world.enqueue(*[bytes(100)] * 10)
    assert admission.refusal is None
    world.enqueue(b"")
    assert world.client.ask(enqueue_of(b"x")).code == "DISK_LOW"
