"""The time that ids carry: which ids are new without a look, and what is remembered of those whose tasks were deleted.

Ids live by the steady clock: nobody sets it, so a step of the machine's clock makes no id of a connected client old or premature.  WELCOME tells
this time.  An id more than FRESH_MS away from it, on either side, is taken as well, but first the store is asked.

Rules:
- An id whose task may have been deleted is too old, never a silent second run.
- Ids that were ahead when their tasks were deleted have a mark of their own.  It counts for ids that are ahead, and for all once its time has
  come; so a client with a wrong clock makes no id of the others too old.
- A start begins after the mark: what clients make from then on is newer than all that was deleted, though the machine's clock went back meanwhile.
"""

from __future__ import annotations

import attrs

from taskq.ids import ms_of_id

FRESH_MS = 60_000


@attrs.define(eq=False)
class IdTime:
    """`pruned_ms`: the highest time of an id whose task was deleted; `ahead_ms`: the same of ids that were ahead then.  `lead_ms`: how far this
    time is ahead of the steady clock."""

    pruned_ms: int = 0
    ahead_ms: int = 0
    lead_ms: int = 0

    @classmethod
    def starting(cls, pruned_ms: int, ahead_ms: int, steady_ms: int) -> IdTime:
        """That of a broker which starts now with these marks."""
        return cls(pruned_ms, ahead_ms, pruned_ms + 1 - steady_ms if pruned_ms > steady_ms + FRESH_MS else 0)

    def now_ms(self, steady_ms: int) -> int:
        return steady_ms + self.lead_ms

    def note_pruned(self, pruned_ms: int, ahead_ms: int) -> None:
        self.pruned_ms, self.ahead_ms = max(self.pruned_ms, pruned_ms), max(self.ahead_ms, ahead_ms)

    def may_be_pruned(self, task_id: bytes, now_ms: int) -> bool:
        """Whether a task with this id, of which nothing is found, may have been deleted.  `now_ms`: the time of ids."""
        made_ms, fresh_until_ms = ms_of_id(task_id), now_ms + FRESH_MS
        if made_ms <= self.pruned_ms:
            return True
        return made_ms <= self.ahead_ms and (made_ms > fresh_until_ms or self.ahead_ms <= fresh_until_ms)


def is_fresh(task_id: bytes, now_ms: int) -> bool:
    """Whether an id that its client has just made is new without a look."""
    return abs(now_ms - ms_of_id(task_id)) <= FRESH_MS


def are_fresh(ids: list[bytes], now_ms: int) -> bool:
    """`is_fresh` of all of them."""
    return is_fresh(min(ids), now_ms) and is_fresh(max(ids), now_ms)
