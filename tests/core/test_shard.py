"""The turn of a shard: what a bug costs, what a turn asks the world to do, and that replay gives the same state."""

from __future__ import annotations

from typing import Any

import pytest
from small_world import Worker, World, enqueue_of

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.book import Book
from taskq.core.shard import DECIDE, EVOLVE, Shard
from taskq.core.task import InvariantError
from taskq.storage.rows import row_of


def test_each_kind_of_record_has_its_evolve() -> None:
    assert set(EVOLVE) == set(r.KINDS.values())


def test_a_bug_in_a_decision_costs_the_connection_that_asked_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(book: Book, command: fx.Command, now_ms: int, known: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(DECIDE, m.Cancel, broken)
    bad, good = world.command(m.Cancel(bytes(16)), 7, 1), world.command(enqueue_of(b"x"), 8, 2)
    effects = world.turn(0, [bad, good])
    assert [(command.origin, type(bug)) for command, bug in effects.bugs] == [(7, ZeroDivisionError)]
    assert [reply.origin for reply in effects.replies] == [8]
    world.bugs.clear()


def test_a_bug_in_a_decision_that_nobody_asked_for_stops_the_shard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(book: Book, command: fx.Command, now_ms: int, known: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setitem(DECIDE, fx.Tick, broken)
    with pytest.raises(ZeroDivisionError):
        world.tick()


def test_a_fact_that_cannot_be_stops_the_shard(world: World) -> None:
    [task_id] = world.enqueue(b"x")
    with pytest.raises(InvariantError):
        world.shard.replay(r.Completed([b""], 0, world.now_ms, task_id, [0]))


def test_an_idle_shard_asks_for_nothing(world: World) -> None:
    effects = world.turn(0, [])
    assert effects == fx.Effects()


def test_what_nobody_asked_is_not_answered(world: World) -> None:
    effects = world.turn(0, [fx.Command(0, 0, enqueue_of(b"x"))])
    assert len(effects.records) == 1
    assert effects.replies == []


def test_effects_print_themselves(world: World) -> None:
    effects = world.turn(0, [world.command(m.Get(bytes(16)), 7, 3)])
    assert repr(effects.loads[0]).startswith("FindLoad(ids=(b'\\x00")


def test_a_task_is_written_once_however_often_it_changed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    worker.ack(*worker.jobs)
    assert len(world.shard.take_dirty()) == 1
    assert world.shard.take_dirty() == []


def test_replay_of_the_records_gives_the_same_tasks(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=100)
    world.enqueue(b"done", b"failed", b"retried", b"snoozed", b"handed back", b"running", b"asked to stop", keys=["k", *[None] * 6])
    world.enqueue(b"later", b"dropped", delays_ms=5_000)
    done, failed, retried, snoozed, back, _, stopped = worker.jobs
    worker.beat()
    worker.ack(done, result=b"result")
    worker.fail(failed, how=m.DISCARD)
    worker.fail(retried, error="try again")
    worker.release(snoozed, delay_ms=3_000)
    worker.release(back)
    world.client.ask(m.Cancel(stopped.id))
    world.client.ask(m.Cancel(list(world.shard.tasks)[-1]))
    world.tick(5_000)
    again = Shard(0, 1, World().shared)
    for record in world.records:
        again.replay(record)
    assert {each.id: row_of(each) for each in again.tasks.values()} == {each.id: row_of(each) for each in world.shard.tasks.values()}
    assert again.keys.keys() == world.shard.keys.keys()
    again.check()
