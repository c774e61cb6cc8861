"""Enqueue: every refusal by its code and field, and the many ways in which the same task does not come twice."""

from __future__ import annotations

from itertools import count
from typing import Any

import attrs
import msgpack
import pytest
from small_world import Worker, World, at_once, enqueue_of

from taskq.core import messages as m
from taskq.core.enqueue import TASKS_MAX
from taskq.core.idtime import FRESH_MS
from taskq.core.messages import HORIZON_MS, KEY_CHARS_MAX
from taskq.core.task import CANCELLED, COMPLETED, PENDING, SCHEDULED
from taskq.ids import NIL, is_valid, slot_of_id, slot_of_queue, split
from taskq.storage.base import Retention


def test_new_tasks_are_pending_and_get_ids_of_their_queue(world: World) -> None:
    told = world.client.ask(enqueue_of(b"one", b"two"))
    ids = split(told.ids, 16)
    assert (told.outcomes, told.states) == (bytes([m.CREATED] * 2), bytes([PENDING] * 2))
    assert told.durability == m.FSYNC
    assert all(is_valid(task_id) and slot_of_id(task_id) == slot_of_queue("email") for task_id in ids)
    assert [world.task(task_id).payload for task_id in ids] == [b"one", b"two"]
    assert len(world.records) == 1


def test_a_delayed_task_is_scheduled(world: World) -> None:
    told = world.client.ask(enqueue_of(b"now", b"later", delays_ms=[0, 5_000]))
    assert told.states == bytes([PENDING, SCHEDULED])
    assert world.task(told.ids[16:]).due_ms == world.now_ms + 5_000


def test_columns_give_each_task_its_own_options_and_single_ones_are_shared(world: World) -> None:
    first, second, third = world.enqueue(b"1", b"2", b"3", task_types=["a", "b", "c"], priorities=[0, 5, 9], timeouts_ms=100, retries=[[1, 2, 3]])
    options = [world.task(task_id).options for task_id in (first, second, third)]
    assert [(each.task_type, each.priority, each.timeout_ms, each.retry) for each in options] == [
        ("a", 0, 100, (1, 2.0, 3)),
        ("b", 5, 100, (1, 2.0, 3)),
        ("c", 9, 100, (1, 2.0, 3)),
    ]
    alike = [world.task(task_id).options for task_id in world.enqueue(b"4", b"5")]
    assert alike[0] is alike[1]


def test_a_small_payload_is_parked_as_a_copy_and_a_large_one_as_the_view_that_came(world: World) -> None:
    chunk = memoryview(bytes(80_000))
    told = world.client.ask(m.Enqueue([chunk[:100], chunk[100 : 100 + (64 << 10)]], "email", NIL * 2, ["send_email"]))
    small, large = (world.task(task_id).payload for task_id in split(told.ids, 16))
    assert type(small) is bytes
    assert type(large) is memoryview
    assert large.obj is chunk.obj


# ---- refusals of a whole frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        (m.Enqueue([], "email", b"", ["t"]), "payloads"),
        (m.Enqueue([b""] * (TASKS_MAX + 1), "email", NIL * (TASKS_MAX + 1), ["t"]), "payloads"),
        (m.Enqueue([b"", b""], "email", NIL, ["t"]), "ids"),
        (m.Enqueue([b""], "e mail", NIL, ["t"]), "queue"),
        (m.Enqueue([b""], "", NIL, ["t"]), "queue"),
        (m.Enqueue([b""], "q" * 129, NIL, ["t"]), "queue"),
        (m.Enqueue([b""] * 3, "email", NIL * 3, ["t"] * 2), "task_types"),
        (m.Enqueue([b""], "email", NIL, []), "task_types"),
        (m.Enqueue([b""], "email", NIL, ["t"], priorities=[1, 2]), "priorities"),
    ],
)
def test_a_frame_of_the_wrong_shape_is_refused_as_a_whole(world: World, frame: m.Enqueue, field: str) -> None:
    told = world.client.ask(frame)
    assert (type(told), told.code, told.field) == (m.Error, "BAD_REQUEST", field)
    assert world.records == []


