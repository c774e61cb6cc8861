"""Who stands: a worker session that is heard of, holds nothing and is given nothing, while tasks wait that it could run.  That must not be; where it
is, somebody is told, and it is mended as far as it can be from this side.

Looked at with each heartbeat, so that the session is heard by definition.  What the broker took back was paid with credit, and perhaps the worker
does not know that it can allow others: one of these deliveries at a time is given back.  Beyond that nobody is delivered more than was allowed: who
allows nothing may mean it.
"""

from __future__ import annotations

from collections.abc import Callable

from taskq.core.consumer import Consumer

BEATS_MAX = 2


def look(consumer: Consumer, waiting: Callable[[Consumer], str]) -> str | None:
    """A heartbeat came while the session holds nothing.  None: all is well.  Else it stands, and this is to be said, "" if it was said before.
    `waiting`: a queue with tasks that it could run now, "" for none."""
    idle = consumer.idle
    if idle.delivered != consumer.delivered:
        idle.beats, idle.delivered, idle.named = 0, consumer.delivered, False
    idle.beats += 1
    if idle.beats <= BEATS_MAX or consumer.choked or not _is_due(consumer):
        return None
    queue = waiting(consumer)
    if not queue:
        return None
    told = "" if idle.named else _words(consumer, queue)
    idle.named = True
    if consumer.room <= 0 and consumer.taken_back:
        consumer.taken_back -= 1
        consumer.allowed = consumer.delivered + 1
    return told


def _is_due(consumer: Consumer) -> bool:
    """With room, to have nothing to do is the rule, and is looked into ever more rarely."""
    beats = consumer.idle.beats
    return consumer.room <= 0 or beats & (beats - 1) == 0


def _words(consumer: Consumer, queue: str) -> str:
    begin = f"worker {consumer.name} (session {consumer.session.hex()[:8]}) is connected and runs nothing, while tasks of queue {queue} wait: "
    if consumer.room > 0:
        return begin + f"it would take {consumer.room}; they are offered to it again"
    if consumer.taken_back:
        return begin + f"it allows no more, but {consumer.taken_back} deliveries were taken back from it; it is given one for that"
    return begin + "it allows no more; the worker has to send CREDIT, or allowed in its HEARTBEAT"
