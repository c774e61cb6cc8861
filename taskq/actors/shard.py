"""ShardActor: carries a Shard.  Commands in, records to the journal, loads to the store, one timer that is re-armed only if it moved.

The commands of a connection are never reordered.  One that the shard holds back (see core/pace.py) keeps those behind it of the same connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from taskq.actors.actor import Actor
from taskq.clock import Clock
from taskq.core.effects import Command, Effects, Flushed, Reply, Tick
from taskq.core.messages import Inspect
from taskq.core.session import error_of_protocol
from taskq.core.shard import Shard
from taskq.errors import InternalError
from taskq.ids import ID_BYTES

TURN_TASKS = 500
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
        self._held: list[Command] = []
        self._holding: asyncio.TimerHandle | None = None

    def on_batch(self, batch: list[Command]) -> list[Command]:
        if self._stopped:
            return []
        taken, rest = share_out(self._without_held(batch))
        self._carry(self.shard.turn(taken, self._clock.now_ms(), self._clock.steady_ms()))
        return rest

    def _without_held(self, batch: list[Command]) -> list[Command]:
        """What may be decided now; the rest is looked at again in the next turn, which comes soon."""
        holds, now_ms = self.shard.holds, self._clock.steady_ms()
        waiting, self._held = [*self._held, *batch], []
        origins: set[int] = set()
        ready: list[Command] = []
        for command in waiting:
            if command.origin in origins or holds(command, now_ms):
                origins.add(command.origin)
                self._held.append(command)
            else:
                ready.append(command)
        if self._held and self._holding is None:
            self._holding = self.loop.call_later(HELD_S, self._look_again)
        return ready

    def _look_again(self) -> None:
        self._holding = None
        self.tell(Command(0, 0, Tick()))

    def _carry(self, effects: Effects) -> None:
        for command, bug in effects.bugs:
            log.error("a %s command could not be decided", type(command.message).__name__, exc_info=bug)
            effects.reply(command, error_of_protocol(InternalError()))
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
        self._held.clear()
        for timer in (self._timer, self._holding):
            if timer is not None:
                timer.cancel()


def share_out(batch: list[Command]) -> tuple[list[Command], list[Command]]:
    """The commands of this turn, and the rest.  Where there are too many, each connection gets an equal share, so that who asks much waits behind
    itself alone; who got nothing comes first in the next turn.  The commands of a connection stay in their order, and so do those of the node."""
    total = 0
    for command in batch:
        total += weight(command)
        if total > TURN_TASKS:
            break
    else:
        return batch, []
    share = TURN_TASKS // len({command.origin for command in batch})
    spent: dict[int, int] = {}
    taken: list[Command] = []
    rest: list[Command] = []
    total = 0
    for at, command in enumerate(batch):
        if total >= TURN_TASKS:
            rest += batch[at:]
            break
        mine = spent.get(command.origin, 0)
        if mine > share:
            rest.append(command)
            continue
        taken.append(command)
        size = weight(command)
        spent[command.origin] = mine + size
        total += size
    rest.sort(key=lambda command: command.origin in spent)
    return taken, rest


def weight(command: Command) -> int:
    """How many tasks a command is about; a list of all queues takes a turn for itself."""
    if type(command.message) is Inspect:
        return TURN_TASKS
    if type(command.message) is Flushed:
        return len(command.message.tasks)
    ids = getattr(command.message, "ids", None)
    return len(ids) // ID_BYTES if ids else 1