# ---- refusals of one task --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("task_types", "no spaces"),
        ("task_types", ""),
        ("encodings", 3),
        ("priorities", 10),
        ("delays_ms", HORIZON_MS + 1),
        ("keys", ""),
        ("keys", "k" * (KEY_CHARS_MAX + 1)),
        ("max_attempts", 0),
        ("max_attempts", 1_001),
        ("timeouts_ms", HORIZON_MS + 1),
        ("retries", [1, 2]),
        ("retries", [2_000, 0.5, 3_000]),
        ("retries", [2_000, float("nan"), 3_000]),
        ("retries", [2_000, 2, 1_000]),
        ("retries", "often"),
        ("retries", [True, 2, 3]),
    ],
)
def test_a_bad_value_refuses_its_own_task_and_no_other(world: World, column: str, bad: Any) -> None:
    good: Any = {"task_types": "t", "max_attempts": 1, "retries": None, "keys": None}.get(column, 0)
    told = world.client.ask(enqueue_of(b"1", b"2", b"3", **{column: [good, bad, good]}))
    assert told.outcomes == bytes([m.CREATED, m.REFUSED, m.CREATED])
    [[at, code, message, field]] = told.errors
    assert (at, code, field) == (1, "BAD_REQUEST", column)
    assert message.startswith(f"{column}: ")
    assert len(world.shard.tasks) == 2


def test_a_bad_value_that_counts_for_all_refuses_all(world: World) -> None:
    told = world.client.ask(enqueue_of(b"1", b"2", priorities=10))
    assert told.outcomes == bytes([m.REFUSED] * 2)
    assert world.records == []


def test_a_payload_over_the_limit_is_refused_with_the_way_out() -> None:
    world = World(payload_bytes_max=10)
    told = world.client.ask(enqueue_of(b"x" * 10, b"x" * 11))
    assert told.outcomes == bytes([m.CREATED, m.REFUSED])
    assert told.errors[0][1] == "PAYLOAD_TOO_LARGE"
    assert "enqueue a reference" in told.errors[0][2]


def test_an_id_that_is_not_ours_or_of_another_queue_is_refused(world: World) -> None:
    other = world.new_id("other")
    told = world.client.ask(enqueue_of(b"1", b"2", ids=bytes([1]) * 16 + other))
    assert told.outcomes == bytes([m.REFUSED] * 2)
    assert {(code, field) for _, code, _, field in told.errors} == {("BAD_REQUEST", "id")}


# ---- the same task again ---------------------------------------------------------------------------------------------------------------


def test_a_fresh_id_does_not_ask_the_store(world: World) -> None:
    world.hold_loads = True
    told = world.client.ask(enqueue_of(b"x", ids=world.new_id(age_ms=FRESH_MS)))
    assert told.outcomes == bytes([m.CREATED])
    assert world.loads == []


def done_long_ago(world: World, after_ms: int) -> tuple[m.Enqueue, bytes]:
    """A task that was completed, left memory, and is kept in the store; the frame that made it."""
    frame = enqueue_of(b"first", ids=world.new_id())
    worker = Worker(world, "w1", "email", credit=1)
    world.client.ask(frame)
    worker.ack(worker.jobs[0], result=b"the result")
    world.flushed()
    assert not world.in_memory(frame.ids)
    world.live(after_ms)
    return frame, frame.ids


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("after_ms", [0, 6_000, FRESH_MS - 1_000, 2 * FRESH_MS])
def test_a_finished_task_is_never_replaced_whatever_flag_the_client_sets(world: World, after_ms: int, restarted: bool) -> None:
    frame, task_id = done_long_ago(world, after_ms)
    if restarted:
        world.restart()
    for resent in (False, True):
        told = world.client.ask(attrs.evolve(frame, payloads=[b"other"]), resent=resent)
        assert (told.outcomes, told.errors[0][1]) == (bytes([m.REFUSED]), "ID_CONFLICT")
        told = world.client.ask(frame, resent=resent)
        assert (told.outcomes, told.states) == (bytes([m.EXISTS]), bytes([COMPLETED]))
    task = world.task(task_id)
    assert (task.payload, task.result, task.state) == (b"first", b"the result", COMPLETED)


