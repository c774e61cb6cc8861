"""The names of queues, as something that can run out: how many there are, and who brought them.

A queue counts for the access token whose enqueue it came from, as long as the broker keeps it; without a token, and after a restart, for nobody.

Rules: all together have at most `queues_max`, each token at most its share of that, so that no token can take the names of the others.  It is asked
only when a queue is new.

PURE.  It must not know: queues, what a token allows.
"""

from __future__ import annotations

import attrs

from taskq.errors import QueuesFull

SHARES = 4
SHARE_MIN = 100
RETRY_MS = 1_000
FIX = "use task types or keys, or retry when queues have run empty"


def share_of(queues_max: int) -> int:
    """How many names one token may bring."""
    return min(queues_max, max(SHARE_MIN, queues_max // SHARES))


@attrs.define(eq=False)
class Names:
    """`count`: the queues of all shards.  `brought`: how many of them each token brought."""

    queues_max: int
    count: int = 0
    brought: dict[str, int] = attrs.field(factory=dict)

    def refusal(self, bringer: str) -> QueuesFull | None:
        """Why there may be no further queue from this token; "" is none."""
        share = share_of(self.queues_max)
        if self.count >= self.queues_max:
            rule = f"the broker may have {self.queues_max:,} queues"
        elif bringer and self.brought.get(bringer, 0) >= share:
            rule = f"of them the access token {bringer} may bring {share:,}"
        else:
            return None
        return QueuesFull(f"queue: {rule} (queues_max); {FIX}", field="queue", retry_after_ms=RETRY_MS)

    def is_scarce(self) -> bool:
        """Whether empty queues should make place: half of the names, or of somebody's share, are taken."""
        return 2 * self.count > self.queues_max or any(2 * count > share_of(self.queues_max) for count in self.brought.values())

    def add(self, bringer: str) -> None:
        self.count += 1
        if bringer:
            self.brought[bringer] = self.brought.get(bringer, 0) + 1

    def drop(self, bringer: str) -> None:
        self.count -= 1
        if not bringer:
            return
        if self.brought[bringer] == 1:
            del self.brought[bringer]
        else:
            self.brought[bringer] -= 1
