"""Admission: who refuses, who takes it back, and that finishing work is never refused."""

from __future__ import annotations

from small_world import Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core.admission import Admission
from taskq.errors import Draining, Overloaded


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
