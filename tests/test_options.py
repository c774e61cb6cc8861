"""What the broker would refuse is refused at the call, with the option's name."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.core.enqueue import COLUMNS
from taskq.options import DEFAULTS, EnqueueOptions


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("key", "k" * 256, "k" * 257),
        ("key", "k", ""),
        ("max_attempts", 1_000, 1_001),
        ("max_attempts", 1, 0),
        ("retry", (1, 100, "1h"), (1, 101, "1h")),
        ("priority", 9, 10),
        ("delay", "365d", -1),
        ("queue", "a" * 128, "a" * 129),
    ],
)
def test_the_limits_of_an_option_are_those_of_the_broker(name: str, good: Any, bad: Any) -> None:
    DEFAULTS.but(EnqueueOptions(**{name: good}))  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match=name if name != "retry" else "backoff_factor"):
        DEFAULTS.but(EnqueueOptions(**{name: bad}))  # type: ignore[typeddict-item]


@pytest.mark.parametrize(("column", "good", "bad"), [("keys", "k" * 256, "k" * 257), ("max_attempts", 1_000, 1_001), ("priorities", 9, 10)])
def test_the_broker_draws_the_line_at_the_same_place(column: str, good: Any, bad: Any) -> None:
    is_good, _ = COLUMNS[column]
    assert is_good(good)
    assert not is_good(bad)
