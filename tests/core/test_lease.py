"""Leases: they live as long as the worker is heard of, and end in a way that charges only the guilty."""

from __future__ import annotations

import pytest
from small_world import GRACE_MS, HEARTBEAT_MS, LEASE_MS, PASS_MS, Job, Worker, World

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.lease import CUT
from taskq.core.records import Ended
from taskq.core.report import EXCUSED
from taskq.core.task import CANCELLED, FAILED, PENDING, RUNNING
from taskq.ids import ID_BYTES, slot_of_id, slot_of_queue, split

OK, LOST = bytes([m.REPORT_OK]), bytes([m.REPORT_LEASE_LOST])


def held_by(world: World, *, name: str = "w1", credit: int = 1) -> tuple[Worker, Job]:
    """A worker that runs one task and has said so."""
    worker = Worker(world, name, "email", credit=credit)
    if not worker.jobs:
        world.enqueue(b"x")
    worker.beat()
    return worker, worker.jobs[-1]


def died(world: World, worker: Worker, cause: str = "SIGKILL") -> m.Ok | m.Error:
    keeper = Worker(world, "keeper")
    told: m.Ok | m.Error = keeper.ask(m.Died(worker.identity, worker.secret, cause))
    return told


# ---- heartbeats ------------------------------------------------------------------------------------------------------------------------


def test_a_task_runs_as_long_as_its_worker_is_heard_of(world: World) -> None:
    worker, job = held_by(world)
    for _ in range(20):
        world.live(HEARTBEAT_MS)
        assert not worker.beat().lost
    assert worker.ack(job) == OK


def test_a_token_that_was_received_and_is_not_listed_is_given_up(world: World) -> None:
    worker, job = held_by(world)
    told = worker.ask(m.Heartbeat(1, b""))
    assert not told.lost and not told.cancelled
    task = world.task(job.id)
    assert (task.state, task.attempts, task.crashes, task.interruptions) == (PENDING, 0, 0, 0)
    assert worker.ack(job) == LOST


