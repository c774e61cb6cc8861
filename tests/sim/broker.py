"""The broker of the simulation: the real node, with its disk, sockets and clock replaced; and the machine on which it dies and starts again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
from sim.disk import Disk, DiskThread, SimStore
from sim.history import Fact
from sim.loop import Process, VirtualLoop

from taskq.actors.local import LocalSession
from taskq.actors.shard import ShardActor
from taskq.clock import SystemClock
from taskq.config import BrokerConfig
from taskq.core import records as r
from taskq.core.effects import Command, Effects, Forgotten, Reply
from taskq.core.grant import waiting_for
from taskq.core.house import House, Terms
from taskq.core.messages import DURABILITY
from taskq.core.ring import Ring
from taskq.core.shard import Shard
from taskq.ids import slot_of_id
from taskq.node import GRACE_OF_LEASE, Node
from taskq.storage.journal import FileJournal
from taskq.storage.recovery import load, recover

START_MS = 1_700_000_000_000
SECRET_KEY = bytes(32)


class Wall:
    """The clock on the wall over the virtual seconds, which jumps when told to, in both directions.  In the place of the module `time` for the
    real SystemClock of each broker; clients read it as it is."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jumped_ms = self.jumped_ms_max = 0

    def jump(self, ms: int) -> None:
        self.jumped_ms += ms
        self.jumped_ms_max = max(self.jumped_ms_max, self.jumped_ms)

    def catch_up(self) -> None:
        """It shows the latest time that it has ever shown, and what has passed since."""
        self.jumped_ms = self.jumped_ms_max

    def now_ms(self) -> int:
        return self.time_ns() // 1_000_000

    def time_ns(self) -> int:
        return (START_MS + self.jumped_ms) * 1_000_000 + int(self._loop.seconds * 1e9)

    def monotonic_ns(self) -> int:
        return int(self._loop.seconds * 1e9)


@attrs.define
class Watch:
    """What the world wants to know of a broker."""

    facts: Callable[[SimNode, list[Fact]], None]
    recovered: Callable[[SimNode, SimStore, int], None]
    pruned: Callable[[list[bytes]], None]
    wrong: Callable[[str], None]


