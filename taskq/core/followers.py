"""Followers: the worker sessions that wait for the tasks of the queues of one shard, found without a look at those that do not.

Sessions with the same subscription (the same queues with the same ranks, the same task types) are one *crew*, so that a thousand workers of one
program, on ten thousand queues, are one entry in each queue, and a session that has room again is one entry in its crew.

A crew is either among the followers of a queue or `hungry` for it: it leaves when nobody of it takes anything, and comes back, the best rank first,
when somebody does.  Among queues of one rank those come first that it left longest ago.  Whatever is looked at in vain leaves, so a turn costs what
it grants and not what waits.

The crews of one subscription in the other shards are its *siblings*.  A crew may look at what they are hungry for, so that a queue that is preferred
goes first whatever shard it lives in: `ahead` names the shard that has to look before this one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

import attrs

from taskq.core.consumer import Consumer
from taskq.core.queue import Queue
from taskq.core.task import PENDING

CLEAN_MIN = 8
# the place of what nobody has looked at yet
UNKNOWN = (-1, 0)

Key: TypeAlias = tuple[tuple[str, ...], tuple[int, ...], frozenset[str]]
# rank, and the order of turns within it
Place: TypeAlias = tuple[int, int]


@attrs.define(eq=False)
class Crew:
    """`ranks`: its queues in this shard, each with its rank.  `turns`: who may take tasks, in the order of turns.  `hungry`: a heap of (rank, turn,
    queue).  `members`: who was ever of it, until somebody looks, and somebody looks when they have doubled.  `shards`: all that own queues of the
    subscription, of which `siblings` has those whose crew exists."""

    followers: Followers
    key: Key
    ranks: dict[str, int]
    hungry: list[tuple[int, int, str]]
    shards: tuple[int, ...]
    siblings: dict[int, Crew]
    turns: OrderedDict[Consumer, None] = attrs.field(factory=OrderedDict)
    members: dict[Consumer, None] = attrs.field(factory=dict)
    clean_at: int = CLEAN_MIN

    @property
    def task_types(self) -> frozenset[str]:
        return self.key[2]

    def had_turn(self, consumer: Consumer) -> None:
        """It was given something."""
        if consumer.room > 0:
            self.turns.move_to_end(consumer)
        else:
            del self.turns[consumer]

    def next_place(self) -> Place | None:
        """That of the best queue with tasks that it is hungry for; it is at once among the followers of those without."""
        while self.hungry:
            rank, turn, name = self.hungry[0]
            queue = self.followers.queues.get(name)
            if queue is not None and queue.counts[PENDING]:
                return rank, turn
            self.followers.follow(self)
        return None

    def ahead(self, place: Place) -> int | None:
        """The shard with the best tasks for this crew, if they come before those at this place of ours."""
        if len(self.shards) == 1:
            return None
        best, found = place, None
        for shard in self.shards:
            sibling = self.siblings.get(shard)
            other = UNKNOWN if sibling is None else sibling.next_place() if sibling is not self else None
            if other is not None and other < best:
                best, found = other, shard
        return found


@attrs.define(eq=False)
class Row:
    """The crews that follow one queue, in the order of turns, each with the sessions of it that have their turn before the next crew has.
    `turns`: the crew's own turn of this queue.  `ranks`: how many of them give the queue this rank."""

    queue: str
    crews: OrderedDict[Crew, int] = attrs.field(factory=OrderedDict)
    turns: dict[Crew, int] = attrs.field(factory=dict)
    ranks: Counter[int] = attrs.field(factory=Counter)

    def had_turn(self, crew: Crew) -> None:
        """One session of it had.  Is it the last, the next crew comes first."""
        self.crews[crew] -= 1
        if self.crews[crew] <= 0:
            self.to_the_end(crew)

    def to_the_end(self, crew: Crew) -> None:
        self.crews[crew] = len(crew.turns)
        self.crews.move_to_end(crew)

    def place(self, crew: Crew) -> Place:
        return crew.ranks[self.queue], self.turns[crew]

    @property
    def best_rank(self) -> int:
        """The best rank that anybody who waits gives the queue."""
        return min(self.ranks, default=0)


