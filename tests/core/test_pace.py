"""Pace: a queue whose workers are as fast as the broker takes new tasks as fast as they are finished, and no other queue waits for anybody."""

from __future__ import annotations

from small_world import World, enqueue_of

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.pace import AHEAD_S, LOOK_MS, RATE_MIN, Pace
from taskq.core.task import COMPLETED

MANY = 1_000_000


class Flow:
    """A queue in which so many tasks wait and are finished at this rate, looked at each `step_ms`."""

    def __init__(self, per_s: float, waiting: int = MANY, step_ms: int = 5) -> None:
        self.pace = Pace(0, 0, 0)
        self.per_s, self.waiting, self.step_ms = per_s, waiting, step_ms
        self.now_ms = 0
        self.finished = 0.0

    def let_in(self, seconds: float, frame: int = 1_000) -> int:
        """How many tasks come in, if there are always more."""
        taken = 0
        for _ in range(round(seconds * 1000 / self.step_ms)):
            self.now_ms += self.step_ms
            self.finished += self.per_s * self.step_ms / 1000
            if not self.pace.holds(self.waiting, int(self.finished), self.now_ms):
                self.pace.let_in(frame)
                taken += frame
        return taken


def test_a_busy_queue_takes_as_many_as_are_finished() -> None:
    flow = Flow(50_000)
    flow.let_in(1.0)
    assert 0.9 * 50_000 < flow.let_in(1.0) < 1.1 * 50_000


def test_single_tasks_are_let_in_like_frames_of_them() -> None:
    flow = Flow(6_000, step_ms=1)
    flow.let_in(1.0, frame=1)
    assert flow.let_in(0.2, frame=1) >= 0.95 * 200


def test_nothing_is_held_while_few_wait() -> None:
    flow = Flow(50_000, waiting=int(50_000 * AHEAD_S) - 500)
    flow.let_in(1.0)
    assert flow.let_in(0.1) == 20 * 1_000


def test_nothing_is_held_where_tasks_take_longer() -> None:
    flow = Flow(0.8 * RATE_MIN)
    assert flow.let_in(1.0) == 200 * 1_000


def test_nothing_is_held_once_the_workers_are_gone() -> None:
    flow = Flow(50_000)
    flow.let_in(1.0)
    flow.per_s = 0
    flow.let_in(1.0)
    assert flow.let_in(0.1) == 20 * 1_000


def test_what_was_not_asked_for_in_a_pause_does_not_come_at_once() -> None:
    flow = Flow(50_000)
    flow.let_in(1.0)
    flow.now_ms += 10_000
    flow.finished += 500_000
    assert flow.let_in(0.05) <= 5_000


# ---- in a shard


def command(world: World, queue: str = "email", origin: int = 1) -> fx.Command:
    return fx.Command(origin, 1, enqueue_of(b"x", queue=queue))


def test_a_queue_with_few_tasks_has_no_pace(world: World) -> None:
    world.enqueue(b"x")
    assert not world.shard.holds(command(world), world.now_ms)
    assert world.shard.queue("email").pace is None


def test_only_new_tasks_of_a_client_for_that_queue_are_held(world: World) -> None:
    world.enqueue(*[b"x"] * 1_000)
    queue = world.shard.queue("email")
    world.shard.holds(command(world), world.now_ms)
    queue.counts[COMPLETED] += 1_000_000  # as if so many had been finished meanwhile
    later_ms = world.now_ms + LOOK_MS
    world.shard.holds(command(world), later_ms)
    assert queue.pace is not None
    queue.pace.let_in(MANY)
    queue.pace.rate = RATE_MIN
    assert world.shard.holds(command(world), later_ms)
    assert not world.shard.holds(command(world, "other"), later_ms)
    assert not world.shard.holds(command(world, origin=0), later_ms)
    assert not world.shard.holds(fx.Command(1, 1, m.Get(bytes(16))), later_ms)
    queue.counts[COMPLETED] -= 1_000_000
