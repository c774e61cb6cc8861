"""A small world for the core: real shards and sessions, a store in memory, and time that is moved by hand.

`World` is the broker without actors: it carries commands from sessions to shards, answers from shards to sessions, and answers the loads from
the store, in the order in which the actors do.  `Peer` is a client; `Worker` is one that works and remembers what was delivered to it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import attrs

from taskq.core import effects as fx
from taskq.core import horizon
from taskq.core import messages as m
from taskq.core.admission import Limits
from taskq.core.book import EVERYTHING, Sequence64, Shared
from taskq.core.grant import waiting_for
from taskq.core.house import House, Terms
from taskq.core.line import Budget
from taskq.core.recent import Recent
from taskq.core.ring import Ring
from taskq.core.session import Session
from taskq.core.shard import Shard
from taskq.core.task import PENDING, Task
from taskq.ids import NIL, make_id, slot_of_queue, split
from taskq.storage.base import Row, WriteBatch
from taskq.storage.memory import MemoryStore
from taskq.storage.recovery import load
from taskq.storage.rows import QUEUE_BYTES, batch_of, size_names, task_of

NOW_MS = 1_700_000_000_000
LEASE_MS, GRACE_MS, HEARTBEAT_MS = 15_000, 15_000, 5_000
HOT_BYTES = 128 << 20
PASS_MS = 500


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never has to wait."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the store in memory waited")


class World:
    """`hold_loads`: questions to the store pile up in `loads` until `answer_loads`.  `records`: all that was ever decided."""

    def __init__(self, *, shards: int = 1, budget_bytes: int = HOT_BYTES, **limits: int) -> None:
        self.now_ms = NOW_MS
        self.wall: Callable[[int], int] = lambda steady_ms: steady_ms
        self.rng, self._session_rng = random.Random(2), random.Random(1)
        self.ring = Ring(shards)
        self.store = MemoryStore()
        self.shared = Shared(Sequence64(1), Sequence64(1), Budget(budget_bytes), random.Random(0), Limits(lease_ms=LEASE_MS, **limits))
        self.shards = [Shard(index, shards, self.shared) for index in range(shards)]
        self.house = self._house()
        self.peers: dict[int, Peer] = {}
        self.records: list[Any] = []
        self.told: list[tuple[str, Any]] = []
        self.notices: list[str] = []
        self.mail: list[tuple[int, fx.Command]] = []
        self.loads: list[tuple[int, Any]] = []
        self.flushing: list[tuple[int, list[Task], WriteBatch]] = []
        self.bugs: list[tuple[fx.Command, Exception]] = []
        self.hold_loads = False
        self.wake_at_ms = 0
        self.page = horizon.NEAR_TASKS
        self._origins = 0
        self.client = Peer(self, "producer", "client")

    def _house(self) -> House:
        terms = Terms(1, HEARTBEAT_MS, LEASE_MS, GRACE_MS, {}, b"key")
        held = [shard.held for shard in self.shards]
        waiting = partial(waiting_for, self.shards)
        return House(self.ring, terms, self.shared.consumers, self._session_rng, lambda: {"version": "test"}, held, waiting=waiting)

    @property
    def shard(self) -> Shard:
        return self.shards[0]

    def enter(self, peer: Peer) -> int:
        self._origins += 1
        self.peers[self._origins] = peer
        return self._origins

    # ---- the flow ----------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Carry commands and answers until nothing moves any more."""
        while True:
            for peer in list(self.peers.values()):
                peer.collect()
            if not self.mail and self.loads and not self.hold_loads:
                self.answer_loads()
            elif not self.mail and not self.hold_loads and self._look_ahead():
                continue
            elif not self.mail:
                return
            mail, self.mail = self.mail, []
            for index in dict.fromkeys(index for index, _ in mail):
                self.turn(index, [command for to, command in mail if to == index])

    def turn(self, index: int, commands: Sequence[fx.Command]) -> fx.Effects:
        """One turn of one shard; its answers go to the sessions."""
        effects = self.shards[index].turn(commands, self.wall(self.now_ms), self.now_ms)
        self.records += effects.records
        self.told += [("journal", record) for record in effects.records]
        self.loads += [(index, each) for each in effects.loads]
        self.bugs += effects.bugs
        self.mail += effects.offers
        self.wake_at_ms = effects.wake_at_ms
        for reply in effects.replies:
            peer = self.peers.get(reply.origin)
            if peer is not None:
                peer.session.answered(reply.seq, reply.part, reply.message, self.now_ms)
                peer.collect()
        return effects

    def answer_loads(self) -> None:
        """The store answers everything it was asked, after the flush that is under way."""
        self.end_flush()
        loads, self.loads = self.loads, []
        for index, each in loads:
            if isinstance(each, fx.FindLoad):
                rows = at_once(self.store.find(each.ids, each.keys))
                self.mail.append(
                    (index, fx.Command(0, 0, fx.Found(each.parked, [task_of(row, whole=type(each.parked.message) is m.Get) for row in rows])))
                )
            else:
                self.mail.append((index, fx.Command(0, 0, fx.LineLoaded(each, [task_of(row) for row in self._line(each)]))))

    def _line(self, load: fx.LineLoad) -> list[Row]:
        wanted = load.queue, load.priority, load.task_type, PENDING, load.after_position, load.limit
        rows: list[Row] = at_once(self.store.line(*wanted))
        if not rows:
            self.flush()
            rows = at_once(self.store.line(*wanted))
        return rows

    def _look_ahead(self) -> bool:
        """What the store's actor does with timed tasks; whether there was something to do."""
        if not (horizon.is_crowded(self.shards, self.page) or horizon.runs_short(self.shards, self.page)):
            return False
        page = self.page = horizon.page_tasks(self.shards)
        if horizon.is_crowded(self.shards, page):
            self.end_flush()
            for shard in self.shards:
                horizon.narrow(shard, (self.wall(self.now_ms), 0))
            self.flush()
        rows = at_once(self.store.due(*min(shard.horizon for shard in self.shards), page))
        tasks = [task_of(row) for row in rows]
        until = EVERYTHING if len(rows) < page else (tasks[-1].due_ms, tasks[-1].seq)
        for index, shard in enumerate(self.shards):
            shard.is_loading_due = True
            own = [task for task in tasks if self.ring.of_id(task.id) == index]
            self.mail.append((index, fx.Command(0, 0, fx.DueLoaded(own, until))))
        return True

    def begin_flush(self) -> None:
        """Take what is dirty, as it is now; there is one flush at a time."""
        self.end_flush()
        taken = [(index, shard.take_dirty()) for index, shard in enumerate(self.shards)]
        sizes = {name: size for shard in self.shards for name, size in shard.take_sizes().items()}
        self.store.contents.meta.update(size_names(sizes))
        self.flushing = [(index, dirty, batch_of(dirty, {})) for index, dirty in taken if dirty]

    def end_flush(self) -> None:
        """What was taken is in the store; the shards are told with the next mail."""
        flushing, self.flushing = self.flushing, []
        for index, dirty, batch in flushing:
            at_once(self.store.commit(batch))
            self.mail.append((index, fx.Command(0, 0, fx.Flushed(dirty, self.shards[index].flushes))))

    def flush(self) -> None:
        self.begin_flush()
        self.end_flush()

    def flushed(self) -> None:
        """Everything is in the store, and the shards know it."""
        self.flush()
        self.run()

    # ---- time --------------------------------------------------------------------------------------------------------------------------

    def tick(self, ms: int = 0) -> None:
        """So much time passes at once, then the shards look at it."""
        self.now_ms += ms
        self.mail += [(index, fx.Command(0, 0, fx.Tick())) for index in range(len(self.shards))]
        self.run()

    def live(self, ms: int) -> None:
        """So much time passes as it does: the shards look at it every half second."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.tick(min(PASS_MS, end_ms - self.now_ms))

    # ---- what tests ask ----------------------------------------------------------------------------------------------------------------

    def command(self, message: Any, origin: int = 0, seq: int = 0, *, resent: bool = False) -> fx.Command:
        return fx.Command(origin or self.client.session.origin, seq, message, 0, resent)

    def new_id(self, queue: str = "email", *, age_ms: int = 0) -> bytes:
        return make_id(self.now_ms - age_ms, slot_of_queue(queue), self.rng)

    def enqueue(self, *payloads: bytes, queue: str = "email", task_type: str = "send_email", **columns: Any) -> list[bytes]:
        """Enqueue through the client; the ids of the tasks, all of which must be admitted."""
        told = self.client.ask(enqueue_of(*payloads, queue=queue, task_type=task_type, **columns))
        assert type(told) is m.Enqueued and set(told.outcomes) <= {m.CREATED}, told
        return split(told.ids, 16)

    def task(self, task_id: bytes) -> Task:
        """The task, wherever it is."""
        for shard in self.shards:
            if task_id in shard.tasks:
                return shard.tasks[task_id]
        rows = at_once(self.store.find([task_id], []))
        assert rows, f"task {task_id.hex()} is lost"
        return task_of(rows[0])

    def get(self, task_id: bytes) -> dict[str, Any]:
        info: dict[str, Any] = self.client.ask(m.Get(task_id)).info
        return info

    def in_memory(self, task_id: bytes) -> bool:
        return any(task_id in shard.tasks for shard in self.shards)

    def restart(self) -> None:
        """Stop when all is written and start again: connections are gone, leases are not."""
        self.hold_loads = False
        self.run()
        self.flushed()
        self.peers.clear()
        self.shared = attrs.evolve(
            self.shared,
            budget=Budget(self.shared.budget.bytes_max),
            consumers={},
            held={},
            alone={},
            recent=Recent(),
            tokens=Sequence64(self.shared.tokens.following + (1 << 40)),
        )
        self.shards = [Shard(index, len(self.shards), self.shared) for index in range(len(self.shards))]
        kept = {name.removeprefix(QUEUE_BYTES): size for name, size in self.store.contents.meta.items() if name.startswith(QUEUE_BYTES)}
        at_once(load(self.store, self.shards, self.now_ms, kept))
        self.house = self._house()
        self.loads.clear()
        self.client = Peer(self, "producer", "client")

    def check(self) -> None:
        assert not self.bugs, self.bugs
        for shard in self.shards:
            shard.check()


def enqueue_of(*payloads: bytes, queue: str = "email", task_type: str = "send_email", ids: bytes = b"", **columns: Any) -> m.Enqueue:
    """A column that is not a list counts for all tasks."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in columns.items()}
    bodies: list[m.Payload] = list(payloads) or [b"body"]
    return m.Enqueue(bodies, queue, ids or NIL * len(bodies), lists.pop("task_types", [task_type]), **lists)


