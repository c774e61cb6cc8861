"""Workers that were silent for too long and then report all at once: nobody believes them."""

from __future__ import annotations

from campaigns.stale_reports import storm

WORKERS, TASKS = 12, 30


async def test_a_storm_of_stale_reports_changes_nothing_and_each_is_told_so() -> None:
    found = await storm(WORKERS, TASKS)
    assert found.stale_accepted == 0
    assert found.told == {"ok": 0, "LEASE_LOST": WORKERS * TASKS}
    assert found.ended == {"completed heir": WORKERS * TASKS}
