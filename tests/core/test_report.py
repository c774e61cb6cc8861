"""Reports: only the current token counts, and the policy of the task decides what comes next."""

from __future__ import annotations

import pytest
from small_world import Job, Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core.attempt import ERROR_BYTES_MAX, ERROR_TYPE_BYTES_MAX
from taskq.core.records import Ended
from taskq.core.task import CANCELLED, COMPLETED, FAILED, PENDING, RETRYING, RUNNING, SCHEDULED
from taskq.ids import slot_of_id, split
from taskq.storage.rows import decode_record, encode_record

OK, LOST = bytes([m.REPORT_OK]), bytes([m.REPORT_LEASE_LOST])


@pytest.fixture
def worker(world: World) -> Worker:
    return Worker(world, "w1", "email", credit=100)


def running(world: World, worker: Worker, **columns: object) -> Job:
    world.enqueue(b"x", **columns)
    return worker.jobs[-1]


# ---- ack -------------------------------------------------------------------------------------------------------------------------------


def test_an_ack_completes_the_task_with_its_result(world: World, worker: Worker) -> None:
    job = running(world, worker)
    assert worker.ack(job, result=b"42") == OK
    task = world.task(job.id)
    assert (task.state, task.result, task.attempts, task.finished_ms, task.token) == (COMPLETED, b"42", 1, world.now_ms, 0)


def test_a_small_result_is_parked_as_a_copy_and_a_large_one_as_the_view_that_came(world: World, worker: Worker) -> None:
    world.enqueue(b"1", b"2")
    chunk = memoryview(bytes(200_000))
    jobs = worker.jobs
    results: list[m.Payload] = [chunk[:200], chunk[200 : 200 + (64 << 10)]]
    worker.ask(m.Ack(results, jobs[0].id + jobs[1].id, jobs[0].token + jobs[1].token))
    small, large = (world.task(job.id).result for job in jobs)
    assert type(small) is bytes
    assert type(large) is memoryview
    assert large.obj is chunk.obj
    assert world.client.ask(m.Get(jobs[1].id)).payloads[1] is large