class Peer:
    """One connection, seen from the client's end."""

    def __init__(self, world: World, role: str, name: str) -> None:
        self.world = world
        self.name = name
        self.seq = 0
        self.answers: dict[int, Any] = {}
        self.session = Session(world.enter(self), world.house)
        self.welcome: m.Welcome = self.ask(m.Hello(1, role, {"name": name}))

    def say(self, message: Any, *, resent: bool = False, seq: int = 0) -> int:
        """Send a frame; nothing moves yet."""
        self.seq += 1
        self.session.receive(seq or self.seq, resent, message, self.world.now_ms)
        return seq or self.seq

    def ask(self, message: Any, *, resent: bool = False) -> Any:
        """Send a frame and let the world run; the answer, None if it is not there yet."""
        seq = self.say(message, resent=resent)
        self.world.run()
        return self.answers.pop(seq, None)

    def collect(self) -> None:
        session, world = self.session, self.world
        world.mail += session.commands
        session.commands = []
        answers, session.answers = session.answers, []
        for seq, message in answers:
            world.told.append((self.name, message))
            if seq:
                self.answers[seq] = message
            else:
                self.pushed(message)
        for origin in session.evicted:
            gone = world.peers.pop(origin, None)
            if gone is not None:
                gone.session.lost(world.now_ms)
        session.evicted.clear()
        world.notices += session.notices
        session.notices.clear()

    def pushed(self, message: Any) -> None:
        raise AssertionError(f"{self.name} was sent {message} without having asked")

    @property
    def connected(self) -> bool:
        return self.session.origin in self.world.peers

    def disconnect(self) -> None:
        self.world.peers.pop(self.session.origin, None)
        self.session.lost(self.world.now_ms)


