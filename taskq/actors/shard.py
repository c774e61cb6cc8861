"""ShardActor: carries a Shard.  Commands in, records to the journal, loads to the store, one timer that is re-armed only if it moved.

The commands of a connection are never reordered.  One that the shard holds back (see core/pace.py) keeps those behind it of the same connection.
Who comes first where there are too many for a turn is said in queueing.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from taskq.actors.actor import Actor
from taskq.actors.queueing import Waiting, is_small
from taskq.clock import Clock
from taskq.core.effects import Command, Effects, Reply, Tick
from taskq.core.enqueue import error_of
from taskq.core.shard import Shard
from taskq.errors import InternalError

WAKE_S_MAX = 60.0
HELD_S = 0.005

log = logging.getLogger("taskq.shard")


class ShardActor(Actor[Command]):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
        shard: Shard,
        clock: Clock,
        submit: Callable[[list[Any], list[Reply]], None],
        load: Callable[[ShardActor, list[Any]], None],
        offer: Callable[[list[tuple[int, Command]]], None],
    ) -> None:
        super().__init__(loop, on_crash)
        self.shard = shard
        self._clock = clock
        self._submit = submit
        self._load = load
        self._offer = offer
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at_ms = 0
        self._stopped = False
        self._waiting = Waiting()
        self._holding: asyncio.TimerHandle | None = None

    def on_batch(self, batch: list[Command]) -> bool:
        if not self._stopped:
            taken = self._taken(batch)
            self._carry(self.shard.turn(taken, self._clock.now_ms(), self._clock.steady_ms()))
        return self._waiting.can_go_on

    def _taken(self, batch: list[Command]) -> list[Command]:
        """What is decided in this turn; the rest waits for the next one, and what is held for one that comes soon."""
        holds, now_ms, waiting = self.shard.holds, self._clock.steady_ms(), self._waiting
        if waiting.is_empty and is_small(batch) and not any(holds(command, now_ms) for command in batch):
            return batch
        for command in batch:
            waiting.add(command)
        taken = waiting.take(lambda command: holds(command, now_ms))
        if waiting.has_set_aside and self._holding is None:
            self._holding = self.loop.call_later(HELD_S, self._look_again)
        return taken

    def _look_again(self) -> None:
        self._holding = None
        self._waiting.look_again()
        self.tell(Command(0, 0, Tick()))

    def _carry(self, effects: Effects) -> None:
        for command, bug in effects.bugs:
            log.error("a %s command could not be decided", type(command.message).__name__, exc_info=bug)
            effects.reply(command, error_of(InternalError()))
        if effects.records or effects.replies:
            self._submit(effects.records, effects.replies)
        if effects.loads:
            self._load(self, effects.loads)
        if effects.offers:
            self._offer(effects.offers)
        if effects.wake_at_ms != self._wake_at_ms:
            self._set_timer(effects.wake_at_ms)

    def _set_timer(self, wake_at_ms: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_at_ms = wake_at_ms
        if wake_at_ms:
            delay_s = (wake_at_ms - self._clock.now_ms()) / 1000
            self._timer = self.loop.call_later(min(max(delay_s, 0.001), WAKE_S_MAX), self.wake)

    def wake(self) -> None:
        """Look at the time, once."""
        self._timer = None
        self._wake_at_ms = 0
        self.tell(Command(0, 0, Tick()))

    def tell(self, message: Command) -> None:
        if not self._stopped:
            super().tell(message)

    def stop(self) -> None:
        """Decide nothing more; what waits in the mailbox was never answered."""
        self._stopped = True
        self._mailbox.clear()
        self._waiting.clear()
        for timer in (self._timer, self._holding):
            if timer is not None:
                timer.cancel()
