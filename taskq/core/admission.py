"""Whether the broker admits new tasks: the table of its limits, and the reasons not to admit, which whoever sees the load sets and takes back.

Rules.  Every enqueue asks; a request whose tasks exist already needs no room.  A queue that is full refuses what is new and never drops what it
has; its length and bytes are exact, and known without looking at its tasks.  Finishing work is never refused: it is what lowers the load.

It must not know: what the load is, clocks, disks.
"""

from __future__ import annotations

import attrs

from taskq.errors import Answer, DiskLow, Overloaded, QueueFull

NO_LIMIT = 1 << 62
# a task's row, its places in the indexes and its records, beside the payload; rounded up, since pages are written whole
TASK_DISK_BYTES = 1_024
# a payload is written three times: to the journal, to the log of the store and to the store
WRITES = 3
# a loop that is late has been so for that long
LATE_MS = 5_000
RETRY_MS = 1_000
LEASES_MAX = 20_000
FULL = "retry when workers have finished some, or raise the limit"


@attrs.frozen
class Limits:
    """What the settings of the same names say; 0: no limit."""

    payload_bytes_max: int = 1 << 20
    lease_ms: int = 15_000
    queues_max: int = 10_000
    queue_tasks_max: int = 0
    queue_bytes_max: int = 0
    leases_max: int = LEASES_MAX


@attrs.define
class Admission:
    """The reasons not to admit, by who gave them; the first one given is the answer.  While draining, nothing is delivered either.  `room_bytes`:
    what may be written to the disk before somebody looks at it again."""

    reasons: dict[str, Answer] = attrs.field(factory=dict)
    draining: bool = False
    room_bytes: int = NO_LIMIT

    def refuse(self, who: str, why: Answer) -> None:
        self.reasons.setdefault(who, why)

    def admit(self, who: str) -> None:
        self.reasons.pop(who, None)

    def set(self, who: str, why: Answer | None) -> None:
        """Refuse with this reason, or admit."""
        if why is None:
            self.admit(who)
        else:
            self.refuse(who, why)

    @property
    def refusal(self) -> Answer | None:
        return next(iter(self.reasons.values()), None)

    def spend(self, tasks: int, payload_bytes: int) -> None:
        """New tasks will take their space on the disk, long before the next look at it."""
        self.room_bytes -= disk_bytes(tasks, payload_bytes)
        if self.room_bytes < 0:
            self.refuse("disk", disk_low())


def disk_bytes(tasks: int, payload_bytes: int) -> int:
    """What tasks with so much payload take on the disk until they are in the store, at most."""
    return tasks * TASK_DISK_BYTES + payload_bytes * WRITES


def disk_low() -> DiskLow:
    return DiskLow("the broker's disk is nearly full, so it admits nothing new; make room in its data folder", retry_after_ms=RETRY_MS)


def full(limits: Limits, name: str, tasks: int, payload_bytes: int) -> QueueFull | None:
    """The refusal for a queue that would have so many unfinished tasks, with so much payload."""
    if limits.queue_tasks_max and tasks > limits.queue_tasks_max:
        return QueueFull(f"queue {name} may have {limits.queue_tasks_max:,} unfinished tasks (queue_tasks_max); {FULL}", retry_after_ms=RETRY_MS)
    if limits.queue_bytes_max and payload_bytes > limits.queue_bytes_max:
        rule = f"{limits.queue_bytes_max:,} bytes of payload in unfinished tasks (queue_bytes_max)"
        return QueueFull(f"queue {name} may have {rule}; {FULL}", retry_after_ms=RETRY_MS)
    return None


@attrs.define
class Lateness:
    """How long every turn of the loop has been late.  A single late one is a hiccup."""

    late_max_ms: float
    since_ms: float = 0

    def turn(self, late_ms: float, now_ms: float) -> Overloaded | None:
        """The loop came around so late; the refusal, if it has been late for too long."""
        if late_ms <= self.late_max_ms:
            self.since_ms = 0
            return None
        self.since_ms = self.since_ms or now_ms
        if now_ms - self.since_ms < LATE_MS:
            return None
        return Overloaded("the broker has more to do than its CPU can; retry later", retry_after_ms=RETRY_MS)