class _WatchedShard(ShardActor):
    """A bug in a decision costs a connection in production, and the run here.  `forgotten`: dead letters that the store has deleted and that the
    shard has not heard of yet, or never will, since it has stopped: the next start counts anew."""

    wrong: Callable[[str], None]
    _unheard: tuple[Command, ...] = ()

    @property
    def forgotten(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for command in (*self._mailbox, *self._waiting, *self._unheard):
            if type(command.message) is Forgotten:
                found[command.message.queue] += command.message.tasks
        return found

    def tell(self, message: Command) -> None:
        if self._stopped:
            self._unheard += (message,)
        super().tell(message)

    def stop(self) -> None:
        self._unheard += (*self._mailbox, *self._waiting)
        super().stop()

    def _carry(self, effects: Effects) -> None:
        for command, bug in effects.bugs:
            self.wrong(f"{type(command.message).__name__} could not be decided: {bug!r}")
        super()._carry(effects)


class SimNode(Node):
    """See the module.  Everything else is the node's own: shards, journal, store, listener, sessions, and the order in which they start and stop."""

    def __init__(self, config: BrokerConfig, disk: Disk, rng: random.Random, watch: Watch, hot_bytes_max: int, segment_bytes: int) -> None:
        super().__init__(config, SystemClock())
        self._rng = rng
        self._disk = disk
        self._watch = watch
        self._hot_bytes_max, self._segment_bytes = hot_bytes_max, segment_bytes
        self.ready = False

    async def _assemble(self) -> None:
        config, enter, watch = self.config, self._parts.enter_async_context, self._watch
        store, files = SimStore(self._disk, watch.pruned, watch.wrong), FileJournal(self._disk.path, self._segment_bytes)  # type: ignore[arg-type]
        recovered = await recover(store, files)
        store.recovered = True
        watch.recovered(self, store, recovered.next_lsn - 1)
        shared = self._shared(recovered)
        shared.budget.bytes_max = self._hot_bytes_max
        shards = [Shard(index, config.shards, shared) for index in range(config.shards)]
        await load(store, shards, self.clock.steady_ms(), recovered.queue_bytes)
        self._house = self._make_house(shared, recovered.epoch, shards)
        self._journal = await enter(self._journaling(files, recovered.next_lsn))
        self._journal._jobs.put(None)
        self._journal._thread.join()
        self._journal._jobs = self._journal._thread = DiskThread(self._loop, self._disk, self._crashed)
        self._shards = [_WatchedShard(self._loop, self._crashed, shard, self.clock, self._submit, self._load, self._tell) for shard in shards]
        for actor in self._shards:
            actor.wrong = watch.wrong
        self._store = await enter(self._storing(store, shared))
        self._local = LocalSession(self._house, self.clock.steady_ms, self._tell)
        self._listener = await enter(self._listening())
        await enter(self._serving_http())
        for actor in self._shards:
            actor.wake()
        self._pulse()
        self.ready = True

    def _make_house(self, shared: Any, epoch: int, shards: list[Shard]) -> House:
        config, limits = self.config, {"payload_bytes_max": self.config.payload_bytes_max, "frame_bytes_max": self.config.frame_bytes_max}
        heartbeat_ms, lease_ms = round(config.heartbeat * 1000), round(config.lease * 1000)
        terms = Terms(epoch, heartbeat_ms, lease_ms, round(lease_ms * GRACE_OF_LEASE), limits, SECRET_KEY)
        self._admission, self._consumers = shared.admission, shared.consumers
        held, waiting = [shard.held for shard in shards], partial(waiting_for, shards)
        return House(
            Ring(config.shards, config.payload_bytes_max), terms, shared.consumers, self._rng, self.describe, held, ids=shared.ids, waiting=waiting
        )

    def _load(self, actor: ShardActor, loads: list[Any]) -> None:
        self._store.load(actor, loads)

    def _submit(self, records: list[Any], replies: list[Reply]) -> None:
        first_lsn, now_ms = self._journal.last_lsn + 1, self.clock.now_ms()
        if records:
            self._watch.facts(self, [self._fact(lsn, record, now_ms) for lsn, record in enumerate(records, first_lsn)])
        self._journal.submit(records, replies)

    def _fact(self, lsn: int, record: Any, now_ms: int) -> Fact:
        if type(record) is not r.Granted:
            return Fact(lsn, record, now_ms)
        consumer = self._consumers[record.session]
        return Fact(lsn, record, now_ms, consumer.task_types, self._passed_over(consumer, slot_of_id(record.ids), record.ids[:16]))

    def _passed_over(self, consumer: Any, slot: int, task_id: bytes) -> str:
        """A queue of another shard that the session prefers to that of this task, with tasks that it could have been given."""
        granting = next(shard for shard in self.shards if shard.owns_slot(slot))
        ranks = dict(zip(consumer.queues, consumer.ranks, strict=True))
        mine = ranks.get(granting.tasks[task_id].queue, 0)
        for shard in self.shards:
            for name, queue in shard.queues.items() if shard is not granting else ():
                line = queue.picker(consumer.task_types).first()
                if ranks.get(name, mine) < mine and line is not None and line.hot:
                    return name
        return ""

    @property
    def shards(self) -> list[Shard]:
        return [actor.shard for actor in self._shards]

    @property
    def forgotten(self) -> Counter[str]:
        return sum((actor.forgotten for actor in self._shards), Counter())

    def session(self, session: bytes) -> Any:
        return self._consumers.get(session)


@attrs.define(eq=False)
class Machine:
    """Where brokers run, one after the other."""

    loop: VirtualLoop
    rng: random.Random
    disk: Disk
    config: BrokerConfig
    watch: Watch
    hot_bytes_max: int
    segment_bytes: int
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
        self.node = node = SimNode(self.config, self.disk, self.rng, self.watch, self.hot_bytes_max, self.segment_bytes)

        async def life() -> None:
            try:
                await node.start()
                await node.failed
            except Exception as failure:
                on_failure(failure)

        process.spawn(life())
