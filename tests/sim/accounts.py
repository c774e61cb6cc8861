"""That broker and workers agree about credit: none that is well and holds nothing stands.  Of a worker that tells its room the broker knows it soon;
any other is given tasks when there are some that it could run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.history import Violation

from taskq.core.grant import waiting_for

if TYPE_CHECKING:
    from sim.clients import Worker

# two heartbeats and the third that mends, and what waits for the network and the disk
STAND_S = 30.0


class Accounts:
    """Looked at again and again.  `since`: the time since which a worker stands, and what it had been delivered by then."""

    def __init__(self) -> None:
        self.since: dict[Worker, tuple[float, int]] = {}

    def look(self, node: Any, workers: list[Worker], now_s: float) -> None:
        for worker in workers:
            consumer = node.session(worker.channel.link.session)
            if not worker.could_take or consumer is None or not self._stands(node, worker, consumer):
                self.since.pop(worker, None)
                continue
            since_s, delivered = self.since.setdefault(worker, (now_s, consumer.delivered))
            if delivered != consumer.delivered:
                del self.since[worker]
            elif now_s - since_s > STAND_S:
                raise Violation(f"{worker.name} stands: it has room for {worker.room_now}, the broker knows of {consumer.room}")

    def _stands(self, node: Any, worker: Worker, consumer: Any) -> bool:
        there = consumer.origin and not consumer.over and not consumer.choked and consumer.queues
        holds = any(consumer.session in shard.held for shard in node.shards)
        return bool(there and not holds and ((worker.tells_room and consumer.room <= 0) or waiting_for(node.shards, consumer)))