@attrs.frozen
class Job:
    id: bytes
    token: bytes
    payload: bytes
    task_type: str
    attempt: int
    delivery: int


class Worker(Peer):
    """`jobs`: all that was ever delivered to it.  `held`: what it has not been answered about."""

    def __init__(self, world: World, name: str = "w1", *queues: str, runs: Sequence[str] = ("send_email",), credit: int = 0) -> None:
        self.jobs: list[Job] = []
        self.held: dict[bytes, Job] = {}
        self.revoked: list[bytes] = []
        self.received = 0
        self.allowed = 0
        super().__init__(world, "worker", name)
        self.identity, self.secret = self.welcome.session, self.welcome.secret
        if queues:
            self.take(*queues, runs=runs)
        if credit:
            self.allow(credit)

    def take(self, *queues: str, runs: Sequence[str] = ("send_email",)) -> Any:
        return self.ask(m.Consume(list(queues), list(runs), 10))

    def allow(self, more: int) -> None:
        self.allowed += more
        self.say(m.Credit(self.allowed), seq=0)
        self.world.run()

    def pushed(self, message: Any) -> None:
        if type(message) is m.Revoke:
            self.revoked += split(message.tokens, 8)
            return
        assert type(message) is m.Deliver, message
        ids, tokens, count = split(message.ids, 16), split(message.tokens, 8), len(message.payloads)
        types = message.task_types * (count if len(message.task_types) == 1 else 1)
        attempts = message.attempts * (count if len(message.attempts) == 1 else 1)
        assert message.first == self.received + 1, "delivery numbers have a gap"
        for at in range(count):
            job = Job(ids[at], tokens[at], bytes(message.payloads[at]), types[at], attempts[at], message.first + at)
            self.jobs.append(job)
            self.held[job.token] = job
        self.received += count

    def ack(self, *jobs: Job, result: bytes = b"done", resent: bool = False) -> bytes:
        return self._report(m.Ack([result] * len(jobs), _ids(jobs), _tokens(jobs)), jobs, resent)

    def fail(self, *jobs: Job, how: int = m.RETRY, after_ms: int = 0, error: str = "boom", resent: bool = False) -> bytes:
        return self._report(m.Fail(_ids(jobs), _tokens(jobs), [how], [after_ms], ["ValueError"], [error]), jobs, resent)

    def release(self, *jobs: Job, delay_ms: int = 0, resent: bool = False) -> bytes:
        return self._report(m.Release(_ids(jobs), _tokens(jobs), [delay_ms]), jobs, resent)

    def _report(self, message: Any, jobs: Sequence[Job], resent: bool) -> bytes:
        told = self.ask(message, resent=resent)
        assert type(told) is m.Reported, told
        for job in jobs:
            self.held.pop(job.token, None)
        return bytes(told.outcomes)

    def beat(self, *holding: Job, received: int | None = None) -> m.Beat:
        """A heartbeat that lists these tasks; without any, all that it holds."""
        tokens = _tokens(holding) if holding else b"".join(self.held)
        beat: m.Beat = self.ask(m.Heartbeat(self.received if received is None else received, tokens))
        return beat

    def resume(self, world: World, *holding: Job, received: int | None = None) -> Any:
        """Connect anew and take up the old session; if that is refused, go on with the new one."""
        self.world, self.seq = world, 0
        self.session = Session(world.enter(self), world.house)
        welcome = self.ask(m.Hello(1, "worker", {"name": self.name}))
        received = self.received if received is None else received
        told = self.ask(m.Resume(self.identity, self.secret, received, _tokens(holding)))
        if type(told) is m.Resumed:
            self.received = self.allowed = received
            self.held = {job.token: job for job, outcome in zip(holding, told.outcomes, strict=True) if outcome != m.LOST}
        else:
            self.identity, self.secret = welcome.session, welcome.secret
            self.received, self.allowed, self.held = 0, 0, {}
        return told

    def ask_resume_of(self, world: World, tokens: Sequence[bytes]) -> Any:
        """Resume with these tokens, whether they are its own or not."""
        return Worker(world, self.name).ask(m.Resume(self.identity, self.secret, self.received, b"".join(tokens)))


def _ids(jobs: Sequence[Job]) -> bytes:
    return b"".join(job.id for job in jobs)


def _tokens(jobs: Sequence[Job]) -> bytes:
    return b"".join(job.token for job in jobs)
