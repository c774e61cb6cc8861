"""Sixty kills, and a look at whether the campaign would see what it looks for.  At its full size: `make kills`."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns.failing_broker import POINTS, Step
from campaigns.kills_world import WINDOW_MS, World

KILLS = 10


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", WINDOW_MS)
def test_a_kill_costs_nothing_that_the_mode_promises(mode: str, seed: int, tmp_path: Path) -> None:
    outcome = World(mode, seed, tmp_path).live(KILLS)
    verdict = outcome.verdict
    assert not outcome.problems, outcome
    assert outcome.kills >= KILLS
    assert verdict.acknowledged > KILLS
    assert verdict.unexpected == verdict.stale == 0
    assert verdict.lost == 0 or mode == "memory"


def test_a_broker_that_acknowledges_what_it_never_wrote_is_found_out(tmp_path: Path) -> None:
    outcome = World("fsync", 1, tmp_path, plant="forget-enqueues").live(KILLS // 2)
    assert outcome.verdict.lost > 0
    assert any("was acknowledged and is not there" in problem for problem in outcome.problems)


@pytest.mark.parametrize("step", POINTS.values(), ids=POINTS)
def test_every_named_step_is_a_step_of_the_broker(step: Step) -> None:
    assert callable(step.function)
