"""Backoff: full jitter under an exponential ceiling with a cap."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from taskq.core.messages import HORIZON_MS
from taskq.core.retry import backoff_ms


class Highest(random.Random):
    """A generator that always draws the highest number."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_ceiling_doubles_from_the_base_up_to_the_cap() -> None:
    ceilings = [backoff_ms((2_000, 2.0, 30_000), failures, Highest()) for failures in range(1, 8)]
    assert ceilings == [2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]


def test_jitter_spreads_over_the_whole_range() -> None:
    rng = random.Random(1)
    delays = [backoff_ms((1_000, 2.0, 60_000), 1, rng) for _ in range(1_000)]
    assert min(delays) < 50
    assert max(delays) > 950
    assert 450 < sum(delays) / len(delays) < 550


@given(st.integers(0, HORIZON_MS), st.floats(1, 100), st.integers(0, HORIZON_MS), st.integers(1, 1_000_000), st.integers(0, 9))
def test_a_delay_is_never_negative_and_never_over_the_cap(base_ms: int, factor: float, more_ms: int, failures: int, seed: int) -> None:
    cap_ms = min(base_ms + more_ms, HORIZON_MS)
    assert 0 <= backoff_ms((base_ms, factor, cap_ms), failures, random.Random(seed)) <= cap_ms