def test_a_task_that_waits_in_the_store_is_never_replaced(narrow: World) -> None:
    ids = narrow.enqueue(*[b"%d" % number for number in range(12)])
    narrow.flushed()
    assert not narrow.in_memory(ids[-1])
    told = narrow.client.ask(enqueue_of(b"other", ids=ids[-1]))
    assert told.errors[0][1] == "ID_CONFLICT"


def test_the_fresh_id_of_a_task_that_was_deleted_is_too_old(world: World) -> None:
    frame, _ = done_long_ago(world, 0)
    at_once(world.store.prune(Retention(world.now_ms + 1, 0, 0)))
    told = world.client.ask(frame)
    assert (told.outcomes, told.errors[0][1]) == (bytes([m.REFUSED]), "ID_TOO_OLD")


def test_what_clients_make_after_a_restart_is_new_without_a_look(world: World) -> None:
    done_long_ago(world, 0)
    world.restart()
    world.live(1)
    world.hold_loads = True
    world.enqueue(b"x", ids=world.new_id())


def test_an_id_of_another_queue_of_the_same_slot_is_a_conflict(world: World) -> None:
    slot = slot_of_queue("email")
    twin = next(name for name in (f"q{number}" for number in count()) if slot_of_queue(name) == slot)
    frame = enqueue_of(b"x", ids=world.new_id())
    world.client.ask(frame)
    told = world.client.ask(attrs.evolve(frame, queue=twin))
    assert told.errors[0][1] == "ID_CONFLICT"


def test_the_same_call_in_other_bytes_exists_by_key_and_by_id(world: World) -> None:
    frame = enqueue_of(b'{"a": 1, "b": 2}', ids=world.new_id(), encodings=m.JSON, keys="k")
    world.client.ask(frame)
    same = attrs.evolve(frame, payloads=[msgpack.packb({"b": 2, "a": 1})], encodings=[m.MSGPACK])
    for each in (same, attrs.evolve(same, ids=NIL), attrs.evolve(same, keys=[None])):
        told = world.client.ask(each)
        assert (told.outcomes, told.ids) == (bytes([m.EXISTS]), frame.ids)
    told = world.client.ask(attrs.evolve(same, ids=NIL, payloads=[msgpack.packb({"b": 2, "a": 3})]))
    assert told.errors[0][1] == "KEY_CONFLICT"


def test_the_same_id_and_content_exists_with_its_state_now(world: World) -> None:
    task_id = world.new_id()
    worker = Worker(world, "w1", "email", credit=1)
    assert world.enqueue(b"x", ids=task_id) == [task_id]
    worker.ack(*worker.jobs)
    told = world.client.ask(enqueue_of(b"x", ids=task_id))
    assert (told.outcomes, told.states, told.ids) == (bytes([m.EXISTS]), bytes([COMPLETED]), task_id)
    assert len(worker.jobs) == 1


@pytest.mark.parametrize("change", [{"payload": b"y"}, {"task_type": "other"}, {"encodings": m.JSON}])
def test_the_same_id_with_other_content_is_a_conflict(world: World, change: dict[str, Any]) -> None:
    task_id = world.new_id()
    world.enqueue(b"x", ids=task_id)
    told = world.client.ask(enqueue_of(change.pop("payload", b"x"), ids=task_id, **change))
    assert (told.outcomes, told.errors[0][1], told.errors[0][3]) == (bytes([m.REFUSED]), "ID_CONFLICT", "id")


