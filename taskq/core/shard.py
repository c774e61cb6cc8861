"""A shard: the single writer that owns a range of slots and decides everything about their tasks.

Two tables and a turn.  `DECIDE`: a command and the time in, records and a reply out, nothing changed.  `EVOLVE`: a record in, the state changed,
nothing refused; live and replay run the same.  A turn takes a list of commands, then what time has brought, then matches tasks and workers.
Each noun (enqueue, grant, report, cancel, lease, lookup) is a file with its `decide_*` and `evolve_*`.  It reads no clock and makes no randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.book import Book, Decision, index
from taskq.core.cancel import decide_cancel, evolve_cancel_asked, evolve_dropped
from taskq.core.enqueue import decide_enqueue, evolve_admitted
from taskq.core.grant import decide_offer, decide_offered, decide_ready, evolve_granted, match, offers_back
from taskq.core.horizon import decide_due_loaded
from taskq.core.lease import PASS_MS, decide_held, decide_over, decide_returned, expire
from taskq.core.lookup import decide_get, decide_inspect
from taskq.core.report import decide_ack, decide_fail, decide_release, evolve_completed, evolve_ended
from taskq.core.timer import decide_tick, evolve_promoted, promote
from taskq.core.window import decide_flushed, decide_forgotten, decide_line_loaded

DECIDE: dict[type, Callable[[Book, fx.Command, int, Any], Decision]] = {
    m.Enqueue: decide_enqueue,
    m.Ack: decide_ack,
    m.Fail: decide_fail,
    m.Release: decide_release,
    m.Cancel: decide_cancel,
    m.Get: decide_get,
    m.Inspect: decide_inspect,
    fx.Ready: decide_ready,
    fx.Offer: decide_offer,
    fx.Offered: decide_offered,
    fx.Held: decide_held,
    fx.Over: decide_over,
    fx.Returned: decide_returned,
    fx.Tick: decide_tick,
    fx.LineLoaded: decide_line_loaded,
    fx.DueLoaded: decide_due_loaded,
    fx.Flushed: decide_flushed,
    fx.Forgotten: decide_forgotten,
}

EVOLVE: dict[type, Callable[[Book, Any], None]] = {
    r.Admitted: evolve_admitted,
    r.Granted: evolve_granted,
    r.Completed: evolve_completed,
    r.Ended: evolve_ended,
    r.Promoted: evolve_promoted,
    r.Dropped: evolve_dropped,
    r.CancelAsked: evolve_cancel_asked,
}

# what time and the commands before have brought, in this order; each yields a record, which is applied before it goes on
PASSES = (promote, expire, match)


class Shard(Book):
    def turn(self, commands: Sequence[fx.Command], now_ms: int, steady_ms: int | None = None) -> fx.Effects:
        """Handle these commands and everything that is due.  `steady_ms`: see clock.py; None where the two are the same.  A bug in a decision
        costs the connection that asked; one in `evolve` is raised."""
        self.steady_ms = now_ms if steady_ms is None else steady_ms
        effects = self.effects = fx.Effects()
        for command in commands:
            known = None
            if type(command.message) is fx.Found:
                known = index(command.message.tasks)
                command = command.message.parked
            try:
                records, reply = DECIDE[type(command.message)](self, command, now_ms, known)
            except Exception as bug:
                if not command.origin:
                    raise
                effects.bugs.append((command, bug))
                continue
            self._apply(records)
            self.answer(command, reply)
        for due in PASSES:
            for record in due(self, now_ms):
                self._apply([record])
        effects.offers += offers_back(self)
        effects.wake_at_ms = self._wake_at_ms(now_ms)
        return effects

    def holds(self, command: fx.Command, steady_ms: int) -> bool:
        """Whether this command is better decided later: new tasks for a queue that is as busy as it can be."""
        message = command.message
        if type(message) is not m.Enqueue or not command.origin:
            return False
        queue = self.queues.get(message.queue)
        return queue is not None and queue.holds(steady_ms)

    def _apply(self, records: Sequence[Any]) -> None:
        """Decisions became facts: change the state, and have them written."""
        for record in records:
            self.effects.records.append(record)
            EVOLVE[type(record)](self, record)

    def replay(self, record: Any) -> None:
        """A fact from the journal: change the state."""
        EVOLVE[type(record)](self, record)

    def _wake_at_ms(self, now_ms: int) -> int:
        due = self.timers[0][0] if self.timers else 0
        if self.held or self.held_back or self.touched:
            lease = now_ms + PASS_MS
            return min(due, lease) if due else lease
        return due
