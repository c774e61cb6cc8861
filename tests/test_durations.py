"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.durations import milliseconds, seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), (0.25, 0.25), (0, 0), ("30", 30), ("30s", 30), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), (" 2 M ", 120), ("1w1d", 691200)],
)
def test_the_forms_of_a_duration(value: Any, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected)


def test_a_timedelta_is_a_duration() -> None:
    assert seconds(timedelta(minutes=1, milliseconds=5)) == pytest.approx(60.005)


@pytest.mark.parametrize("value", ["", "soon", "5 parsecs", "1h 30", "-5s", "1e3", -1, float("nan"), float("inf"), timedelta(seconds=-1), 1e12])
def test_what_is_no_duration_is_refused_with_the_name_of_the_option(value: Any) -> None:
    with pytest.raises(ValueError, match="timeout"):
        seconds(value, "timeout")


@pytest.mark.parametrize("value", [None, True, [1], b"5s"])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="delay: expected seconds"):
        seconds(value, "delay")


def test_a_very_short_time_does_not_become_none() -> None:
    assert (milliseconds(0.0001), milliseconds(0), milliseconds("1.5s")) == (1, 0, 1500)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 999))
def test_parts_add_up(hours: int, minutes: int, whole: int, thousandths: int) -> None:
    assert milliseconds(f"{hours}h{minutes}m{whole}s{thousandths}ms") == ((hours * 60 + minutes) * 60 + whole) * 1000 + thousandths