def test_a_token_that_was_not_received_yet_is_not_given_up(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x", b"y")
    worker.beat(worker.jobs[0], received=1)
    assert [world.task(job.id).state for job in worker.jobs] == [RUNNING, RUNNING]


def test_a_worker_cannot_confirm_what_was_never_delivered(world: World) -> None:
    worker = Worker(world, "w1", "email")
    worker.ask(m.Heartbeat(1_000, b""))
    worker.allow(1)
    world.enqueue(b"x")
    assert world.shared.consumers[worker.identity].received == 0
    assert world.task(worker.jobs[0].id).state == RUNNING


def test_a_heartbeat_tells_which_tokens_are_lost_and_which_tasks_are_to_be_cancelled(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x", b"y")
    stale = bytes(7) + b"\x63"
    world.client.ask(m.Cancel(worker.jobs[1].id))
    told = worker.ask(m.Heartbeat(2, b"".join([*worker.held, stale])))
    assert (told.lost, told.cancelled) == (stale, worker.jobs[1].token)


def test_a_report_before_the_heartbeat_on_the_same_connection_is_seen_first(world: World) -> None:
    worker, job = held_by(world)
    ack = worker.say(m.Ack([b"r"], job.id, job.token))
    worker.say(m.Heartbeat(1, b""))
    world.run()
    assert worker.answers[ack].outcomes == OK


# ---- expiry ----------------------------------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_suspected_first_and_lost_in_a_later_pass(world: World) -> None:
    worker, job = held_by(world)
    world.live(LEASE_MS)
    assert world.task(job.id).state == RUNNING
    assert worker.identity in world.shard.suspects
    world.live(PASS_MS)
    task = world.task(job.id)
    assert (task.state, task.crashes, task.history[-1].outcome) == (PENDING, 1, "crashed")
    assert task.history[-1].error == "worker lost: nothing was heard of it"


def test_a_suspect_that_is_heard_in_time_keeps_everything(world: World) -> None:
    worker, job = held_by(world)
    world.live(LEASE_MS)
    assert not worker.beat().lost
    world.live(2 * PASS_MS)
    assert worker.ack(job) == OK


def test_a_lost_task_is_redelivered_within_the_lease_and_a_second(world: World) -> None:
    _, job = held_by(world)
    other = Worker(world, "w2", "email", credit=1)
    for _ in range(3):
        world.live(LEASE_MS // 3)
        other.beat()
    world.live(1_000)
    assert [each.id for each in other.jobs] == [job.id]


def test_the_tasks_of_a_lost_worker_come_back_while_the_time_of_day_stands_still(world: World) -> None:
    """The machine's clock was set back, and what is due waits until it has caught up."""
    worker, job = held_by(world)
    set_back_ms = world.now_ms
    world.wall = lambda steady_ms: set_back_ms
    world.live(LEASE_MS + 2 * PASS_MS)
    assert world.task(job.id).state == PENDING and worker.ack(job) == LOST


def test_a_time_of_day_that_jumps_costs_no_lease(world: World) -> None:
    worker, job = held_by(world)
    world.wall = lambda steady_ms: steady_ms + 86_400_000
    world.live(HEARTBEAT_MS)
    world.wall = lambda steady_ms: steady_ms
    worker.beat()
    world.live(HEARTBEAT_MS)
    assert worker.ack(job) == OK


def test_the_late_report_of_a_lost_worker_changes_nothing(world: World) -> None:
    worker, job = held_by(world)
    world.live(LEASE_MS + PASS_MS)
    other = Worker(world, "w2", "email", credit=1)
    assert worker.ack(job, result=b"late") == LOST
    assert other.ack(other.jobs[0], result=b"in time") == OK
    assert world.task(job.id).result == b"in time"


def test_a_clock_never_decides_about_a_report(world: World) -> None:
    """Long after the deadline, but before any pass has ended the lease, the token is current."""
    worker, job = held_by(world)
    world.now_ms += 10 * LEASE_MS
    assert worker.ack(job) == OK


def test_a_broker_that_was_stopped_does_not_expire_everybody(world: World) -> None:
    worker, job = held_by(world)
    world.live(PASS_MS)
    world.tick(60_000)
    world.live(LEASE_MS - PASS_MS)
    assert world.task(job.id).state == RUNNING
    worker.beat()
    assert worker.ack(job) == OK


def test_after_a_stop_of_the_broker_a_worker_has_one_lease_to_be_heard(world: World) -> None:
    _, job = held_by(world)
    world.live(PASS_MS)
    world.tick(60_000)
    world.live(LEASE_MS + PASS_MS)
    assert world.task(job.id).state == PENDING


def test_a_broker_that_was_stopped_does_not_take_back_what_it_has_just_delivered(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    world.live(PASS_MS)
    world.tick(60_000)
    assert world.task(worker.jobs[0].id).state == RUNNING
    worker.beat()
    assert worker.ack(worker.jobs[0]) == OK


def test_a_delivery_that_is_not_confirmed_within_a_lease_never_arrived(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x", b"y")
    for _ in range(4):
        worker.beat(worker.jobs[0], received=1)
        world.live(HEARTBEAT_MS)
    first, second = (world.task(job.id) for job in worker.jobs)
    assert (first.state, second.state) == (RUNNING, PENDING)
    assert (second.attempts, second.crashes, second.interruptions, second.history[-1].outcome) == (0, 0, 0, "undelivered")


def test_without_leases_no_pass_is_needed(world: World) -> None:
    worker, job = held_by(world)
    assert world.wake_at_ms == world.now_ms + PASS_MS
    worker.ack(job)
    assert world.wake_at_ms == 0
    world.tick(3_600_000)
    other, job = held_by(world, name="w2")
    world.tick(PASS_MS)
    assert other.ack(job) == OK


# ---- ends ------------------------------------------------------------------------------------------------------------------------------


def test_a_task_that_kills_its_worker_three_times_is_a_dead_letter(world: World) -> None:
    for number in range(1, 4):
        worker, job = held_by(world, name=f"w{number}")
        assert died(world, worker) == m.Ok()
        assert world.task(job.id).crashes == number
    task = world.task(job.id)
    assert (task.state, task.attempts) == (FAILED, 0)
    assert [attempt.error for attempt in task.history] == ["SIGKILL"] * 3
    assert {attempt.error_type for attempt in task.history} == {"WorkerLost"}


def test_a_dead_worker_is_charged_only_for_what_it_had_received(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x", b"y")
    world.client.ask(m.Get(worker.jobs[0].id))
    Worker(world, "keeper").ask(m.Keepalive(worker.identity, worker.secret, 1))
    died(world, worker)
    assert [world.task(job.id).crashes for job in worker.jobs] == [1, 0]
    assert [world.task(job.id).state for job in worker.jobs] == [PENDING, PENDING]


def test_a_worker_that_says_goodbye_hands_back_uncharged(world: World) -> None:
    worker, job = held_by(world)
    assert worker.ask(m.Bye()) == m.Ok()
    assert worker.session.closing
    task = world.task(job.id)
    assert (task.state, task.attempts, task.crashes, task.interruptions) == (PENDING, 0, 0, 1)


def test_what_a_dead_worker_ran_goes_to_the_front(world: World) -> None:
    worker, job = held_by(world)
    [later] = world.enqueue(b"later")
    died(world, worker)
    other = Worker(world, "w2", "email", credit=2)
    assert [each.id for each in other.jobs] == [job.id, later]


def test_a_cancel_that_was_asked_for_ends_a_lost_task(world: World) -> None:
    worker, job = held_by(world)
    world.client.ask(m.Cancel(job.id))
    died(world, worker)
    task = world.task(job.id)
    assert (task.state, task.crashes) == (CANCELLED, 0)


def test_leases_over_several_queues_end_with_one_record_a_slot() -> None:
    world = World()
    worker = Worker(world, "w1", "a", "b", credit=4)
    world.enqueue(b"1", b"2", queue="a")
    world.enqueue(b"3", b"4", queue="b")
    before = len(world.records)
    worker.ask(m.Bye())
    slots = [record.slot for record in world.records[before:]]
    assert len(slots) == len(set(slots)) == 2
    world.check()


# ---- cut connections -------------------------------------------------------------------------------------------------------------------


def cut(world: World, worker: Worker) -> None:
    """The connection ends, and nobody comes back until the leases are over."""
    worker.disconnect()
    world.live(GRACE_MS + PASS_MS)


def test_the_leases_of_a_cut_connection_end_after_the_grace_whenever_it_was_last_heard_of(world: World) -> None:
    worker, job = held_by(world)
    world.live(LEASE_MS - PASS_MS)
    worker.disconnect()
    world.live(GRACE_MS - PASS_MS)
    assert worker.resume(world, job).outcomes == bytes([m.KEPT])
    assert world.task(job.id).state == RUNNING


def test_three_outages_of_a_living_worker_fail_no_task(world: World) -> None:
    worker, job = held_by(world)
    for outages in range(1, 4):
        cut(world, worker)
        assert (world.task(job.id).state, world.task(job.id).crashes) == (PENDING, 1)
        assert worker.resume(world, job).outcomes == bytes([m.LOST])
        task = world.task(job.id)
        assert (task.crashes, task.interruptions) == (0, outages)
        assert [attempt.outcome for attempt in task.history] == ["interrupted"] * outages
        worker.take("email")
        worker.allow(1)
        worker.beat()
    assert worker.ack(worker.jobs[-1]) == OK
    world.check()


def test_a_worker_that_is_cut_off_three_times_and_never_comes_back_leaves_a_dead_letter(world: World) -> None:
    """What kills a whole machine, the keeper too, leaves no other trace than this."""
    for number in range(1, 4):
        worker, job = held_by(world, name=f"w{number}")
        cut(world, worker)
        assert world.task(job.id).crashes == number
    task = world.task(job.id)
    assert (task.state, {attempt.error for attempt in task.history}) == (FAILED, {CUT})


def test_the_keeper_of_a_worker_that_was_cut_off_takes_the_blame_off_its_tasks(world: World) -> None:
    worker, job = held_by(world)
    cut(world, worker)
    assert Worker(world, "keeper").ask(m.Keepalive(worker.identity, worker.secret, 1)) == m.Ok()
    assert (world.task(job.id).crashes, world.task(job.id).interruptions) == (0, 1)


@pytest.mark.parametrize(("cause", "crashes"), [("SIGKILL", 1), ("", 0)])
def test_the_keeper_of_a_worker_that_was_cut_off_may_still_tell_how_it_ended(world: World, cause: str, crashes: int) -> None:
    worker, job = held_by(world)
    cut(world, worker)
    died(world, worker, cause)
    assert world.task(job.id).crashes == crashes


def test_a_worker_that_stood_still_for_a_whole_lease_is_charged_although_it_comes_back(world: World) -> None:
    """What holds up its worker for so long would do so for ever, if nobody counted."""
    worker, job = held_by(world)
    world.live(LEASE_MS + PASS_MS)
    worker.disconnect()
    worker.resume(world)
    worker.beat()
    assert (world.task(job.id).crashes, world.task(job.id).interruptions) == (1, 0)


def test_a_task_with_two_crashes_of_which_one_was_none_need_not_run_alone_any_more(world: World) -> None:
    first, job = held_by(world)
    cut(world, first)
    second, _ = held_by(world, name="w2")
    died(world, second)
    assert world.task(job.id).crashes == 2
    busy = Worker(world, "w3", "other", credit=1)
    world.enqueue(b"y", queue="other")
    busy.take("other", "email")
    assert world.shared.alone or world.shard.queues["email"].apart.waiting
    first.resume(world)
    world.check()
    assert (world.task(job.id).crashes, world.shard.queues["email"].apart.waiting, world.shared.alone) == (1, 0, {})
    assert [(attempt.worker, attempt.outcome) for attempt in world.task(job.id).history] == [("w1", "interrupted"), ("w2", "crashed")]
    busy.allow(1)
    assert busy.jobs[-1].id == job.id


@pytest.mark.parametrize("end", ["completes", "waits in the store", "is retried far from now"])
def test_the_blame_is_taken_off_a_task_wherever_it_is_meanwhile(narrow: World, end: str) -> None:
    worker, job = held_by(narrow)
    cut(narrow, worker)
    if end != "waits in the store":
        other = Worker(narrow, "w2", "email", credit=1)
        other.ack(other.jobs[0]) if end == "completes" else other.fail(other.jobs[0], how=m.RETRY_AFTER, after_ms=86_400_000)
    narrow.restart() if end == "waits in the store" else narrow.flushed()
    narrow.mail.append((0, fx.Command(0, 0, fx.Returned(job.id))))
    narrow.run()
    task = narrow.task(job.id)
    assert (task.crashes, task.interruptions) == ((1, 0) if end == "completes" else (0, 1))
    narrow.check()
    narrow.restart()
    assert narrow.task(job.id).crashes == task.crashes


def test_the_blame_is_taken_off_in_a_record_for_each_slot(world: World) -> None:
    for queue in ("email", "images"):
        world.enqueue(b"x", queue=queue)
    worker = Worker(world, "w1", "email", "images", credit=2)
    worker.beat()
    cut(world, worker)
    begin = len(world.records)
    worker.resume(world)
    excused = [record for record in world.records[begin:] if type(record) is Ended and EXCUSED in record.outcomes]
    assert [record.slot for record in excused] == [slot_of_queue("email"), slot_of_queue("images")]
    assert all(slot_of_id(task_id) == record.slot for record in excused for task_id in split(record.ids, ID_BYTES))


def test_a_task_that_leaves_the_middle_of_those_that_wait_apart_and_comes_back_stands_there_once(world: World) -> None:
    world.enqueue(b"a", b"b", task_types=["unknown", "send_email"])
    for number in range(2):
        worker = Worker(world, f"w{number}", credit=2)
        worker.take("email", runs=["send_email", "unknown"])
        worker.beat()
        died(world, worker)
    last = Worker(world, "last", "email", credit=1)
    last.fail(last.jobs[0], how=m.RETRY_AFTER, after_ms=PASS_MS)
    world.live(2 * PASS_MS)
    world.check()


# ---- restart and resume ----------------------------------------------------------------------------------------------------------------


def test_leases_survive_a_restart(world: World) -> None:
    worker, job = held_by(world)
    world.restart()
    assert worker.resume(world, job).outcomes == bytes([m.KEPT])
    assert worker.ack(job) == OK


def test_a_session_that_does_not_come_back_after_a_restart_is_interrupted_and_not_charged(world: World) -> None:
    _, job = held_by(world)
    world.restart()
    world.live(LEASE_MS + PASS_MS)
    task = world.task(job.id)
    assert (task.state, task.crashes, task.interruptions) == (PENDING, 0, 1)


def test_a_keeper_can_hold_the_leases_over_a_restart(world: World) -> None:
    worker, job = held_by(world)
    world.restart()
    for _ in range(6):
        Worker(world, "keeper").ask(m.Keepalive(worker.identity, worker.secret, 1))
        world.live(HEARTBEAT_MS)
    assert world.task(job.id).state == RUNNING


def test_a_runner_that_died_while_the_broker_was_away_is_charged(world: World) -> None:
    worker, job = held_by(world)
    world.restart()
    died(world, worker)
    assert world.task(job.id).crashes == 1


def test_a_task_given_back_after_a_restart_does_not_hide_the_older_ones_in_the_store(narrow: World) -> None:
    worker = Worker(narrow, "w1", "email", credit=4)
    ids = narrow.enqueue(*[b"%d" % number for number in range(12)])
    first, *others = worker.jobs
    worker.beat()
    worker.release(first)
    narrow.restart()
    worker.resume(narrow, *others)
    worker.release(others[-1])
    taker = Worker(narrow, "w2", "email")
    for _ in range(3):
        taker.allow(1)
    assert first.id in [job.id for job in taker.jobs]
    taker.allow(20)
    assert sorted(job.id for job in taker.jobs) == sorted(task_id for task_id in ids if task_id not in [job.id for job in others[:-1]])


# ---- idle workers ------------------------------------------------------------------------------------------------------------------------


def test_the_heartbeat_of_a_worker_without_leases_asks_no_shard_and_one_with_leases_asks_all() -> None:
    world = World(shards=4)
    worker = Worker(world, "w1", "email", credit=1)
    worker.say(m.Heartbeat(0, b""))
    assert not worker.session.commands
    world.run()
    world.enqueue(b"x")
    worker.say(m.Heartbeat(0, b""))
    assert len(worker.session.commands) == 4
    world.run()
    assert world.task(worker.jobs[0].id).state == RUNNING
    worker.beat(worker.jobs[0])
    worker.ack(worker.jobs[0])
    worker.say(m.Heartbeat(1, b""))
    assert not worker.session.commands


def test_a_token_that_an_idle_worker_still_lists_is_told_as_lost() -> None:
    world = World(shards=4)
    worker = Worker(world, "w1", "email")
    assert worker.ask(m.Heartbeat(0, bytes(7) + b"\x63")).lost == bytes(7) + b"\x63"