def test_a_payload_that_was_parked_as_a_view_is_compared_by_content(world: World) -> None:
    task_id = world.new_id()
    large = bytes(range(256)) * 256
    world.client.ask(m.Enqueue([memoryview(large)], "email", task_id, ["t"]))
    same = world.client.ask(m.Enqueue([memoryview(bytearray(large))], "email", task_id, ["t"]))
    other = world.client.ask(m.Enqueue([memoryview(large[::-1])], "email", task_id, ["t"]))
    assert (same.outcomes, other.outcomes) == (bytes([m.EXISTS]), bytes([m.REFUSED]))


def test_a_frame_sent_again_finds_its_task_in_the_store(world: World) -> None:
    task_id = world.new_id()
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", ids=task_id)
    worker.ack(*worker.jobs)
    world.flushed()
    assert not world.in_memory(task_id)
    told = world.client.ask(enqueue_of(b"x", ids=task_id), resent=True)
    assert (told.outcomes, told.states) == (bytes([m.EXISTS]), bytes([COMPLETED]))


def test_a_frame_sent_again_before_it_was_ever_seen_is_new(world: World) -> None:
    task_id = world.new_id()
    assert world.client.ask(enqueue_of(b"x", ids=task_id), resent=True).outcomes == bytes([m.CREATED])


def test_two_frames_with_one_id_that_are_parked_together_make_one_task(world: World) -> None:
    task_id = world.new_id()
    world.hold_loads = True
    seqs = [world.client.say(enqueue_of(b"x", ids=task_id), resent=True) for _ in range(2)]
    world.run()
    assert len(world.loads) == 2
    world.hold_loads = False
    world.run()
    assert [world.client.answers[seq].outcomes for seq in seqs] == [bytes([m.CREATED]), bytes([m.EXISTS])]


def test_a_parked_frame_of_nil_ids_keeps_the_ids_that_were_made_for_it(world: World) -> None:
    world.hold_loads = True
    seq = world.client.say(enqueue_of(b"x", keys="k"))
    world.run()
    [(_, load)] = world.loads
    asked = load.parked.message.ids
    world.hold_loads = False
    world.run()
    assert asked != NIL
    assert world.client.answers[seq].ids == asked


def test_an_old_id_is_looked_up_and_new_if_nothing_of_its_age_was_deleted(world: World) -> None:
    told = world.client.ask(enqueue_of(b"x", ids=world.new_id(age_ms=FRESH_MS + 1)))
    assert told.outcomes == bytes([m.CREATED])


def test_an_old_id_that_may_have_been_deleted_never_runs_again(world: World) -> None:
    task_id = world.new_id(age_ms=2 * FRESH_MS)
    world.shared.ids.pruned_ms = world.now_ms - FRESH_MS
    told = world.client.ask(enqueue_of(b"x", ids=task_id))
    assert (told.outcomes, told.errors[0][1]) == (bytes([m.REFUSED]), "ID_TOO_OLD")


def test_a_frame_sent_again_after_its_task_was_deleted_never_runs_again(world: World) -> None:
    """At high rates finished tasks are kept for seconds only, less than the minute in which an id counts as fresh."""
    task_id = world.new_id(age_ms=20_000)
    world.shared.ids.pruned_ms = world.now_ms - 10_000
    told = world.client.ask(enqueue_of(b"x", ids=task_id), resent=True)
    assert (told.outcomes, told.errors and told.errors[0][1]) == (bytes([m.REFUSED]), "ID_TOO_OLD")
    assert world.client.ask(enqueue_of(b"x", ids=world.new_id(age_ms=20_000))).outcomes == bytes([m.CREATED])


def test_a_key_makes_one_task_of_many_enqueues(world: World) -> None:
    [task_id] = world.enqueue(b"x", keys="order-7")
    told = world.client.ask(enqueue_of(b"x", keys="order-7"))
    assert (told.outcomes, told.ids) == (bytes([m.EXISTS]), task_id)
    assert world.client.ask(enqueue_of(b"x", keys="order-7", queue="other")).outcomes == bytes([m.CREATED])


