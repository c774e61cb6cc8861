"""Queueing: the commands that wait for a shard, shared among the connections that asked.

Each connection has a line of its own, whose order never changes.  Where more waits than a turn takes, that line comes first whose next command would
be done first if all lines were served side by side, each at the same pace (weighted fair queueing): so who asks much waits behind itself alone,
and one small command comes before the large ones of any number of others.  The commands of the node itself, origin 0, are a line like the others.

A line whose next command may not be decided yet is set aside with all that stands in it, until `look_again`.

A turn costs what it takes, not what waits.  It must not know: shards, clocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from itertools import count

import attrs

from taskq.core.effects import Command, Flushed
from taskq.core.messages import Inspect
from taskq.ids import ID_BYTES

TURN_TASKS = 500


@attrs.define(eq=False)
class Line:
    """What waits of one connection.  `end`: when the last command that was taken, or the first that waits, is done."""

    commands: deque[Command] = attrs.field(factory=deque)
    end: int = 0


class Waiting:
    """See the module.  Time is counted in tasks of one line: it is now when the last command that was taken began."""

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}
        self._next: list[tuple[int, int, int]] = []
        self._aside: list[int] = []
        self._now = 0
        self._ties = count()

    def __iter__(self) -> Iterator[Command]:
        for line in self._lines.values():
            yield from line.commands

    @property
    def is_empty(self) -> bool:
        """Nothing waits, not even aside."""
        return not self._lines

    @property
    def can_go_on(self) -> bool:
        return bool(self._next)

    @property
    def has_set_aside(self) -> bool:
        return bool(self._aside)

    def add(self, command: Command) -> None:
        line = self._lines.get(command.origin)
        if line is None:
            line = self._lines[command.origin] = Line()
            line.commands.append(command)
            self._stand(command.origin, line)
        else:
            line.commands.append(command)

    def _stand(self, origin: int, line: Line) -> None:
        """The first command of the line gets its place."""
        line.end = max(line.end, self._now) + weight(line.commands[0])
        heappush(self._next, (line.end, next(self._ties), origin))

    def take(self, holds: Callable[[Command], bool]) -> list[Command]:
        """The commands of this turn: one at least, if there is one that is not held, and about TURN_TASKS tasks."""
        taken: list[Command] = []
        total = 0
        while self._next and total < TURN_TASKS:
            end, _, origin = heappop(self._next)
            line = self._lines[origin]
            if holds(line.commands[0]):
                self._aside.append(origin)
                continue
            command = line.commands.popleft()
            taken.append(command)
            size = weight(command)
            total += size
            self._now = max(self._now, end - size)
            if line.commands:
                self._stand(origin, line)
            else:
                del self._lines[origin]
        return taken

    def look_again(self) -> None:
        """What was set aside may be decided now."""
        aside, self._aside = self._aside, []
        for origin in aside:
            line = self._lines[origin]
            heappush(self._next, (line.end, next(self._ties), origin))

    def clear(self) -> None:
        self._lines.clear()
        self._next.clear()
        self._aside.clear()


def weight(command: Command) -> int:
    """How many tasks a command is about; a list of all queues takes a turn for itself."""
    if type(command.message) is Inspect:
        return TURN_TASKS
    if type(command.message) is Flushed:
        return len(command.message.tasks)
    ids = getattr(command.message, "ids", None)
    return len(ids) // ID_BYTES if ids else 1


def is_small(batch: list[Command]) -> bool:
    """A turn can take all of it."""
    total = 0
    for command in batch:
        total += weight(command)
        if total > TURN_TASKS:
            return len(batch) == 1
    return True
