"""When a failed task runs again: exponential backoff with full jitter, uniform in [0, min(cap, base · factor^(n-1))] for the n-th failure.

Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

from __future__ import annotations

import random

EXPONENT_MAX = 64


def backoff_ms(policy: tuple[int, float, int], failures: int, rng: random.Random) -> int:
    """The delay after this many failures (≥ 1), in ms; `policy` is (base_ms, factor, cap_ms)."""
    return round(rng.uniform(0.0, ceiling_ms(policy, failures)))


def ceiling_ms(policy: tuple[int, float, int], failures: int) -> float:
    """The longest that the delay can be."""
    base_ms, factor, cap_ms = policy
    return min(float(cap_ms), base_ms * factor ** min(failures - 1, EXPONENT_MAX))