def test_a_key_with_other_content_is_a_conflict(world: World) -> None:
    world.enqueue(b"x", keys="order-7")
    told = world.client.ask(enqueue_of(b"y", keys="order-7"))
    assert (told.outcomes, told.errors[0][1], told.errors[0][3]) == (bytes([m.REFUSED]), "KEY_CONFLICT", "key")


def test_the_key_of_a_task_that_left_memory_is_still_taken(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [task_id] = world.enqueue(b"x", keys="order-7")
    worker.ack(*worker.jobs)
    world.flushed()
    assert world.shard.keys == {}
    told = world.client.ask(enqueue_of(b"x", keys="order-7"))
    assert (told.outcomes, told.ids, told.states) == (bytes([m.EXISTS]), task_id, bytes([COMPLETED]))


def test_twins_in_one_frame_are_one_task(world: World) -> None:
    task_id = world.new_id()
    told = world.client.ask(enqueue_of(b"x", b"x", b"k", b"k", ids=task_id * 2 + NIL * 2, keys=[None, None, "k", "k"]))
    assert told.outcomes == bytes([m.CREATED, m.EXISTS, m.CREATED, m.EXISTS])
    ids = split(told.ids, 16)
    assert ids[0] == ids[1] == task_id
    assert ids[2] == ids[3]
    assert len(world.shard.tasks) == 2


def test_twins_in_one_frame_with_other_content_conflict(world: World) -> None:
    task_id = world.new_id()
    told = world.client.ask(enqueue_of(b"x", b"y", b"k", b"l", ids=task_id * 2 + NIL * 2, keys=[None, None, "k", "k"]))
    assert told.outcomes == bytes([m.CREATED, m.REFUSED, m.CREATED, m.REFUSED])
    assert [error[1] for error in told.errors] == ["ID_CONFLICT", "KEY_CONFLICT"]


def test_a_twin_tells_the_state_of_the_task_that_was_made(world: World) -> None:
    told = world.client.ask(enqueue_of(b"x", b"x", ids=world.new_id() * 2, delays_ms=[5_000, 0]))
    assert (told.outcomes, told.states) == (bytes([m.CREATED, m.EXISTS]), bytes([SCHEDULED] * 2))


def test_a_cancelled_task_exists_and_is_not_run(world: World) -> None:
    task_id = world.new_id()
    world.enqueue(b"x", ids=task_id)
    world.client.ask(m.Cancel(task_id))
    assert world.client.ask(enqueue_of(b"x", ids=task_id)).states == bytes([CANCELLED])


def test_seqs_rise_over_frames_and_queues() -> None:
    world = World(shards=4)
    seqs = [world.task(task_id).seq for queue in ("a", "b", "c", "d") for task_id in world.enqueue(b"1", b"2", queue=queue)]
    assert seqs == sorted(set(seqs))


def test_a_task_that_leaves_memory_while_its_frame_is_parked_for_another_is_not_made_twice(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    [done] = world.enqueue(b"x", ids=world.new_id())
    worker.ack(*worker.jobs)
    world.hold_loads = True
    seq = world.client.say(enqueue_of(b"x", b"x", ids=done + world.new_id()), resent=True)
    world.run()
    world.flushed()
    assert not world.in_memory(done)
    world.hold_loads = False
    world.run()
    assert world.client.answers[seq].outcomes == bytes([m.EXISTS, m.CREATED])


def test_a_key_that_leaves_memory_while_its_frame_is_parked_for_another_is_still_taken(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x", keys="old")
    worker.ack(*worker.jobs)
    world.hold_loads = True
    seq = world.client.say(enqueue_of(b"x", b"x", keys=["old", "new"]))
    world.run()
    world.flushed()
    world.hold_loads = False
    world.run()
    assert world.client.answers[seq].outcomes == bytes([m.EXISTS, m.CREATED])
