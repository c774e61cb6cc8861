"""Two rounds of the chaos campaign, and the two that it began with.  At its full size: `make chaos`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from campaigns.chaos_world import BURST_TASKS, BURSTS, CONCURRENCY, LEASE_S, WORKERS, World
from taskq import Client
from taskq.worker.stall import STALL_S

pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(240)]

OTHERS = 40


def test_every_task_ends_and_every_worker_goes_on_once_all_misfortunes_are_over(tmp_path: Path) -> None:
    outcome = World(2, tmp_path).live(2)
    assert not outcome.problems, outcome
    assert outcome.acknowledged >= 2 * BURSTS * BURST_TASKS
    assert outcome.stuck == outcome.lost == outcome.doubled == outcome.named == 0


def fill(world: World, client: Client, *tasks: tuple[str, float]) -> list[str]:
    """These take slots, and then others wait."""
    ids = [task_id for name, seconds in tasks for task_id in world._send(client, name, seconds, "load")]
    while sum(row["running"] for row in client.workers()) < len(ids):
        time.sleep(0.02)
    return ids + [task_id for _ in range(OTHERS) for task_id in world._send(client, "nap", 0.0, "load")]


def black_holes(world: World, client: Client) -> list[str]:
    """Nothing gets through for longer than a lease, while all slots are in use."""
    ids = fill(world, client, *[("nap", 3 * LEASE_S), ("sit", 3 * LEASE_S)] * (CONCURRENCY * WORKERS // 2))
    for proxy in world.proxies:
        proxy.hole(2 * LEASE_S)
    return ids


def blocked_loops(world: World, client: Client) -> list[str]:
    """Each worker is blocked for longer than a lease, and what it reads afterwards is lost."""
    return fill(world, client, *[("block", STALL_S + LEASE_S)] * WORKERS)


@pytest.mark.parametrize("misfortune", [black_holes, blocked_loops])
def test_workers_go_on_after_it(misfortune: Callable[[World, Client], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(world: World, client: Client) -> None:
        world.outcome.rounds += 1
        world._rest(client, misfortune(world, client))

    monkeypatch.setattr(World, "_round", play)
    outcome = World(1, tmp_path).live(1)
    assert not outcome.problems, outcome
    assert outcome.completed == outcome.acknowledged > OTHERS and outcome.named == 0
