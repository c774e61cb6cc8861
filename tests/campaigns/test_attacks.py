"""The attacks that end or fill a broker, for some seconds each: it lives, within its memory, and starts again under the same limit."""

from __future__ import annotations

import pytest

from campaigns.attacks import run

SECONDS = 4.0


@pytest.mark.parametrize(("name", "rss_mib"), [("one error text for thousands", 400), ("payloads of 1 MiB", 700)])
def test_an_attack_leaves_a_broker_that_works_and_starts_again(name: str, rss_mib: int) -> None:
    outcome = run(name, SECONDS)
    assert outcome.alive and outcome.waits_ms
    assert outcome.rss_mib < rss_mib