def test_a_token_that_is_not_current_changes_nothing(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.fail(job, how=m.RETRY_AFTER, after_ms=1_000)
    world.tick(1_000)
    records = len(world.records)
    assert worker.ack(job) == LOST
    assert worker.fail(job) == LOST
    assert worker.release(job) == LOST
    assert len(world.records) == records
    assert world.task(job.id).state == RUNNING
    assert worker.ack(worker.jobs[-1]) == OK


def test_completed_is_final(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.ack(job, result=b"first")
    assert worker.ack(job, result=b"second") == LOST
    assert worker.fail(job) == LOST
    assert world.task(job.id).result == b"first"


def test_a_guessed_token_of_zero_is_not_current(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    worker = Worker(world, "w1")
    assert worker.ack(Job(task_id, bytes(8), b"", "", 1, 1)) == LOST
    assert world.task(task_id).state == PENDING


def test_a_token_does_not_open_another_task(world: World, worker: Worker) -> None:
    first, second = running(world, worker), running(world, worker)
    assert worker.ack(Job(first.id, second.token, b"", "", 1, 1)) == LOST
    assert {world.task(job.id).state for job in (first, second)} == {RUNNING}


def test_one_stale_token_does_not_spoil_the_rest_of_a_frame(world: World, worker: Worker) -> None:
    jobs = [running(world, worker) for _ in range(3)]
    worker.release(jobs[1], delay_ms=60_000)
    assert worker.ack(*jobs) == OK + LOST + OK
    assert [world.task(job.id).state for job in jobs] == [COMPLETED, SCHEDULED, COMPLETED]


def test_an_ack_over_several_slots_is_answered_in_its_own_order() -> None:
    world = World(shards=4)
    worker = Worker(world, "w1", "a", "b", "c", credit=10)
    for queue in ("a", "b", "c", "a"):
        world.enqueue(b"x", queue=queue)
    jobs = worker.jobs
    worker.release(jobs[1], delay_ms=60_000)
    assert worker.ack(*jobs) == OK + LOST + OK + OK


# ---- sent again ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cold", [False, True])
def test_an_ack_sent_again_is_told_that_it_counted(world: World, worker: Worker, cold: bool) -> None:
    job = running(world, worker)
    worker.ack(job)
    if cold:
        world.flushed()
        assert not world.in_memory(job.id)
    assert worker.ack(job, resent=True) == OK
    assert worker.ack(job) == LOST


def test_a_fail_sent_again_is_told_that_it_counted(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.fail(job, how=m.DISCARD)
    assert worker.fail(job, how=m.DISCARD, resent=True) == OK


def test_an_ack_sent_again_is_not_told_ok_if_the_task_ended_otherwise(world: World, worker: Worker) -> None:
    """The lease was lost with the third crash: the result did not count, and saying that it did would be a lie."""
    running(world, worker)
    for name in ("w2", "w3", "w4"):
        last, job = worker, worker.jobs[-1]
        last.beat()
        worker = Worker(world, name, "email", credit=1)
        worker.ask(m.Died(last.identity, last.secret, "SIGKILL"))
    task = world.task(job.id)
    assert (task.state, task.last_token) == (FAILED, int.from_bytes(job.token, "big"))
    assert worker.ack(job, resent=True) == LOST


def test_an_ack_of_a_cancelled_task_sent_again_is_lost(world: World, worker: Worker) -> None:
    job = running(world, worker)
    world.client.ask(m.Cancel(job.id))
    worker.fail(job)
    assert world.task(job.id).state == CANCELLED
    assert worker.ack(job, resent=True) == LOST
    assert worker.fail(job, resent=True) == OK


def test_a_report_sent_again_about_a_task_that_nobody_knows_is_lost(world: World, worker: Worker) -> None:
    assert worker.ack(Job(world.new_id(), bytes(7) + b"\x09", b"", "", 1, 1), resent=True) == LOST


# ---- fail ------------------------------------------------------------------------------------------------------------------------------


def test_a_failure_is_retried_with_backoff(world: World, worker: Worker) -> None:
    job = running(world, worker, retries=[[1_000, 2, 60_000]])
    worker.fail(job, error="no route to host")
    task = world.task(job.id)
    assert (task.state, task.attempts) == (RETRYING, 1)
    assert world.now_ms <= task.due_ms <= world.now_ms + 1_000
    [attempt] = task.history
    assert (attempt.number, attempt.outcome, attempt.error_type, attempt.error, attempt.worker) == (
        1,
        "failed",
        "ValueError",
        "no route to host",
        "w1",
    )


def test_the_last_attempt_makes_a_dead_letter(world: World, worker: Worker) -> None:
    job = running(world, worker, max_attempts=2)
    worker.fail(job, how=m.RETRY_AFTER, after_ms=1)
    world.tick(1)
    worker.fail(worker.jobs[-1], how=m.RETRY_AFTER, after_ms=1)
    task = world.task(job.id)
    assert (task.state, task.attempts, task.finished_ms) == (FAILED, 2, world.now_ms)


def test_a_discard_makes_a_dead_letter_at_once(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.fail(job, how=m.DISCARD)
    assert world.task(job.id).state == FAILED


def test_the_worker_may_say_when_to_retry(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.fail(job, how=m.RETRY_AFTER, after_ms=7_000)
    assert world.task(job.id).due_ms == world.now_ms + 7_000
    world.tick(6_999)
    assert len(worker.jobs) == 1
    world.tick(1)
    assert len(worker.jobs) == 2


def test_error_texts_are_cut(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.ask(m.Fail(job.id, job.token, [m.RETRY], [0], ["T" * 1_000], ["e" * 50_000]))
    [attempt] = world.task(job.id).history
    assert (len(attempt.error_type), len(attempt.error or "")) == (ERROR_TYPE_BYTES_MAX, ERROR_BYTES_MAX)


def test_error_texts_are_cut_by_their_bytes(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.ask(m.Fail(job.id, job.token, [m.RETRY], [0], ["\U0001f600" * 300], ["\U0001f600" * 16_384]))
    [attempt] = world.task(job.id).history
    assert (len(attempt.error_type.encode()), len((attempt.error or "").encode())) == (ERROR_TYPE_BYTES_MAX, ERROR_BYTES_MAX)


def running_in(world: World, queues: list[str], each: int) -> Worker:
    """A worker that has so many tasks of each queue."""
    worker = Worker(world, "w1", *queues, credit=1_000)
    for queue in queues:
        world.enqueue(*[b""] * each, queue=queue)
    return worker


def fail_all(worker: Worker, text: str) -> list[Ended]:
    ids, tokens = b"".join(job.id for job in worker.jobs), b"".join(job.token for job in worker.jobs)
    worker.ask(m.Fail(ids, tokens, [m.RETRY], [0], ["E"], [text]))
    return [record for record in worker.world.records if type(record) is Ended]


def test_one_text_for_a_thousand_tasks_is_in_the_journal_once_and_in_memory_once(world: World) -> None:
    worker = running_in(world, ["email"], 1_000)
    [record] = fail_all(worker, "e" * 160_000)
    assert (record.errors, record.error_types) == (["e" * 4_194], ["E"])
    assert sum(map(len, encode_record(record))) < 100_000
    texts = {id(task.history[0].error) for task in world.shard.tasks.values()}
    assert len(world.shard.tasks) == 1_000 and len(texts) == 1


@pytest.mark.parametrize(("slots", "bytes_each"), [(1, 16_384), (256, 16_384), (512, 8_192), (1_000, 4_194)])
def test_one_text_for_tasks_of_many_queues_takes_no_more_in_the_journal_than_a_frame(world: World, slots: int, bytes_each: int) -> None:
    records = fail_all(running_in(world, [f"queue{number * 7}" for number in range(slots)], 1), "e" * 20_000)
    assert len({record.slot for record in records}) == len(records) > slots * 0.85
    assert {len(record.errors[0]) for record in records} == {bytes_each}
    assert sum(len(record.errors[0]) for record in records) <= 4 << 20


def test_a_record_of_an_older_journal_has_a_text_for_each_task(world: World) -> None:
    worker = running_in(world, ["email"], 2)
    ids = b"".join(job.id for job in worker.jobs)
    old = Ended(slot_of_id(ids), 5, ids, ["failed"] * 2, [RETRYING] * 2, [9, 9], ["A", "B"], ["a", "b"])
    world.shard.replay(decode_record(memoryview(b"".join(encode_record(old)))))
    assert [(task.history[0].error_type, task.history[0].error) for task in world.shard.tasks.values()] == [("A", "a"), ("B", "b")]


# ---- release ---------------------------------------------------------------------------------------------------------------------------


def test_a_task_handed_back_uses_no_attempt_and_goes_to_the_front(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    first, second = world.enqueue(b"1", b"2")
    worker.release(worker.jobs[0])
    worker.allow(2)
    assert [job.id for job in worker.jobs] == [first, first, second]
    task = world.task(first)
    assert (task.attempts, task.interruptions, task.history[0].outcome) == (0, 1, "interrupted")


def test_a_snoozed_task_is_scheduled_and_uses_nothing_up(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.release(job, delay_ms=5_000)
    task = world.task(job.id)
    assert (task.state, task.due_ms, task.attempts, task.interruptions) == (SCHEDULED, world.now_ms + 5_000, 0, 0)
    world.tick(5_000)
    assert worker.jobs[-1].attempt == 1


# ---- shape -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "report",
    [
        m.Ack([], b"", b""),
        m.Ack([b"r"], bytes(16), b""),
        m.Ack([b"r"], bytes(32), bytes(16)),
        m.Ack([b"r", b"r"], bytes(32), bytes(16)),
        m.Ack([b"r"], bytes(16), bytes(8), [3]),
        m.Ack([b"r"], bytes(16), bytes(8), []),
        m.Fail(bytes(16), bytes(8), [3], [0], [""], [""]),
        m.Fail(bytes(16), bytes(8), [0, 0], [0], [""], [""]),
        m.Fail(bytes(16), bytes(8), [0], [0], [""], []),
        m.Release(bytes(16), bytes(16), [0]),
        m.Release(bytes(16), bytes(8), []),
    ],
)
def test_a_report_of_the_wrong_shape_is_refused(world: World, worker: Worker, report: object) -> None:
    told = worker.ask(report)
    assert (type(told), told.code) == (m.Error, "BAD_REQUEST")
    assert world.bugs == []


def test_a_report_over_several_slots_without_a_token_for_each_id_is_refused() -> None:
    world = World(shards=2)
    worker = Worker(world)
    told = worker.ask(m.Ack([b"r"] * 2, world.new_id("a") + world.new_id("b"), bytes(8)))
    assert (told.code, told.field) == ("BAD_REQUEST", "tokens")


def test_a_report_about_more_tasks_than_a_frame_may_have_is_refused(world: World, worker: Worker) -> None:
    count = 1_001
    tokens = b"".join(number.to_bytes(8, "big") for number in range(count))
    told = worker.ask(m.Release(bytes(16) * count, tokens, [0]))
    assert (type(told), told.code) == (m.Error, "BAD_REQUEST")


def test_a_result_over_the_limit_is_refused_and_the_task_still_runs() -> None:
    world = World(payload_bytes_max=10)
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    [job] = worker.jobs
    told = worker.ask(m.Ack([b"r" * 11], job.id, job.token))
    assert told.code == "PAYLOAD_TOO_LARGE"
    assert worker.ack(job) == OK


def test_success_wins_over_a_cancel_that_was_asked_for(world: World, worker: Worker) -> None:
    job = running(world, worker)
    world.client.ask(m.Cancel(job.id))
    worker.ack(job)
    assert world.task(job.id).state == COMPLETED


def test_a_thousand_acks_are_one_record(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1_000)
    told = world.client.ask(enqueue_of(*[b"x"] * 1_000))
    assert len(split(told.ids, 16)) == len(worker.jobs) == 1_000
    before = len(world.records)
    assert worker.ack(*worker.jobs) == OK * 1_000
    assert len(world.records) == before + 1


def test_a_task_that_leaves_memory_while_its_report_is_parked_for_another_is_still_known(world: World, worker: Worker) -> None:
    job = running(world, worker)
    worker.ack(job)
    world.hold_loads = True
    seq = worker.say(m.Ack([b"r"] * 2, job.id + world.new_id(), job.token + bytes(7) + b"\x63"), resent=True)
    world.run()
    world.flushed()
    assert not world.in_memory(job.id)
    world.hold_loads = False
    world.run()
    assert worker.answers[seq].outcomes == OK + LOST
