"""The leases campaign with a short lease: all scenarios at once, since they mostly wait."""

from __future__ import annotations

from collections import Counter

import pytest

from campaigns import leases
from campaigns.leases_house import SMALL

pytestmark = [pytest.mark.xdist_group("leases"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def found() -> dict[str, Counter[str] | BaseException]:
    return leases.play_all(list(leases.SCENARIOS), SMALL)


@pytest.mark.parametrize("name", leases.SCENARIOS)
def test_leases_depend_on_the_life_of_the_worker(name: str, found: dict[str, Counter[str] | BaseException]) -> None:
    counts = found[name]
    if isinstance(counts, BaseException):
        raise counts
    assert counts["runs"] > 0 and counts["doubled"] == counts["lost"] == 0
