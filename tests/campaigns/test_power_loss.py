"""A power loss under load loses nothing that was acknowledged; and the check would see it if it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaigns import power_loss

IMAGES = 96
pytestmark = pytest.mark.xdist_group("power loss")  # they share a recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> power_loss.Recording:
    return power_loss.record(tmp_path_factory.mktemp("storm"), 1, "fsync", ("1.2KILL", "1.2TERM", "1KILL"))


def test_a_power_loss_loses_nothing_that_was_acknowledged(recording: power_loss.Recording) -> None:
    outcome = power_loss.examine(recording, 1, "fsync", IMAGES)
    assert (outcome.lost, outcome.refused, outcome.wrong) == (0, 0, 0), outcome.words
    assert outcome.images == IMAGES
    assert outcome.tasks > IMAGES


def test_a_disk_whose_syncs_do_nothing_is_found_out(recording: power_loss.Recording) -> None:
    outcome = power_loss.examine(recording, 2, "fsync", 16, syncs=False)
    assert outcome.lost


def test_a_power_loss_in_mode_os_loses_the_last_second_at_most(tmp_path: Path) -> None:
    recording = power_loss.record(tmp_path, 3, "os", ("2.5KILL",))
    outcome = power_loss.examine(recording, 3, "os", IMAGES // 2)
    assert outcome.lost
    assert (outcome.late, outcome.refused, outcome.wrong) == (0, 0, 0), outcome.words