@attrs.define(eq=False)
class Followers:
    """Those of one shard.  `queues`: its queues, by name.  `crews`: of all shards of the process, by subscription and shard.  `woken`: crews of
    which somebody takes tasks again."""

    shard: int
    queues: Mapping[str, Queue]
    crews: dict[Key, dict[int, Crew]]
    turn: count[int]
    woken: dict[Crew, None] = attrs.field(factory=dict)
    own: dict[Key, Crew] = attrs.field(factory=dict)
    rows: dict[str, Row] = attrs.field(factory=dict)
    clean_at: int = CLEAN_MIN

    # ---- sessions

    def crew_of(self, consumer: Consumer) -> Crew | None:
        return consumer.crews.get(self.shard)

    def join(self, consumer: Consumer, own: Iterable[tuple[int, str]]) -> Crew:
        """It has a new subscription.  `own`: the queues of this shard in it, with their ranks; they are asked for only if nobody else has the same
        subscription."""
        key = consumer.queues, consumer.ranks, consumer.task_types
        crew = self.own.get(key)
        if crew is None:
            if len(self.own) >= self.clean_at:
                self._clean()
            crew = self._found(key, {queue: rank for rank, queue in own}, consumer.shards)
        if len(crew.members) >= crew.clean_at:
            self._clean_crew(crew)
        crew.members[consumer] = None
        consumer.queues, consumer.ranks, consumer.task_types = crew.key  # one tuple for all, however long it is
        consumer.crews[self.shard] = crew
        return crew

    def _found(self, key: Key, ranks: dict[str, int], shards: tuple[int, ...]) -> Crew:
        siblings = self.crews.setdefault(key, {})
        hungry = sorted((rank, next(self.turn), queue) for queue, rank in ranks.items())
        crew = siblings[self.shard] = self.own[key] = Crew(self, key, ranks, hungry, shards, siblings)
        return crew

    def enter(self, consumer: Consumer, crew: Crew) -> None:
        """It takes tasks; its turn comes last, if it did not wait already."""
        crew.turns[consumer] = None
        self.woken[crew] = None

    def sessions(self, queue: str) -> list[Consumer]:
        """All that have subscribed to the queue, whether they have room or not, by a look at all: for what happens rarely."""
        crews = [crew for crew in self.own.values() if queue in crew.ranks]
        return [consumer for crew in crews for consumer in crew.members if self._is_member(consumer, crew)]

    # ---- crews

    def follow(self, crew: Crew) -> str:
        """The crew is among the followers of its best queue that it is hungry for."""
        rank, turn, queue = heappop(crew.hungry)
        row = self.rows.get(queue)
        if row is None:
            row = self.rows[queue] = Row(queue)
        row.crews[crew] = len(crew.turns)
        row.turns[crew] = turn
        row.ranks[rank] += 1
        return queue

    def leave(self, crew: Crew, row: Row) -> None:
        """Nobody of it takes tasks of this queue now; those of the same rank come before it the next time."""
        self._drop(crew, row)
        heappush(crew.hungry, (crew.ranks[row.queue], next(self.turn), row.queue))

    def stand_back(self, crew: Crew, row: Row) -> None:
        """Another shard has to look first; the crew keeps its turn."""
        rank, turn = row.place(crew)
        self._drop(crew, row)
        heappush(crew.hungry, (rank, turn, row.queue))

    def _drop(self, crew: Crew, row: Row) -> None:
        rank = crew.ranks[row.queue]
        del row.crews[crew], row.turns[crew]
        row.ranks[rank] -= 1
        if not row.ranks[rank]:
            del row.ranks[rank]
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
        for key, crew in list(self.own.items()):
            self._clean_crew(crew)
            if not crew.members:
                for row in self._rows_of(crew):
                    self._drop(crew, row)
                self.woken.pop(crew, None)
                del self.own[key], crew.siblings[self.shard]
                if not crew.siblings:
                    self.crews.pop(key, None)
        self.clean_at = max(CLEAN_MIN, 2 * len(self.own))

    def _rows_of(self, crew: Crew) -> Iterator[Row]:
        for queue in crew.ranks:
            row = self.rows.get(queue)
            if row is not None and crew in row.crews:
                yield row
