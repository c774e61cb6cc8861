"""Blocked loops and nothing else: no worker stands afterwards, and the checker sees it where workers do as they did before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sim import clients, world
from sim.history import Violation
from sim.misfortunes import MISFORTUNES
from sim.world import simulate

from taskq.core import messages as m
from taskq.core import standing
from taskq.protocol.link import Link

SEEDS = 8

pytestmark = pytest.mark.timeout(300)


class Single(clients.Worker):
    """Runs one task at a time and has a keeper, so that one lost lease is all that it has."""

    def __init__(self, scene: clients.Scene, name: str, *, keeper: bool) -> None:
        super().__init__(scene, name, keeper=True)
        self.concurrency = 1
        self.tells_room = True
        self.channel.link._room = self.room()


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Half of what happens is a blocked loop, the other half frames that are lost or come twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "MISFORTUNES", {name: (1, MISFORTUNES[name][1]) for name in ("worker blocked", "frames spoilt")})
        patch.setattr(world, "PLAY_S", (60.0, 90.0))
        patch.setattr(world, "Worker", Single)
        yield patch


def test_no_worker_stands_after_its_loop_was_blocked(patch: pytest.MonkeyPatch) -> None:
    for seed in range(SEEDS):
        simulate(seed)


def test_a_worker_whose_lost_leases_give_no_credit_back_is_found(patch: pytest.MonkeyPatch) -> None:
    """As it was: what a worker allows is told after reports alone, and nobody looks who stands."""
    patch.setattr(Link, "heartbeat", lambda self: m.Heartbeat(self.received, b"".join(self.held)))
    patch.setattr(standing, "look", lambda consumer, waiting: None)
    with pytest.raises(Violation, match="stands: it has room for 1, the broker knows of 0"):
        for seed in range(SEEDS):
            simulate(seed)
