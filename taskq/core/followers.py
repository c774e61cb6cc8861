"""Followers: the worker sessions that wait for the tasks of the queues of one shard, found without a look at those that do not.

Sessions with the same subscription (the same queues in the same order of preference, the same task types) are one *crew*, so that a thousand
workers of one program, on ten thousand queues, are one entry in each queue, and a session that has room again is one entry in its crew.

A crew is either among the followers of a queue or `hungry` for it: it leaves when nobody of it takes anything, and comes back, in the order of its
preference, when somebody does.  Whatever is looked at in vain leaves, so a turn costs what it grants and not what waits.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush

import attrs

from taskq.core.consumer import Consumer

CLEAN_MIN = 8


@attrs.define(eq=False)
class Crew:
    """`places`: its queues in this shard, each with its place in the order of preference.  `turns`: who may take tasks, in the order of turns.
    `hungry`: a heap of (place, queue).  `members`: who was ever of it, until somebody looks, and somebody looks when they have doubled."""

    queues: tuple[str, ...]
    task_types: frozenset[str]
    places: dict[str, int]
    hungry: list[tuple[int, str]]
    turns: OrderedDict[Consumer, None] = attrs.field(factory=OrderedDict)
    members: dict[Consumer, None] = attrs.field(factory=dict)
    clean_at: int = CLEAN_MIN

    def had_turn(self, consumer: Consumer) -> None:
        """It was given something."""
        if consumer.room > 0:
            self.turns.move_to_end(consumer)
        else:
            del self.turns[consumer]


@attrs.define(eq=False)
class Row:
    """The crews that follow one queue, in the order of turns, each with the sessions of it that have their turn before the next crew has.
    `places`: how many of them have the queue at this place of their preference."""

    queue: str
    crews: OrderedDict[Crew, int] = attrs.field(factory=OrderedDict)
    places: Counter[int] = attrs.field(factory=Counter)

    def had_turn(self, crew: Crew) -> None:
        """One session of it had.  Is it the last, the next crew comes first."""
        self.crews[crew] -= 1
        if self.crews[crew] <= 0:
            self.to_the_end(crew)

    def to_the_end(self, crew: Crew) -> None:
        self.crews[crew] = len(crew.turns)
        self.crews.move_to_end(crew)

    @property
    def best_place(self) -> int:
        """The best place that the queue has in the order of preference of anybody who waits."""
        return min(self.places, default=0)


@attrs.define(eq=False)
class Followers:
    """Those of one shard.  `woken`: crews of which somebody takes tasks again."""

    shard: int
    crews: dict[tuple[tuple[str, ...], frozenset[str]], Crew] = attrs.field(factory=dict)
    rows: dict[str, Row] = attrs.field(factory=dict)
    woken: dict[Crew, None] = attrs.field(factory=dict)
    clean_at: int = CLEAN_MIN

    # ---- sessions

    def crew_of(self, consumer: Consumer) -> Crew | None:
        return consumer.crews.get(self.shard)

    def join(self, consumer: Consumer, own: Iterable[tuple[int, str]]) -> Crew:
        """It has a new subscription.  `own`: the queues of this shard in it, with their places, rising; they are asked for only if nobody else has
        the same subscription."""
        key = consumer.queues, consumer.task_types
        crew = self.crews.get(key)
        if crew is None:
            if len(self.crews) >= self.clean_at:
                self._clean()
            hungry = list(own)
            crew = self.crews[key] = Crew(*key, {queue: place for place, queue in hungry}, hungry)
        if len(crew.members) >= crew.clean_at:
            self._clean_crew(crew)
        crew.members[consumer] = None
        consumer.queues, consumer.task_types = crew.queues, crew.task_types  # one tuple for all, however long it is
        consumer.crews[self.shard] = crew
        return crew

    def enter(self, consumer: Consumer, crew: Crew) -> None:
        """It takes tasks; its turn comes last, if it did not wait already."""
        crew.turns[consumer] = None
        self.woken[crew] = None

    def sessions(self, queue: str) -> list[Consumer]:
        """All that have subscribed to the queue, whether they have room or not, by a look at all: for what happens rarely."""
        crews = [crew for crew in self.crews.values() if queue in crew.places]
        return [consumer for crew in crews for consumer in crew.members if self._is_member(consumer, crew)]

    # ---- crews

    def follow(self, crew: Crew) -> str:
        """The crew is among the followers of its best queue that it is hungry for."""
        place, queue = heappop(crew.hungry)
        row = self.rows.get(queue)
        if row is None:
            row = self.rows[queue] = Row(queue)
        row.crews[crew] = len(crew.turns)
        row.places[place] += 1
        return queue

    def leave(self, crew: Crew, row: Row) -> None:
        """Nobody of it takes tasks of this queue now."""
        self._drop(crew, row)
        heappush(crew.hungry, (crew.places[row.queue], row.queue))

    def _drop(self, crew: Crew, row: Row) -> None:
        place = crew.places[row.queue]
        del row.crews[crew]
        row.places[place] -= 1
        if not row.places[place]:
            del row.places[place]
        if not row.crews:
            self.rows.pop(row.queue, None)

    # ---- who is gone

    def _is_member(self, consumer: Consumer, crew: Crew) -> bool:
        return consumer.crews.get(self.shard) is crew and bool(consumer.origin) and not consumer.over

    def _clean_crew(self, crew: Crew) -> None:
        for consumer in [each for each in crew.members if not self._is_member(each, crew)]:
            del crew.members[consumer]
            crew.turns.pop(consumer, None)
        crew.clean_at = max(CLEAN_MIN, 2 * len(crew.members))

    def _clean(self) -> None:
        for key, crew in list(self.crews.items()):
            self._clean_crew(crew)
            if not crew.members:
                for row in self._rows_of(crew):
                    self._drop(crew, row)
                self.woken.pop(crew, None)
                del self.crews[key]
        self.clean_at = max(CLEAN_MIN, 2 * len(self.crews))

    def _rows_of(self, crew: Crew) -> Iterator[Row]:
        for queue in crew.places:
            row = self.rows.get(queue)
            if row is not None and crew in row.crews:
                yield row
