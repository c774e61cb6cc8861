"""`taskq-broker` that kills itself at a named step of the unmodified broker, which is wrapped from outside before it starts.

    TASKQ_FAILPOINT=after-write:7 python -m campaigns.failing_broker --data …       kill -9 when the step is reached for the 7th time

`TASKQ_DEATHS` names a file that gets the moment of the death.  `TASKQ_PLANT` breaks the broker on purpose, so that the harness can be tested.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import attrs

from taskq import node
from taskq.actors.journal import JournalActor
from taskq.actors.listener import Listener
from taskq.actors.store import StoreActor
from taskq.core import messages as m
from taskq.core import records as r
from taskq.core import shard
from taskq.storage import journal, sqlite
from taskq.storage.journal import FileJournal
from taskq.storage.sqlite import SqliteStore

BEFORE, AFTER, DURING = "before", "after", "during"
DURING_S = 0.002
FORGOTTEN_EACH = 3


def always(*arguments: Any) -> bool:
    return True


def has_commands(_: Any, commands: Any, *times: int) -> bool:
    return bool(commands)


def has_delivery(_: Any, replies: Any) -> bool:
    return any(type(reply.message) is m.Deliver for reply in replies)


def is_lease_end(_: Any, record: Any) -> bool:
    return any(outcome in ("crashed", "interrupted", "undelivered") for outcome in record.outcomes)


@attrs.frozen
class Step:
    """A function of the broker, by owner and name (an attribute, or the key of a table), the side on which to die, and which calls count.
    `often`: in how many calls under load it is reached again; it dies at one of them."""

    owner: Any
    name: Any
    when: str
    often: int = 1
    counts: Callable[..., bool] = always

    @property
    def function(self) -> Callable[..., Any]:
        found: Callable[..., Any] = self.owner[self.name] if isinstance(self.owner, dict) else getattr(self.owner, self.name)
        return found

    def replace(self, function: Callable[..., Any]) -> None:
        if isinstance(self.owner, dict):
            self.owner[self.name] = function
        else:
            setattr(self.owner, self.name, function)


POINTS: dict[str, Step] = {
    # a turn of a shard
    "before-apply": Step(shard.Shard, "turn", BEFORE, 100, has_commands),
    "after-apply": Step(shard.Shard, "turn", AFTER, 100, has_commands),
    "admitted": Step(shard.EVOLVE, r.Admitted, AFTER, 40),
    "granted": Step(shard.EVOLVE, r.Granted, AFTER, 40),
    "ack-applied": Step(shard.EVOLVE, r.Completed, AFTER, 40),
    "fail-applied": Step(shard.EVOLVE, r.Ended, AFTER, 5),
    "lease-ended": Step(shard.EVOLVE, r.Ended, AFTER, 1, is_lease_end),
    "promoted": Step(shard.EVOLVE, r.Promoted, AFTER, 5),
    "cancelled": Step(shard.EVOLVE, r.Dropped, AFTER, 1),
    "cancel-asked": Step(shard.EVOLVE, r.CancelAsked, AFTER, 1),
    # the journal, and what leaves behind it
    "before-write": Step(FileJournal, "write", BEFORE, 60),
    "torn-write": Step(journal, "_write_all", DURING, 60),
    "after-write": Step(FileJournal, "write", AFTER, 60),
    "after-sync": Step(FileJournal, "sync", AFTER, 30),
    "before-replies": Step(JournalActor, "_hand_over", BEFORE, 60),
    "after-replies": Step(JournalActor, "_hand_over", AFTER, 60),
    "before-delivery": Step(JournalActor, "_hand_over", BEFORE, 40, has_delivery),
    "before-roll": Step(FileJournal, "_roll", BEFORE),
    "after-roll": Step(FileJournal, "_roll", AFTER),
    "before-drop": Step(FileJournal, "_remove", BEFORE),
    "after-drop": Step(FileJournal, "_remove", AFTER),
    # the store
    "in-flush": Step(StoreActor, "_make_rows", AFTER),
    "before-commit": Step(SqliteStore, "commit", BEFORE, 3),
    "in-commit": Step(sqlite, "_apply", AFTER, 3),
    "after-commit": Step(SqliteStore, "commit", AFTER, 3),
    # the start
    "in-recovery": Step(shard.Shard, "replay", AFTER, 50),
    "before-checkpoint": Step(sqlite, "_checkpoint", BEFORE),
    "in-checkpoint": Step(sqlite, "_checkpoint", DURING),
    "after-checkpoint": Step(sqlite, "_checkpoint", AFTER),
    "before-epoch": Step(FileJournal, "start", BEFORE),
    "after-epoch": Step(FileJournal, "start", AFTER),
    "in-load": Step(shard.Shard, "restore", AFTER, 5),
    "after-load": Step(node, "load", AFTER),
    "before-listening": Step(Listener, "listen", BEFORE),
}


def die() -> None:
    if path := DEATHS:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"%d\n" % time.monotonic_ns())
    os.kill(os.getpid(), signal.SIGKILL)


def arm(step: Step, at: int) -> None:
    """Wrap the step so that its `at`-th call is the last."""
    function, calls = step.function, count(1)

    def reached(*arguments: Any) -> bool:
        return step.counts(*arguments) and next(calls) == at

    def around(*arguments: Any, **options: Any) -> Any:
        last = reached(*arguments)
        if last and step.when == BEFORE:
            die()
        if last and step.when == DURING:
            die_during(function, arguments)
        result = function(*arguments, **options)
        if last:
            die()
        return result

    async def around_async(*arguments: Any, **options: Any) -> Any:
        last = reached(*arguments)
        if last and step.when == BEFORE:
            die()
        result = await function(*arguments, **options)
        if last:
            die()
        return result

    step.replace(functools.wraps(function)(around_async if inspect.iscoroutinefunction(function) else around))


def die_during(function: Callable[..., Any], arguments: Any) -> None:
    """Half of a write, and the end; any other step is interrupted from a thread."""
    if function is WRITE_ALL:
        fd, buffers = arguments
        whole = b"".join(buffers)
        os.write(fd, whole[: len(whole) // 2])
        die()
    threading.Timer(DURING_S, die).start()


def forget_enqueues() -> None:
    """A broken broker: it acknowledges what it never wrote."""
    submit, calls = JournalActor.submit, count(1)

    def forgetful(self: JournalActor, records: list[Any], replies: list[Any]) -> None:
        kept = [record for record in records if not (type(record) is r.Admitted and record.queue == "shelf" and next(calls) % FORGOTTEN_EACH == 0)]
        submit(self, kept, replies)

    JournalActor.submit = forgetful  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {"forget-enqueues": forget_enqueues}
WRITE_ALL = journal._write_all
DEATHS = os.environ.pop("TASKQ_DEATHS", "")


def main() -> None:
    name, _, at = os.environ.pop("TASKQ_FAILPOINT", "").partition(":")
    plant = os.environ.pop("TASKQ_PLANT", "")
    if name:
        arm(POINTS[name], int(at))
    if plant:
        PLANTS[plant]()
    from taskq.cli import broker

    broker(prog_name="taskq-broker")


if __name__ == "__main__":
    sys.exit(main())
