"""One run of the simulation: a seed makes a broker, producers, workers, and everything that goes wrong; then all is healed, and must come to rest.

The seed decides everything: the sizes, the durability mode, what clients do, where bytes are cut, when the disk is slow, who dies.  A broken rule
ends the run with a `Violation` that names the seed and shows the end of the trace.  Two runs of one seed have the same digest.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from sim.accounts import Accounts
from sim.broker import Machine, SimNode, Wall, Watch
from sim.caller import Caller
from sim.clients import Producer, Scene, Worker
from sim.disk import Disk, SimStore
from sim.files import System
from sim.history import Fact, History, Violation, split
from sim.loop import VirtualLoop
from sim.misfortunes import MISFORTUNES
from sim.network import Network, bind

from taskq import clock
from taskq.actors import http, listener, store
from taskq.config import BrokerConfig
from taskq.core import horizon, line, queue
from taskq.core import records as r
from taskq.core.messages import FSYNC, MEMORY
from taskq.storage import files, journal, recovery
from taskq.storage.rows import task_of

QUEUES = ("mail", "build", "index", "report")
TASK_TYPES = ("send", "make", "scan")
TRACE_LINES = 60
PLAY_S = (20.0, 60.0)
REST_S = 900
LOOK_S = 0.5
LEASE_S = 15.0


@attrs.frozen
class Outcome:
    """A run that kept all promises."""

    seed: int
    digest: str
    seconds: float
    facts: int
    starts: int
    power_losses: int
    failpoints: int
    acknowledged: int
    forgiven: int
    faults: dict[str, int]


@attrs.frozen
class Sizes:
    """The bounds of memory, so small that a run meets them all."""

    line_hot_min: int
    load_tasks: int
    batch_bytes: int
    recovery_tasks: int
    hot_bytes_max: int
    flush_s: float
    flush_tasks: int
    segment_bytes: int
    near_tasks: int

    @classmethod
    def drawn(cls, rng: random.Random) -> Sizes:
        return cls(
            line_hot_min=rng.choice([1, 2, 5, 1_000]),
            load_tasks=rng.choice([2, 4, 8, 2_000]),
            batch_bytes=rng.choice([1, 5_000, 1 << 20]),
            recovery_tasks=rng.choice([1, 3, 10_000]),
            hot_bytes_max=rng.choice([0, 3_000, 1 << 27]),
            flush_s=rng.choice([0.02, 0.1, 1.0]),
            flush_tasks=rng.choice([1, 10, 40_000]),
            segment_bytes=rng.choice([1, 4_000, 1 << 26]),
            near_tasks=rng.choice([1, 2, 5, 20_000]),
        )

    @contextmanager
    def applied(self, wall: Wall) -> Iterator[None]:
        """The limits of the core are this small for as long as the run takes; the journal's files and all clocks are the simulation's."""
        system = System()
        replaced: tuple[tuple[Any, str, Any], ...] = (
            (clock, "time", wall),
            (listener, "bind", bind),
            (http, "bind", bind),
            (journal, "os", system),
            (files, "os", system),
            (line, "LINE_HOT_MIN", self.line_hot_min),
            (queue, "LOAD_TASKS", self.load_tasks),
            (horizon, "NEAR_TASKS", self.near_tasks),
            (store, "NEAR_TASKS", self.near_tasks),
            (line, "BATCH_BYTES", self.batch_bytes),
            (recovery, "FLUSH_TASKS", self.recovery_tasks),
            (recovery, "PAGE_ROWS", self.recovery_tasks),
            (store, "FLUSH_S", self.flush_s),
            (store, "FLUSH_TASKS", self.flush_tasks),
            (store, "SLICE_TASKS", 2),
        )
        before = [getattr(module, name) for module, name, _ in replaced]
        for module, name, value in replaced:
            setattr(module, name, value)
        try:
            yield
        finally:
            for (module, name, _), value in zip(replaced, before, strict=True):
                setattr(module, name, value)


@contextmanager
def quiet() -> Iterator[None]:
    """What crashes on purpose is not logged, and no finaliser runs in the middle of a run."""
    collecting = gc.isenabled()
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if collecting:
            gc.enable()


class World:
    """See the module."""

    def __init__(self, seed: int, *, echo: bool = False) -> None:
        self.seed, self.echo = seed, echo
        self.rng = rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.context = contextvars.Context()
        self.loop.set_exception_handler(self._exception)
        self.over: asyncio.Future[None] = self.loop.create_future()
        self.clock = Wall(self.loop)
        self.network = self.loop.network = Network(self.loop, rng)
        self.disk = Disk(rng)
        self.disk.strike, self.disk.on_fault = self._struck, self._faulted
        self.history = History()
        self.accounts = Accounts()
        self.sizes = Sizes.drawn(rng)
        self.lines: deque[str] = deque(maxlen=TRACE_LINES)
        self.hash = hashlib.blake2b(digest_size=16)
        self.faults: dict[str, int] = {}
        self.facts = self.power_losses = self.struck = 0
        self.faulty = self.stopping = self.checking = False
        watch = Watch(self._facts, self._recovered, self._pruned, self.fail)
        self.machine = Machine(self.loop, rng, self.disk, self._config(), watch, self.sizes.hot_bytes_max, self.sizes.segment_bytes)
        queues, task_types = list(QUEUES[: rng.randrange(1, 5)]), list(TASK_TYPES[: rng.randrange(1, 4)])
        self.scene = Scene(self.loop, rng, self.clock, self.network, self.history, self.trace, self.fail, queues, task_types)
        self.producers: list[Producer] = []
        self.callers: list[Caller] = []
        self.workers: list[Worker] = []
        self.born = 0

    def _config(self) -> BrokerConfig:
        rng = self.rng
        return BrokerConfig(
            listen="127.0.0.1:7000",
            http="127.0.0.1:3000",
            durability=rng.choice(["fsync", "fsync", "os", "memory"]),
            shards=rng.choice([1, 2, 4]),
            lease=LEASE_S,
            retention_completed=rng.choice([120.0, 86_400.0]),
            retention_failed=rng.choice([120.0, 86_400.0]),
            finished_rows_max=rng.choice([10, 1_000_000]),
        )

    # ---- the run

    def run(self) -> Outcome:
        """Raises Violation."""
        with quiet(), self.sizes.applied(self.clock):
            try:
                self.loop.run_until_complete(self._guarded())
            finally:
                self._end()
        return Outcome(
            self.seed, self.hash.hexdigest(), self.loop.seconds, self.facts, self.machine.starts, self.power_losses, self.struck,
            len(self.history.acknowledged), self.history.forgiven, self.faults,
        )  # fmt: skip

    def _end(self) -> None:
        for client in self.clients():
            client.process.kill()
        self.machine.process.kill()
        self.loop.discard()

    async def _guarded(self) -> None:
        play = self.loop.create_task(self._play())
        await asyncio.wait([play, self.over], return_when=asyncio.FIRST_COMPLETED)
        if self.over.done():
            play.cancel()
            await self.over
        await play

    async def _play(self) -> None:
        self._start()
        for _ in range(self.rng.randrange(1, 4)):
            self.born += 1
            self.producers.append(Producer(self.scene, f"producer {self.born}"))
        if self.rng.random() < 0.5:
            self.born += 1
            self.callers.append(Caller(self.scene, f"caller {self.born}"))
        for _ in range(self.rng.randrange(1, 5)):
            self.hire()
        watch = self.loop.create_task(self._watch())
        until_s = self.rng.uniform(*PLAY_S)
        while self.loop.seconds < until_s:
            await self._sleep(0.1, 5.0)
            self._misfortune()
        await self._come_to_rest()
        watch.cancel()
        await self._last_start()

    def later(self, after_s: float, callback: Callable[[], object]) -> None:
        """Out of the hands of whoever calls, who may be dead by then."""
        self.loop.call_later(after_s, callback, context=self.context)

    async def _sleep(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(least_s, most_s))

    async def _watch(self) -> None:
        """Look at the shards from outside, again and again."""
        while True:
            await asyncio.sleep(LOOK_S)
            node = self.machine.node
            if self.machine.process.alive and node is not None and node.ready and not node.failed.done():
                self._check(self.history.check_shards, node.shards, node.forgotten)
                self._check(self.accounts.look, node, self.workers, self.loop.seconds)

    # ---- the broker lives and dies

    def _start(self) -> None:
        self.stopping = False
        self.trace("world", "the broker starts")
        self.machine.start(self.rng.choice([1, 2, 4, self.machine.config.shards]), self._failed)

    def start_later(self) -> None:
        self.later(self.rng.uniform(0.05, 4.0), self._start)

    def _failed(self, failure: BaseException) -> None:
        if not self.faulty:
            self.fail(f"the broker crashed: {failure!r}")
            return
        self.faulty = False
        self.die(self.rng.random() < 0.5)
        self.start_later()

    def _faulted(self) -> None:
        self.faulty = True
        self.struck += 1
        self.trace("world", "the disk fails")

    def _struck(self, where: str) -> None:
        self.struck += 1
        self.trace("world", f"struck {where}")
        self.die(self.rng.random() < 0.5)
        self.start_later()

    def die(self, power: bool) -> None:
        """The broker's process is gone, or its whole machine."""
        machine = self.machine
        strict = machine.mode == FSYNC or (machine.mode != MEMORY and not power)
        machine.process.kill()
        self.network.died(machine.process, silently=power or not strict)
        self.disk.armed = ""
        before, durable = self.disk.end_lsn, self.disk.durable_lsn
        self.disk.crash(power)
        self.trace("world", f"{'power loss' if power else 'kill -9'}: of LSN {before}, {durable} synced, the disk has {self.disk.end_lsn}")
        self.power_losses += power
        self._check(lambda: self.history.crashed(self.disk.end_lsn, strict=strict))

    def free(self) -> None:
        self.trace("world", "the disk has room again")
        self.disk.room = None

    async def stop(self) -> None:
        """An orderly end, in the broker's own process."""
        node, machine = self.machine.node, self.machine
        await node.drain(self.rng.uniform(0.0, 5.0))
        try:
            await node.stop()
        except OSError as failure:
            if not node.failed.done():
                self._failed(failure)
        if node.failed.done() or not machine.process.alive:
            return
        self.trace("world", "the broker has stopped")
        machine.process.kill()
        self.network.died(machine.process, silently=False)
        if list(self.disk.path.iterdir()):
            self.fail("a clean stop left records in the journal")
        self._check(lambda: self.history.crashed(self.disk.end_lsn, strict=True))
        if not self.checking:
            self.start_later()

    # ---- who is there

    @property
    def broker_lives(self) -> bool:
        return self.machine.process.alive and self.machine.node is not None and not self.stopping

    def any_worker(self) -> Worker | None:
        alive = [worker for worker in self.workers if worker.process.alive and not worker.stopped]
        return self.rng.choice(alive) if alive else None

    def clients(self) -> list[Any]:
        keepers = [worker.keeper for worker in self.workers if worker.keeper is not None]
        return [*self.producers, *self.callers, *self.workers, *keepers]

    def hire(self) -> None:
        self.born += 1
        self.workers.append(Worker(self.scene, f"worker {self.born}", keeper=self.rng.random() < 0.5))

    def _misfortune(self) -> None:
        name = self.rng.choices(list(MISFORTUNES), [weight for weight, _ in MISFORTUNES.values()])[0]
        if MISFORTUNES[name][1](self):
            self.faults[name] = self.faults.get(name, 0) + 1

    # ---- the end

    async def _come_to_rest(self) -> None:
        """All is healed; every task must become final, and every request be answered."""
        self.trace("world", "all is healed")
        self.scene.calm = self.network.healed = True
        self.disk.armed, self.disk.room = "", None
        self.clock.catch_up()
        blocked = [worker for worker in self.workers if worker.blocked]  # no network and no disk ends that, they have to come back by themselves
        for client in self.clients():
            self.network.reach(client.process)
            if client.process.frozen and client not in blocked:
                client.process.thaw()
        self.born += 1
        last = Worker(self.scene, f"worker {self.born}", keeper=False)
        last.queues, last.task_types, last.concurrency = self.scene.queues, self.scene.task_types, 20
        self.workers.append(last)
        for _ in range(REST_S):
            await asyncio.sleep(1.0)
            if self._is_at_rest():
                return
        for producer in self.producers:
            if not producer.channel.link.idle:
                self.fail(f"a request of {producer.name} is never answered")
        for producer in self.producers:
            if producer.open:
                self.fail(f"{producer.name} was never told what became of {len(producer.open)} requests")
        self._check(self.history.check_end)
        self.fail("the broker does not come back")

    def _is_at_rest(self) -> bool:
        node = self.machine.node
        ready = self.machine.process.alive and node is not None and node.ready and not node.failed.done()
        idle = all(producer.channel.link.idle for producer in self.producers) and all(caller.idle for caller in self.callers)
        idle = idle and not self.accounts.since and not any(worker.blocked for worker in self.workers if worker.process.alive)
        return ready and idle and all(task.state in ("completed", "failed", "cancelled") for task in self.history.model.tasks.values())

    async def _last_start(self) -> None:
        """A clean stop and one more start: what is stored is what was decided."""
        self._check(self.history.check_end)
        self._check(self.history.check_shards, self.machine.node.shards, self.machine.node.forgotten)
        self.checking = True
        await self.machine.process.spawn(self.stop())
        self._start()
        while not self.machine.node.ready:
            await asyncio.sleep(0.1)
        self._check(self.history.check_end)

    # ---- what is watched

    def _facts(self, node: SimNode, facts: list[Fact]) -> None:
        for fact in facts:
            self.facts += 1
            self.trace("broker", f"{fact.lsn} {told(fact.record)}")
            self._check(self.history.model.add, fact)
            if type(fact.record) is r.Ended:
                self._check(self._check_expiry, node, fact.record)

    def _check_expiry(self, node: SimNode, record: r.Ended) -> None:
        """A worker that was well and connected loses no lease for want of a sign of life."""
        for task_id, outcome, error in zip(split(record.ids, 16), record.outcomes, r.column(record.errors, len(record.outcomes)), strict=True):
            if outcome != "crashed" or "nothing was heard" not in error:
                continue
            for worker in self.workers:
                well = worker.process.alive and not worker.process.frozen and worker.process not in self.network.unreachable
                calm = self.loop.seconds - worker.troubled_s > LEASE_S + 5.0 and not worker.stopped
                holds = any(run.id == task_id and not run.lost for run in worker.runs.values())
                if well and calm and holds and worker.channel.link.state == "ready":
                    raise Violation(f"the lease of task {task_id.hex()} expired, but {worker.name} is well")

    def _recovered(self, node: SimNode, stored: SimStore, last_lsn: int) -> None:
        contents = stored.contents
        if last_lsn != self.history.model.last_lsn:
            self.fail(f"recovery has found LSN {last_lsn}, the disk had {self.history.model.last_lsn}")
        self._check(self.history.check_store, [task_of(row) for row in (*contents.tasks.values(), *contents.finished)])

    def _pruned(self, gone: list[bytes]) -> None:
        if gone:
            self.trace("broker", f"pruned {' '.join(task_id.hex()[-8:] for task_id in gone)}")
            self.history.model.prune(gone)

    def _check(self, check: Any, *args: Any) -> None:
        try:
            check(*args)
        except AssertionError as violation:
            self.fail(str(violation) or repr(violation))

    def _exception(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None or "never retrieved" in context["message"]:
            return
        self.fail(str(error) if isinstance(error, Violation) else f"{context['message']}: {error!r}")

    def fail(self, text: str) -> None:
        """The first broken rule ends the run."""
        if not self.over.done():
            self.trace("world", f"VIOLATION {text}")
            lines = "\n".join(self.lines)
            self.over.set_exception(Violation(f"seed {self.seed}: {text}\n{lines}\nseed {self.seed}: {text}"))

    def trace(self, who: str, text: str) -> None:
        line = f"{self.loop.seconds:10.4f}  {who:<20} {text}"
        self.hash.update(line.encode())
        self.lines.append(line)
        if self.echo:
            print(line)


def told(record: Any) -> str:
    """A record in one short line."""
    ids = " ".join(task_id.hex()[-8:] for task_id in split(record.ids, 16))
    names = ("queue", "worker", "tokens", "first", "outcomes", "states", "dues_ms", "first_seq", "first_position", "errors")
    rest = {name: getattr(record, name) for name in names if hasattr(record, name)}
    return f"{type(record).__name__} [{ids}] " + " ".join(
        f"{name}={value.hex() if isinstance(value, bytes) else value}" for name, value in rest.items()
    )


def simulate(seed: int, *, echo: bool = False) -> Outcome:
    """Run one seed; raises Violation."""
    return World(seed, echo=echo).run()
