"""Ids that the store alone may know: none is ever missed, and what is new costs nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core import recent as module
from taskq.core.idtime import FRESH_MS
from taskq.core.recent import Recent
from taskq.ids import make_id

NOW_MS = 1_700_000_000_000


def ids_of(*times_ms: int) -> list[bytes]:
    rng = random.Random(len(times_ms))
    return [make_id(ms, 7, rng) for ms in times_ms]


def test_what_left_memory_is_doubtful_and_what_did_not_is_new() -> None:
    recent = Recent()
    gone, new = ids_of(NOW_MS, NOW_MS)
    recent.add([gone], NOW_MS)
    assert list(recent.doubtful([gone, new], NOW_MS)) == [gone]
    assert not recent.doubtful([new], NOW_MS)


@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(-FRESH_MS, 4 * FRESH_MS), st.integers(1, 5)), max_size=40))
def test_no_id_is_ever_missed(steps: list[tuple[int, int, int]]) -> None:
    """However many there are, whatever time they carry and however long ago they left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IDS_MAX", 8)
        patch.setattr(module, "AHEAD_MAX", 1)
        recent, now_ms, rng = Recent(), NOW_MS, random.Random(1)
        gone: list[bytes] = []
        for passed_ms, skew_ms, number in steps:
            now_ms += passed_ms
            leaving = [make_id(now_ms + skew_ms, 7, rng) for _ in range(number)]
            recent.add(leaving, now_ms)
            gone += leaving
            assert set(recent.doubtful(gone, now_ms)) == set(gone)


def test_the_memory_for_them_is_bounded_and_what_is_made_later_is_new_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDS_MAX", 100)
    recent = Recent()
    for ms in range(NOW_MS, NOW_MS + 1_000):
        recent.add(ids_of(ms), ms)
    assert len(recent._young.ids) + len(recent._old.ids) <= 100
    assert not recent.doubtful(ids_of(NOW_MS + 1_000), NOW_MS + 1_000)


def test_an_id_that_is_far_ahead_makes_no_other_doubtful_and_is_not_missed_when_its_time_has_come() -> None:
    recent, day_ms = Recent(), 86_400_000
    [far] = ids_of(NOW_MS + day_ms)
    recent.add([far], NOW_MS)
    for now_ms in range(NOW_MS, NOW_MS + 20 * FRESH_MS, FRESH_MS // 2):
        recent.add(ids_of(now_ms), now_ms)
        assert not recent.doubtful(ids_of(now_ms + 1), now_ms + 1)
    assert set(recent.doubtful([far], NOW_MS + day_ms)) == {far}
