"""Slices: the time of the loop is shared by what each connection took of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from taskq.actors.slices import SLICE_S, TURN_S, Slices


class Loop:
    """Slices of a loop, one at a time."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], Any]] = []

    def call_soon(self, call: Callable[[], Any]) -> None:
        self.soon.append(call)

    def turn(self) -> None:
        calls, self.soon = self.soon, []
        for call in calls:
            call()


class World:
    def __init__(self) -> None:
        self.loop = Loop()
        self.now_s = 0.0
        self.slices = Slices(self.loop, lambda: self.now_s)  # type: ignore[arg-type]
        self.done: list[str] = []


class Connection:
    """One that sent `frames`, each of which takes `frame_s`."""

    def __init__(self, world: World, name: str, frames: int, frame_s: float) -> None:
        self.world, self.name, self.frames, self.frame_s = world, name, frames, frame_s
        self.mark = 0.0
        self.waits = False

    def work(self, until_s: float) -> bool:
        while self.frames:
            self.frames -= 1
            self.world.now_s += self.frame_s
            self.world.done.append(self.name)
            if self.world.now_s >= until_s:
                break
        return self.frames > 0


@pytest.fixture
def world() -> World:
    return World()


def test_where_nobody_waits_a_frame_is_handled_when_it_comes(world: World) -> None:
    world.slices.ask(Connection(world, "one", 3, SLICE_S / 10))
    assert world.done == ["one"] * 3


def test_a_turn_of_the_loop_ends_when_its_time_is_spent(world: World) -> None:
    for n in range(100):
        world.slices.ask(Connection(world, str(n), 1, SLICE_S))
    assert len(world.done) * SLICE_S == pytest.approx(TURN_S, abs=2 * SLICE_S)
    began_s = world.now_s
    world.loop.turn()
    assert world.now_s - began_s == pytest.approx(TURN_S, abs=2 * SLICE_S)
    while world.loop.soon:
        world.loop.turn()
    assert sorted(world.done, key=int) == [str(n) for n in range(100)]


@pytest.mark.parametrize("floods", [1, 20, 500])
def test_who_asks_for_little_waits_for_one_frame_of_those_who_ask_for_much(world: World, floods: int) -> None:
    for n in range(floods):
        world.slices.ask(Connection(world, f"flood {n}", 1 << 30, 0.7 * SLICE_S + n * 1e-7))
    for _ in range(2 * floods):
        world.loop.turn()
    for _ in range(10):
        small = Connection(world, "small", 1, SLICE_S / 100)
        world.slices.ask(small)
        world.loop.turn()
        assert not small.frames
        world.loop.turn()


def test_dear_frames_are_paid_for_by_who_sent_them(world: World) -> None:
    spent: Counter[str] = Counter()
    dear, cheap = Connection(world, "dear", 1 << 30, 5 * SLICE_S), Connection(world, "cheap", 1 << 30, SLICE_S / 20)
    world.slices.ask(dear)
    world.slices.ask(cheap)
    for _ in range(200):
        world.loop.turn()
    for connection in (dear, cheap):
        spent[connection.name] = world.done.count(connection.name)
    assert spent["dear"] * dear.frame_s == pytest.approx(spent["cheap"] * cheap.frame_s, rel=0.1)


def test_who_waits_asks_in_vain_for_a_second_place(world: World) -> None:
    for _ in range(3):
        world.slices.ask(Connection(world, "flood", 1 << 30, TURN_S))
    one = Connection(world, "one", 5, SLICE_S)
    for _ in range(5):
        world.slices.ask(one)
    assert one.waits
    for _ in range(50):
        world.loop.turn()
    assert world.done.count("one") == 5
