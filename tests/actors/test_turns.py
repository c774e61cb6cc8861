"""How a turn of the loop is shared among HTTP connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq.actors.turns import TURN_REQUESTS, TURN_S, Turns

SHARE = 16


class Loop:
    """Keeps what is to be called in the next turn, and the time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def time(self) -> float:
        return self.now_s

    def turn(self) -> None:
        soon, self._soon = self._soon, []
        for callback in soon:
            callback()

    @property
    def rests(self) -> bool:
        return not self._soon


class World:
    def __init__(self, cost_s: float = 0.0) -> None:
        self.loop = Loop()
        self.cost_s = cost_s
        loop: Any = self.loop
        self.turns = Turns(loop, SHARE, self.loop.time)
        self.done: list[str] = []

    def turn(self) -> list[str]:
        """Who was served in the next turn, once for each request."""
        self.done.clear()
        self.loop.turn()
        return list(self.done)


class Peer:
    """A connection with so many requests, which takes them as the one over HTTP does."""

    def __init__(self, world: World, name: str, requests: int) -> None:
        self.world = world
        self.name = name
        self.requests = requests
        self._served = False

    def arrive(self) -> Peer:
        self.go_on(self.world.turns.allowance())
        return self

    def go_on(self, most: int) -> None:
        world = self.world
        while self.requests and most > 0:
            self._served = True
            self.requests -= 1
            most -= 1
            world.done.append(self.name)
            world.loop.now_s += world.cost_s
            world.turns.spend(1)
            if not world.turns.lasts():
                break
        if self.requests:
            world.turns.wait(self, not self._served)


def test_who_comes_while_nobody_waits_is_served_at_once() -> None:
    world = World()
    for name in "abc":
        Peer(world, name, 1).arrive()
    assert world.done == ["a", "b", "c"]
    assert (world.turn(), world.loop.rests) == ([], True)


def test_a_turn_has_an_end_however_many_connections_there_are() -> None:
    world = World()
    peers = [Peer(world, f"{number}", 400).arrive() for number in range(1_000)]
    served = len(world.done)
    while any(peer.requests for peer in peers):
        assert served <= TURN_REQUESTS + 1
        served = len(world.turn())
        assert served


def test_a_turn_ends_with_its_time_where_requests_are_dear() -> None:
    world = World(cost_s=TURN_S)
    for name in "abc":
        Peer(world, name, 2).arrive()
    assert world.done == ["a"]
    assert world.turn() == ["b", "a"]
    assert world.turn() == ["c", "b"]
    assert (world.turn(), world.turn(), world.loop.rests) == (["c"], [], True)


def test_who_asks_one_thing_waits_for_one_thing_of_each_of_the_others() -> None:
    world = World()
    peers = [Peer(world, "flood", 400).arrive() for _ in range(200)]
    one = Peer(world, "one", 1).arrive()
    ahead = 0
    while one.requests:
        ahead += len(world.turn())
    assert ahead <= len(peers) * 1.5
    assert Peer(world, "next", 1).arrive().requests and "next" in world.turn()[:2]


def test_those_who_ask_much_go_on_in_turn_and_none_waits_for_ever() -> None:
    world = World()
    for name in ("a", "b"):
        Peer(world, name, 1_000).arrive()
    for _ in range(20):
        crowd = [Peer(world, "crowd", 1).arrive() for _ in range(2 * TURN_REQUESTS)]
        served = world.turn()
        assert served.count("a") + served.count("b") >= 1
    assert crowd[-1].requests


def test_a_connection_that_is_gone_is_not_asked() -> None:
    world = World()
    Peer(world, "flood", 400).arrive()
    gone = Peer(world, "gone", 1).arrive()
    world.turns.leave(gone)
    for _ in range(20):
        assert "gone" not in world.turn()
