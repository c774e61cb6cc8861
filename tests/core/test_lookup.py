"""Get and inspect: what is shown, and a wait that is answered by the end of the task, not by asking again."""

from __future__ import annotations

from small_world import Worker, World

from taskq.core import messages as m
from taskq.core.lookup import WAIT_MS_MAX


def waiting(world: World, task_id: bytes, wait_ms: int = 30_000) -> int:
    seq = world.client.say(m.Get(task_id, wait_ms))
    world.run()
    assert seq not in world.client.answers
    return seq


def state_told(world: World, seq: int) -> str:
    return str(world.client.answers.pop(seq).info["state"])


def test_an_unknown_id_is_not_found_and_never_pending(world: World) -> None:
    for wait_ms in (0, 1_000):
        told = world.client.ask(m.Get(world.new_id(), wait_ms))
        assert (type(told), told.code) == (m.Error, "NOT_FOUND")


def test_a_task_is_shown_with_its_payload_and_result(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"question")
    worker.ack(*worker.jobs, result=b"answer")
    told = world.client.ask(m.Get(task_id))
    assert told.payloads == [b"question", b"answer"]
    assert (told.info["id"], told.info["state"], told.info["attempts"][0]["worker"]) == (task_id.hex(), "completed", "w1")


def test_a_finished_task_is_shown_from_the_store(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"question")
    worker.ack(*worker.jobs, result=b"answer")
    world.flushed()
    assert not world.in_memory(task_id)
    for wait_ms in (0, 30_000):
        told = world.client.ask(m.Get(task_id, wait_ms))
        assert (told.payloads, told.info["state"]) == ([b"question", b"answer"], "completed")


def texts_told(world: World, task_id: bytes, wait_ms: int = 0) -> list[str]:
    return [attempt["error"] for attempt in world.client.ask(m.Get(task_id, wait_ms)).info["attempts"] if attempt["outcome"] != "running"]


def test_texts_of_errors_leave_memory_with_the_flush_and_are_shown_from_the_store(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=10)
    [task_id] = world.enqueue(b"x")
    told: list[str] = []
    for n in range(4):
        told.append(f"{n} " + "e" * 1_000)
        worker.fail(worker.jobs[-1], how=m.RETRY_AFTER, after_ms=1, error=told[-1])
        assert texts_told(world, task_id) == told
        world.flushed()
        assert all(attempt.error is None for attempt in world.shard.tasks[task_id].history)
        assert texts_told(world, task_id) == told
        world.tick(1)
    seq = waiting(world, task_id)
    worker.fail(worker.jobs[-1], how=m.DISCARD, error="the last")
    world.run()
    assert [attempt["error"] for attempt in world.client.answers.pop(seq).info["attempts"]] == [*told, "the last"]
    world.flushed()
    assert not world.in_memory(task_id)
    assert texts_told(world, task_id, 30_000) == [*told, "the last"]


def test_the_texts_of_a_completed_task_are_all_there(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=10)
    [task_id] = world.enqueue(b"x")
    worker.fail(worker.jobs[-1], how=m.RETRY_AFTER, after_ms=1, error="e" * 500)
    world.flushed()
    world.tick(1)
    worker.ack(worker.jobs[-1])
    world.flushed()
    assert texts_told(world, task_id) == ["e" * 500, ""]


def test_a_wait_is_answered_when_the_task_completes(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x")
    seqs = [waiting(world, task_id) for _ in range(2)]
    worker.ack(*worker.jobs)
    assert [state_told(world, seq) for seq in seqs] == ["completed", "completed"]
    assert world.shard.waiters == {}


def test_a_wait_is_answered_by_every_end(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    failed, dropped = world.enqueue(b"x")[0], world.enqueue(b"y")[0]
    seqs = [waiting(world, failed), waiting(world, dropped)]
    worker.fail(worker.jobs[0], how=m.DISCARD)
    world.client.ask(m.Cancel(dropped))
    assert [state_told(world, seq) for seq in seqs] == ["failed", "cancelled"]


def test_a_wait_goes_on_over_retries(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    [task_id] = world.enqueue(b"x")
    seq = waiting(world, task_id)
    worker.fail(worker.jobs[0], how=m.RETRY_AFTER, after_ms=1_000)
    assert seq not in world.client.answers
    world.tick(1_000)
    worker.ack(worker.jobs[1])
    assert state_told(world, seq) == "completed"


def test_a_wait_that_is_over_shows_the_task_as_it_is(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    seq = waiting(world, task_id, 2_000)
    assert world.wake_at_ms == world.now_ms + 2_000
    world.tick(2_000)
    assert state_told(world, seq) == "pending"
    assert world.shard.waiters == {}


def test_a_wait_that_was_answered_is_not_answered_again(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x")
    seq = waiting(world, task_id, 2_000)
    worker.ack(*worker.jobs)
    assert state_told(world, seq) == "completed"
    world.tick(2_000)
    assert seq not in world.client.answers


def test_a_wait_has_a_limit(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    seq = waiting(world, task_id, 10 * WAIT_MS_MAX)
    world.tick(WAIT_MS_MAX)
    assert state_told(world, seq) == "pending"


def test_a_wait_for_a_cold_task_is_answered_when_it_completes(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 4)
    narrow.flushed()
    assert not narrow.in_memory(ids[3])
    seq = waiting(narrow, ids[3])
    worker = Worker(narrow, "w1", "email", credit=4)
    worker.ack(*worker.jobs)
    assert state_told(narrow, seq) == "completed"


def test_a_wait_for_a_cold_task_that_is_over_asks_the_store(narrow: World) -> None:
    ids = narrow.enqueue(*[b"x"] * 4)
    narrow.flushed()
    seq = waiting(narrow, ids[3], 1_000)
    narrow.tick(1_000)
    assert state_told(narrow, seq) == "pending"


def test_queues_are_counted_over_all_shards() -> None:
    world = World(shards=4)
    Worker(world, "w1", "a", credit=1)
    world.enqueue(b"1", b"2", b"3", queue="a")
    world.enqueue(b"4", queue="b", delays_ms=1_000)
    rows = {row["queue"]: row for row in world.client.ask(m.Inspect("queues")).rows}
    assert list(rows) == ["a", "b"]
    assert (rows["a"]["pending"], rows["a"]["running"], rows["a"]["workers"]) == (2, 1, 1)
    assert (rows["b"]["scheduled"], rows["b"]["pending"], rows["b"]["workers"]) == (1, 0, 0)


def test_counts_survive_a_restart(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"1", b"2", b"3")
    worker.fail(worker.jobs[0], how=m.DISCARD)
    world.restart()
    [row] = world.client.ask(m.Inspect("queues")).rows
    assert (row["pending"], row["running"], row["failed"]) == (1, 1, 1)


def test_the_workers_of_a_queue_are_counted_whatever_else_they_take(world: World) -> None:
    for number in range(3):
        Worker(world, f"a{number}", "email", "sms", credit=1)
    Worker(world, "b", "email").take("email", runs=["other"])
    Worker(world, "gone", "email", credit=1).disconnect()
    for queue in ("email", "sms", "images"):
        world.enqueue(b"x", queue=queue, delays_ms=1_000)
    rows = world.client.ask(m.Inspect("queues")).rows
    assert {row["queue"]: row["workers"] for row in rows} == {"email": 4, "sms": 3, "images": 0}
