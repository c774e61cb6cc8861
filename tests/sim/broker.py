"""The broker of the simulation: the real node, with its disk, sockets and clock replaced; and the machine on which it dies and starts again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from sim.disk import Disk, DiskThread, SimJournal, SimStore
from sim.history import Fact
from sim.loop import Process, VirtualLoop

from taskq.actors.shard import ShardActor
from taskq.config import BrokerConfig
from taskq.core import records as r
from taskq.core.effects import Effects, Forgotten, Reply
from taskq.core.messages import DURABILITY
from taskq.core.ring import Ring
from taskq.core.session import House, Terms
from taskq.core.shard import Shard
from taskq.node import GRACE_OF_LEASE, Node
from taskq.storage.recovery import load, recover

START_MS = 1_700_000_000_000
SECRET_KEY = bytes(32)


class WallClock:
    """Wall time over the virtual seconds; it jumps forward when told to."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jumped_ms = 0

    def now_ms(self) -> int:
        return START_MS + int(self._loop.seconds * 1000) + self.jumped_ms


@attrs.define
class Watch:
    """What the world wants to know of a broker."""

    facts: Callable[[SimNode, list[Fact]], None]
    recovered: Callable[[SimNode, SimStore], None]
    pruned: Callable[[list[bytes]], None]
    wrong: Callable[[str], None]


class _WatchedShard(ShardActor):
    """A bug in a decision costs a connection in production, and the run here."""

    wrong: Callable[[str], None]

    def _carry(self, effects: Effects) -> None:
        for command, bug in effects.bugs:
            self.wrong(f"{type(command.message).__name__} could not be decided: {bug!r}")
        super()._carry(effects)


class SimNode(Node):
    """See the module.  Everything else is the node's own: shards, journal, store, listener, sessions, and the order in which they start and stop."""

    def __init__(self, config: BrokerConfig, clock: WallClock, disk: Disk, rng: random.Random, watch: Watch, hot_bytes_max: int) -> None:
        super().__init__(config, clock)
        self._rng = rng
        self._disk = disk
        self._watch = watch
        self._hot_bytes_max = hot_bytes_max
        self.ready = False

    async def _assemble(self) -> None:
        config, enter, watch = self.config, self._parts.enter_async_context, self._watch
        store, files = SimStore(self._disk, watch.pruned, watch.wrong), SimJournal(self._disk)
        recovered = await recover(store, files)
        watch.recovered(self, store)
        shared = self._shared(recovered)
        shared.budget.bytes_max = self._hot_bytes_max
        shards = [Shard(index, config.shards, shared) for index in range(config.shards)]
        await load(store, shards, self.clock.now_ms(), recovered.queue_bytes)
        self._house = self._make_house(shared, recovered.epoch)
        self._journal = await enter(self._journaling(files, recovered.next_lsn))
        self._journal._jobs.put(None)
        self._journal._thread.join()
        self._journal._jobs = self._journal._thread = DiskThread(self._loop, self._disk, self._crashed)
        self._shards = [_WatchedShard(self._loop, self._crashed, shard, self.clock, self._submit, self._load) for shard in shards]
        for actor in self._shards:
            actor.wrong = watch.wrong
        self._store = await enter(self._storing(store, shared))
        self._listener = await enter(self._listening())
        for actor in self._shards:
            actor.wake()
        self._pulse()
        self.ready = True

    def _make_house(self, shared: Any, epoch: int) -> House:
        config, limits = self.config, {"payload_bytes_max": self.config.payload_bytes_max, "frame_bytes_max": self.config.frame_bytes_max}
        heartbeat_ms, lease_ms = round(config.heartbeat * 1000), round(config.lease * 1000)
        terms = Terms(epoch, heartbeat_ms, lease_ms, round(lease_ms * GRACE_OF_LEASE), limits, SECRET_KEY)
        self._admission, self._consumers = shared.admission, shared.consumers
        return House(Ring(config.shards), terms, shared.consumers, self._rng, self.describe)

    def _load(self, actor: ShardActor, loads: list[Any]) -> None:
        self._store.load(actor, loads)

    def _submit(self, records: list[Any], replies: list[Reply]) -> None:
        first_lsn, now_ms = self._journal.last_lsn + 1, self.clock.now_ms()
        if records:
            self._watch.facts(self, [Fact(lsn, record, now_ms, self._types(record)) for lsn, record in enumerate(records, first_lsn)])
        self._journal.submit(records, replies)

    def _types(self, record: Any) -> frozenset[str]:
        return self._consumers[record.session].task_types if type(record) is r.Granted else frozenset()

    @property
    def shards(self) -> list[Shard]:
        return [actor.shard for actor in self._shards]

    @property
    def forgotten(self) -> Counter[str]:
        """The dead letters of each queue that the store has deleted, and that their shard has not heard of yet."""
        found: Counter[str] = Counter()
        for actor in self._shards:
            for command in actor._mailbox:
                if type(command.message) is Forgotten:
                    found[command.message.queue] += command.message.tasks
        return found

    def session(self, session: bytes) -> Any:
        return self._consumers.get(session)


@attrs.define(eq=False)
class Machine:
    """Where brokers run, one after the other."""

    loop: VirtualLoop
    rng: random.Random
    clock: WallClock
    disk: Disk
    config: BrokerConfig
    watch: Watch
    hot_bytes_max: int
    process: Process = attrs.field(init=False)
    node: SimNode | None = None
    starts: int = 0

    @property
    def mode(self) -> int:
        return DURABILITY.index(self.config.durability)

    def start(self, shards: int, on_failure: Callable[[BaseException], None]) -> None:
        """Start a broker over what the disk holds."""
        self.starts += 1
        self.process = process = Process(self.loop, f"broker {self.starts}")
        self.config = attrs.evolve(self.config, shards=shards)
        self.node = node = SimNode(self.config, self.clock, self.disk, self.rng, self.watch, self.hot_bytes_max)

        async def life() -> None:
            try:
                await node.start()
                await node.failed
            except Exception as failure:
                on_failure(failure)

        process.spawn(life())
