"""Ids that the store alone may know, so that an enqueue never takes one of them for new, whatever flag its client sets.

An id is new without a look if its time is near the broker's (idtime.py), no task in memory has it, and it is none of these: the ids of tasks that
left memory while their time was near.  Of all others the store is asked.

Rules:
- No id is missed.  What there is no room for raises the *floor*: ids of that time and earlier are looked for.
- There are two generations.  The older one goes when the younger is full, or has lasted as long as the time of an id counts as near.
- Ids that were ahead when their tasks left are kept until their time is near, as long as they are few: they raise no floor before, so a client with
  a wrong clock does not make the ids of the others doubtful.
- A start puts the floor at the newest id of the store.  So it costs what its clients make from then on nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import attrs

from taskq.core.idtime import FRESH_MS, are_fresh, is_fresh
from taskq.ids import ms_of_id

# of both generations; an id takes about 110 bytes
IDS_MAX = 500_000
# of them so many may be kept because they are ahead
AHEAD_MAX = IDS_MAX // 8


@attrs.define
class Generation:
    """Ids and the newest of their times; `began_ms`: since when they are gathered.  `ahead`: those of them that were ahead, whose times do not
    count for `newest_ms`."""

    began_ms: int = 0
    newest_ms: int = 0
    ids: set[bytes] = attrs.field(factory=set)
    ahead: set[bytes] = attrs.field(factory=set)

    def add(self, ids: Sequence[bytes], now_ms: int) -> None:
        self.ids.update(ids)
        near: Sequence[bytes] = ids
        if ms_of_id(max(ids)) > now_ms + FRESH_MS:
            ahead = _ahead(ids, now_ms)
            self.ahead |= ahead
            near = [each for each in ids if each not in ahead]
        if near:
            self.newest_ms = max(self.newest_ms, ms_of_id(max(near)))


@attrs.define(eq=False)
class Recent:
    """See the module.  Times are those of ids."""

    floor_ms: int = 0
    _young: Generation = attrs.field(factory=Generation)
    _old: Generation = attrs.field(factory=Generation)

    def __contains__(self, task_id: bytes) -> bool:
        return task_id in self._young.ids or task_id in self._old.ids

    def add(self, ids: Sequence[bytes], now_ms: int) -> None:
        """These tasks leave memory."""
        for at in range(0, len(ids), IDS_MAX // 2):
            self._add_some(ids[at : at + IDS_MAX // 2], now_ms)

    def _add_some(self, ids: Sequence[bytes], now_ms: int) -> None:
        if len(self._young.ids) + len(ids) > IDS_MAX // 2 or now_ms - self._young.began_ms > FRESH_MS:
            self._drop_old(now_ms)
        self._young.add(ids, now_ms)

    def _drop_old(self, now_ms: int) -> None:
        old = self._old
        self._old, self._young = self._young, Generation(now_ms)
        kept = _ahead(old.ahead, now_ms)
        if len(kept) > AHEAD_MAX:
            kept = set()
        if kept:
            self._young.add(list(kept), now_ms)
        self.raise_floor(max([old.newest_ms, *map(ms_of_id, old.ahead - kept)]))

    def raise_floor(self, ms: int) -> None:
        self.floor_ms = max(self.floor_ms, ms)

    def doubtful(self, ids: list[bytes], now_ms: int) -> Collection[bytes]:
        """Those of these ids that the store may know; nearly always none."""
        young, old, floor_ms = self._young.ids, self._old.ids, self.floor_ms
        if are_fresh(ids, now_ms) and ms_of_id(min(ids)) > floor_ms and young.isdisjoint(ids) and old.isdisjoint(ids):
            return ()
        return {each for each in ids if not is_fresh(each, now_ms) or ms_of_id(each) <= floor_ms or each in self}


def _ahead(ids: Iterable[bytes], now_ms: int) -> set[bytes]:
    return {each for each in ids if ms_of_id(each) > now_ms + FRESH_MS}
