"""Two rounds of the chaos campaign, and the two that it began with.  At its full size: `make chaos`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from campaigns.chaos_world import BURST_TASKS, BURSTS, LEASE_S, World
from taskq import Client

pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(240)]

OTHERS = 40


def test_every_task_ends_and_every_worker_goes_on_once_all_misfortunes_are_over(tmp_path: Path) -> None:
    outcome = World(2, tmp_path).live(2)
    assert not outcome.problems, outcome
    assert outcome.acknowledged >= 2 * BURSTS * BURST_TASKS
    assert outcome.stuck == outcome.lost == outcome.doubled == outcome.named == 0


def black_holes(world: World, client: Client, task: str) -> list[str]:
    """Nothing gets through for longer than a lease, while all slots are in use."""
    ids = world.fill(client, task)
    for proxy in world.proxies:
        proxy.hole(2 * LEASE_S)
    return ids


def blocked_loops(world: World, client: Client, task: str) -> list[str]:
    """Each worker is blocked for longer than a lease, and what it reads afterwards is lost."""
    return world.fill(client, task)


@pytest.mark.parametrize(("misfortune", "task"), [(black_holes, "nap"), (black_holes, "sit"), (blocked_loops, "block")])
def test_workers_go_on_after_it(
    misfortune: Callable[[World, Client, str], list[str]], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(world: World, client: Client) -> None:
        world.outcome.rounds += 1
        ids = misfortune(world, client, task)
        world._rest(client, ids + [task_id for _ in range(OTHERS) for task_id in world._send(client, "nap", 0.0, "load")])

    monkeypatch.setattr(World, "_round", play)
    outcome = World(1, tmp_path).live(1)
    assert not outcome.problems, outcome
    assert outcome.completed == outcome.acknowledged > OTHERS and outcome.named == 0
