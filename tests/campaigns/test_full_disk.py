"""The campaign of the full disk, one cycle of each kind on a smaller disk."""

from __future__ import annotations

import os

import pytest
from campaigns.full_disk import cycle

DISK_MIB, PATIENCE_S = 24, 1.2


@pytest.mark.parametrize("seed", [1, 2], ids=["slowly", "at once"])
def test_a_disk_that_fills_up_costs_nothing_that_was_acknowledged(seed: int) -> None:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can mount a disk; run the tests as root to see this one")
    outcome = cycle(seed, disk_mib=DISK_MIB, patience_s=PATIENCE_S)
    assert outcome.wrong == []
    assert outcome.lost == 0 and outcome.acknowledged and outcome.completed
