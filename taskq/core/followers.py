"""Followers: the worker sessions that wait for the tasks of one queue, in the order in which it is their turn.

A session enters with `Ready` (it subscribed, has new credit, is heard again, reads again) and leaves when it is found to take nothing, so a turn
costs what it grants and not what waits: thousands may wait for one queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs

from taskq.core.consumer import Consumer

CLEAN_MIN = 8


@attrs.define(eq=False)
class Followers:
    """`places`: how many of them have the queue at this place of their preference.  Who is gone is still there until somebody looks, and somebody
    looks at all when they have doubled."""

    queue: str
    waiting: dict[bytes, tuple[Consumer, int]] = attrs.field(factory=dict)
    places: Counter[int] = attrs.field(factory=Counter)
    clean_at: int = CLEAN_MIN

    def enter(self, consumer: Consumer) -> None:
        """It waits; at the end, if it did not already."""
        place = consumer.queues.index(self.queue)
        known = self.waiting.get(consumer.session)
        if known is not None:
            self._uncount(known[1])
        elif len(self.waiting) >= self.clean_at:
            self._clean()
        self.waiting[consumer.session] = consumer, place
        self.places[place] += 1

    def leave(self, consumer: Consumer) -> None:
        self._uncount(self.waiting.pop(consumer.session)[1])

    def to_the_end(self, consumer: Consumer) -> None:
        """It had its turn."""
        self.waiting[consumer.session] = self.waiting.pop(consumer.session)

    def able(self, steady_ms: int) -> Iterator[Consumer]:
        """Those that take tasks, as far as they are asked for; who takes none leaves."""
        for consumer, _ in list(self.waiting.values()):
            if consumer.room > 0 and consumer.deadline_ms > steady_ms and self.queue in consumer.queues:
                yield consumer
            else:
                self.leave(consumer)

    @property
    def best_place(self) -> int:
        """The best place that the queue has in the order of preference of anybody who waits."""
        return min(self.places, default=0)

    def _clean(self) -> None:
        for consumer, _ in list(self.waiting.values()):
            if not consumer.origin or consumer.over or self.queue not in consumer.queues:
                self.leave(consumer)
        self.clean_at = max(CLEAN_MIN, 2 * len(self.waiting))

    def _uncount(self, place: int) -> None:
        self.places[place] -= 1
        if not self.places[place]:
            del self.places[place]
