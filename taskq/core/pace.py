"""Pace: new tasks come into a busy queue no faster than its workers finish them.

A task that is finished before the store has heard of it costs the store one row; one that waits meanwhile costs three, and their time is taken from
the very workers that it waits for.  So where the workers of a queue finish RATE_MIN tasks a second and more, which makes the broker itself the
limit, and AHEAD_S of their work waits, new tasks are let in at the rate at which tasks are finished, and producers wait that long for the answer.
Where tasks take longer, or nobody works on the queue, nothing is ever held back.

It must not know: commands, clocks.
"""

from __future__ import annotations

import attrs

RATE_MIN = 5_000.0
AHEAD_S = 0.1
WAITING_MIN = int(RATE_MIN * AHEAD_S)
# the rate is measured over this time, and smoothed
LOOK_MS = 100
WEIGHT = 0.4
# what was not let in while nothing came is let in later, up to this much of the rate
BURST_S = 0.02


@attrs.define(eq=False)
class Pace:
    """The pace of one queue.  `finished`: how many tasks were, when the rate was last looked at; `room`: how many may come in now."""

    finished: int
    looked_ms: int
    filled_ms: int
    rate: float = 0.0
    room: float = 0.0

    def holds(self, waiting: int, finished: int, now_ms: int) -> bool:
        """Whether a queue in which so many tasks wait, and were finished so far, takes no new ones for the moment."""
        gap_ms = now_ms - self.looked_ms
        if gap_ms >= LOOK_MS:
            measured = (finished - self.finished) * 1000 / gap_ms
            self.rate += min(1.0, WEIGHT * gap_ms / LOOK_MS) * (measured - self.rate)
            self.finished, self.looked_ms = finished, now_ms
        self.room = min(self.room + self.rate * (now_ms - self.filled_ms) / 1000, self.rate * BURST_S)
        self.filled_ms = now_ms
        return self.rate >= RATE_MIN and self.room <= 0 and waiting > self.rate * AHEAD_S

    def let_in(self, tasks: int) -> None:
        self.room -= tasks
