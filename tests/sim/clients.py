"""Producers, workers and keepers: real channels, with a random will of their own.

Each is a process.  What they are told goes to the history as a promise of the broker.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import attrs
from sim.broker import Wall
from sim.history import History, Violation, split
from sim.loop import Process, VirtualLoop
from sim.network import Network

from taskq.connection import Address, Channel
from taskq.core import messages as m
from taskq.errors import BY_CODE, BrokerUnavailable
from taskq.ids import NIL, make_id, slot_of_queue
from taskq.protocol.link import READY, Answered, Pushed, Ready, Refused

BROKER = Address("broker", 7000)
KEEPALIVE_S = 5.0
# so long after a stall a worker asks before it starts what it reads
DOUBT_S = 1.0


@attrs.define(eq=False)
class Scene:
    """What all clients share."""

    loop: VirtualLoop
    rng: random.Random
    clock: Wall
    network: Network
    history: History
    trace: Callable[[str, str], None]
    wrong: Callable[[str], None]
    queues: list[str]
    task_types: list[str]
    calm: bool = False


class Client:
    """A process with a channel."""

    def __init__(self, scene: Scene, name: str, role: str) -> None:
        self.scene, self.name = scene, name
        self.process = Process(scene.loop, name)
        self.channel = Channel(BROKER, m.Hello(1, role, {"name": name}), self._event, scene.rng, room=self.room())
        self.troubled_s = -math.inf
        self.stopped = False
        self.process.spawn(self._live())

    async def _live(self) -> None:
        self.channel.start()
        try:
            await self.live()
        except BrokerUnavailable:
            return

    async def live(self) -> None:
        raise NotImplementedError

    def room(self) -> Callable[[], int] | None:
        """How a worker's heartbeats say what it has room for, if they do."""
        return None

    def on_event(self, event: Any) -> None:
        """An answer or a push, while the process lives."""

    def _event(self, event: Any) -> None:
        if self.process.alive:
            try:
                self.on_event(event)
            except Violation as violation:
                self.scene.wrong(str(violation))

    def say(self, text: str) -> None:
        self.scene.trace(self.name, text)

    def trouble(self) -> None:
        """From here on, losing a lease is no surprise for a while."""
        self.troubled_s = self.scene.loop.seconds

    async def rest(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self.scene.rng.uniform(least_s, most_s))


# ---- producers ---------------------------------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Asked:
    """A request, and how many acknowledgements came before it was sent."""

    message: Any
    sure: int


class Producer(Client):
    """Enqueues, looks, waits and cancels."""

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__(scene, name, "producer")
        self.made: list[bytes] = []
        self.sent = 0
        self.open: dict[Asked, None] = {}

    async def live(self) -> None:
        scene = self.scene
        while not scene.calm:
            choice = scene.rng.random()
            if choice < 0.55 or not self.made:
                self.enqueue()
            elif choice < 0.75:
                self.request(m.Get(scene.rng.choice(self.made), scene.rng.choice([0, 0, 5_000, 20_000])))
            elif choice < 0.87:
                self.request(m.Cancel(b"".join(scene.rng.sample(self.made, min(len(self.made), scene.rng.randrange(1, 4))))))
            elif choice < 0.92:
                self.request(m.Inspect(scene.rng.choice(["queues", "workers"])))
            else:
                self.enqueue_again()
            await self.rest(0.0, scene.rng.choice([0.05, 0.5, 3.0]))

    def enqueue(self) -> None:
        rng, scene = self.scene.rng, self.scene
        queue = rng.choice(scene.queues)
        count = rng.choice([1, 1, 1, 2, 5, 12])
        now_ms, slot = scene.clock.now_ms() + rng.randrange(-2_000, 2_000), slot_of_queue(queue)
        ids = [NIL if rng.random() < 0.15 else make_id(now_ms, slot, rng) for _ in range(count)]
        self.made += [task_id for task_id in ids if task_id != NIL]
        delayed, keyed = rng.random() < 0.25, rng.random() < 0.25

        def column(make: Callable[[], Any]) -> list[Any]:
            return [make() for _ in range(count if rng.random() < 0.5 else 1)]

        self.request(
            m.Enqueue(
                payloads=[self._payload() for _ in range(count)],
                queue=queue,
                ids=b"".join(ids),
                task_types=column(lambda: rng.choice(scene.task_types)),
                priorities=column(lambda: rng.choice([5, 5, 5, 1, 9])),
                delays_ms=column(lambda: rng.randrange(0, 15_000) if delayed else 0),
                keys=[rng.choice([None, f"key {rng.randrange(30)}"]) if keyed else None for _ in range(count)],
                max_attempts=[rng.choice([1, 2, 3, 10])],
                retries=[[rng.choice([0, 100, 2_000]), 2.0, 5_000]],
            )
        )

    def _payload(self) -> bytes:
        self.sent += 1
        payload = f"{self.name} {self.sent} ".encode() + bytes(self.scene.rng.choice([0, 0, 50, 2_000, 6_000]))
        self.scene.history.sent[payload] = None
        return payload

    def enqueue_again(self) -> None:
        """An id of long ago: the answer was perhaps lost, perhaps the task has long been pruned."""
        again = [task for task_id in self.made[:40] if (task := self.scene.history.model.tasks.get(task_id)) is not None and task.key is None]
        if not again:
            return
        task = self.scene.rng.choice(again)
        self.request(m.Enqueue([task.payload], task.queue, task.id, [task.task_type]), resent=True)

    def request(self, message: Any, *, resent: bool = False) -> None:
        deadline_s = None if self.scene.rng.random() < 0.5 else self.scene.rng.uniform(0.5, 60.0)
        self.say(f"→ {describe(message)}")
        asked = Asked(message, self.scene.history.acknowledgements)
        self.open[asked] = None
        self.channel.request(message, asked, deadline_s)
        if resent:
            link = self.channel.link
            waiting = [*link._pending.values(), *(request for lane in (link._others, *link._lanes.values()) for request in lane.queue)]
            for request in waiting:
                request.resent = request.resent or request.message is message
            for frame in link._out:
                frame.flags |= frame.message is message

    def on_event(self, event: Any) -> None:
        history = self.scene.history
        asked = getattr(event, "owner", None)
        if isinstance(event, Answered | Refused) and asked is not None:
            if asked not in self.open:
                raise Violation(f"a {type(asked.message).__name__} of {self.name} was answered twice")
            del self.open[asked]
        if isinstance(event, Refused):
            self.say(f"← {type(asked.message).__name__} {event.error.code}")
            if event.error.code not in BY_CODE:
                raise Violation(f"a {type(asked.message).__name__} of {self.name} was refused without a known code: {event.error.code!r}")
            if isinstance(asked.message, m.Get) and event.error.code == "NOT_FOUND":
                history.not_found(asked.message.id, asked.sure)
        if not isinstance(event, Answered):
            return
        self.say(f"← {describe(event.message)}")
        match event.message:
            case m.Enqueued(ids=ids, outcomes=outcomes):
                self._enqueued(asked.message, split(ids, 16), outcomes)
            case m.TaskInfo(info=info):
                history.shown(bytes.fromhex(info["id"]), info["state"])
            case m.Cancelled(outcomes=outcomes):
                history.cancelled(split(asked.message.ids, 16), outcomes, asked.sure)

    def _enqueued(self, asked: m.Enqueue, ids: list[bytes], outcomes: bytes) -> None:
        for mine, task_id, outcome in zip(split(asked.ids, 16), ids, outcomes, strict=True):
            if outcome == m.CREATED and mine not in (NIL, task_id):
                raise Violation(f"task {mine.hex()} was created as {task_id.hex()}")
            if outcome == m.CREATED and mine == NIL:
                self.made.append(task_id)
        self.scene.history.enqueued([bytes(payload) for payload in asked.payloads], ids, outcomes)


# ---- workers -----------------------------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Run:
    """A task in the hands of a worker."""

    id: bytes
    token: bytes
    cancelled: bool = False
    lost: bool = False


@attrs.define(eq=False)
class Question:
    """Owner of a heartbeat that asks whether these are current: what is read after a stall may belong to others by now."""

    runs: list[Run]


class Worker(Client):
    """Runs what it is given, and reports it, mostly.  What it loses gives no credit back at once, since nobody reports it: its heartbeats say it, or,
    if they say nothing of room, the broker has to notice."""

    def __init__(self, scene: Scene, name: str, *, keeper: bool) -> None:
        rng = scene.rng
        self.queues = scene.queues if rng.random() < 0.5 else rng.sample(scene.queues, rng.randrange(1, len(scene.queues) + 1))
        self.task_types = scene.task_types if rng.random() < 0.6 else rng.sample(scene.task_types, rng.randrange(1, len(scene.task_types) + 1))
        self.concurrency = rng.choice([1, 2, 5, 20])
        self.tells_room = rng.random() < 0.7
        self.blocked = False
        self.thawed_s = -math.inf
        self.runs: dict[bytes, Run] = {}
        self.done: list[tuple[type, Run]] = []
        self.old: list[Run] = []
        super().__init__(scene, name, "worker")
        self.keeper = Keeper(scene, f"{name}'s keeper", self) if keeper else None

    async def live(self) -> None:
        """What it does, it does when it is given something."""

    def _report_done(self) -> None:
        """Report what is done, in batches."""
        done, self.done = self.done, []
        for kind in (m.Ack, m.Fail, m.Release):
            runs = [run for made, run in done if made is kind]
            if runs:
                self.report(kind, runs)

    def on_event(self, event: Any) -> None:
        match event:
            case Ready():
                self.say("resumed" if event.resumed else "begins a session")
                self._drop(event.lost)
                for token in event.cancelled:
                    self._revoke(token)
                self.subscribe()
            case Pushed(message=m.Deliver() as deliver):
                self._delivered(deliver)
            case Answered(message=m.Beat(lost=lost), owner=Question(runs=runs)):
                for run in runs:
                    run.lost = run.token in split(lost, 8)
                self._forget([run for run in runs if run.lost])
                self._begin_all(runs)
            case Refused(owner=Question(runs=runs)):
                self._begin_all(runs)
            case Pushed(message=m.Revoke(tokens=tokens)):
                for token in split(tokens, 8):
                    self._revoke(token)
            case Pushed(message=m.Beat() as beat):
                self._drop(split(beat.lost, 8))
                for token in split(beat.cancelled, 8):
                    self._revoke(token)
            case Answered(message=m.Reported(outcomes=outcomes), owner=(kind, runs, results)):
                self.say(f"← {kind.__name__} {outcomes.hex()}")
                self.scene.history.reported(kind, [run.id for run in runs], [run.token for run in runs], results, outcomes)
                self._finished(runs)
            case Refused(owner=(kind, runs, _), error=error):
                self.say(f"← {kind.__name__} {error.code}")
                self._finished(runs)

    def subscribe(self) -> None:
        if self.stopped:
            return
        self.channel.request(m.Consume(self.queues, self.task_types, self.concurrency), "consume", 60.0)
        self.credit()

    def room(self) -> Callable[[], int] | None:
        return (lambda: self.room_now) if self.tells_room else None

    @property
    def room_now(self) -> int:
        return 0 if self.stopped else max(0, self.concurrency - len(self.runs))

    @property
    def could_take(self) -> bool:
        """It is well, connected, and has room by its own account."""
        well = self.process.alive and not self.process.frozen and self.process not in self.scene.network.unreachable
        return well and self.channel.link.state is READY and self.room_now > 0

    def credit(self) -> None:
        if self.channel.link.state is READY and not self.stopped:
            self.channel.credit(self.room_now)

    def _drop(self, tokens: list[bytes]) -> None:
        """The broker says that these leases are lost.  A worker that does not listen goes on and reports all the same."""
        for token in tokens:
            run = self.runs.get(token)
            if run is not None and self.scene.rng.random() < 0.7:
                run.lost = True
                self._forget([run])

    def _revoke(self, token: bytes) -> None:
        if token in self.runs:
            self.runs[token].cancelled = True

    def _finished(self, runs: list[Run]) -> None:
        self._forget(runs)
        self.credit()

    def _forget(self, runs: list[Run]) -> None:
        for run in runs:
            self.runs.pop(run.token, None)
            self.old = [*self.old[-20:], run]

    def _delivered(self, deliver: m.Deliver) -> None:
        ids, tokens = split(deliver.ids, 16), split(deliver.tokens, 8)
        self.say(f"← {describe(deliver)}")
        for at, (task_id, token, payload) in enumerate(zip(ids, tokens, deliver.payloads, strict=True)):
            attempt = deliver.attempts[at] if len(deliver.attempts) > 1 else deliver.attempts[0]
            self.scene.history.deliver(task_id, token, bytes(payload), attempt)
            self.runs[token] = Run(task_id, token)
        runs = [self.runs[token] for token in tokens]
        if self.scene.loop.seconds - self.thawed_s < DOUBT_S:
            self.channel.request(self.channel.link.heartbeat(), Question(runs), DOUBT_S)
        else:
            self._begin_all(runs)

    def _begin_all(self, runs: list[Run]) -> None:
        for run in runs:
            self._begin(run)

    def _begin(self, run: Run) -> None:
        rng = self.scene.rng
        took_s = rng.choice([0.0, 0.0, 0.2, 2.0, 8.0, 40.0 if not self.scene.calm else 1.0])
        self.scene.loop.call_later(rng.uniform(0.0, took_s), self._end, run)

    def _end(self, run: Run) -> None:
        if run.lost:
            return
        choice = self.scene.rng.random()
        if run.cancelled and choice < 0.7:
            kind: type = m.Fail
        else:
            kind = m.Ack if choice < (0.95 if self.scene.calm else 0.72) else m.Fail if choice < 0.9 else m.Release
        if not self.done:
            self.scene.loop.call_later(self.scene.rng.uniform(0.0, 0.05), self._report_done)
        self.done.append((kind, run))

    def report(self, kind: type, runs: list[Run]) -> None:
        rng = self.scene.rng
        ids, tokens = b"".join(run.id for run in runs), b"".join(run.token for run in runs)
        results: list[bytes] = [b""] * len(runs)
        if kind is m.Ack:
            results = [b"result of " + run.token for run in runs]
            message: Any = m.Ack(list(results), ids, tokens)
        elif kind is m.Fail:
            disposition = rng.choice([m.RETRY, m.RETRY, m.RETRY_AFTER, m.DISCARD])
            message = m.Fail(ids, tokens, [disposition], [rng.randrange(0, 5_000)], ["Oops"], ["it failed"])
        else:
            message = m.Release(ids, tokens, [rng.choice([0, rng.randrange(1, 8_000)])])
        self.say(f"→ {describe(message)}")
        self.channel.request(message, (kind, runs, results))

    def report_again(self) -> None:
        """What was reported before, or lost: the token is not current, and nothing may change.  Best if another has the task by now."""
        tasks = self.scene.history.model.tasks
        taken = [run for run in self.old if (task := tasks.get(run.id)) is not None and task.token not in (0, int.from_bytes(run.token, "big"))]
        if taken or self.old:
            self.report(self.scene.rng.choice([m.Ack, m.Fail, m.Release]), [self.scene.rng.choice(taken or self.old)])

    # ---- faults

    def freeze(self) -> None:
        self.trouble()
        self.process.freeze()

    def block(self) -> None:
        """A task holds its loop: it does nothing, and its keeper says that it lives."""
        self.blocked = True
        self.freeze()

    def thaw(self) -> None:
        self.trouble()
        self.blocked = False
        self.thawed_s = self.scene.loop.seconds
        self.process.thaw()

    def die(self, *, silently: bool) -> None:
        """Its machine is gone, with the keeper, or only the runner is."""
        self.process.kill()
        self.scene.network.died(self.process, silently=silently)
        if self.keeper is not None:
            self.keeper.runner_died(with_me=silently)

    def leave(self) -> None:
        """An orderly end."""
        self.stopped = True

        async def leave() -> None:
            await self.channel.stop()
            self.process.kill()

        self.process.spawn(leave())
        if self.keeper is not None:
            self.keeper.process.kill()
            self.scene.network.died(self.keeper.process, silently=False)


class Keeper(Client):
    """The parent of a worker: renews its leases while it runs, tells its death."""

    def __init__(self, scene: Scene, name: str, worker: Worker) -> None:
        self.worker = worker
        super().__init__(scene, name, "keeper")

    async def live(self) -> None:
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            link, process = self.worker.channel.link, self.worker.process
            if link.session and process.alive and (not process.frozen or self.worker.blocked):
                self.channel.request(m.Keepalive(link.session, link.secret, link.received), "keepalive", KEEPALIVE_S)

    def runner_died(self, *, with_me: bool) -> None:
        link = self.worker.channel.link
        if with_me or not link.session:
            self.process.kill()
            self.scene.network.died(self.process, silently=with_me)
            return

        async def tell() -> None:
            self.channel.request(m.Died(link.session, link.secret, "SIGKILL"), "died", 60.0)

        self.process.spawn(tell())


def describe(message: Any) -> str:
    """A message in one short line."""
    ids = getattr(message, "ids", getattr(message, "id", b""))
    if isinstance(message, m.TaskInfo):
        return f"TaskInfo {message.info['id'][-8:]} {message.info['state']}"
    shown = " ".join(task_id.hex()[-8:] for task_id in split(ids, 16))
    rest = {name: getattr(message, name) for name in ("queue", "outcomes", "keys", "delays_ms", "dispositions", "wait_ms") if hasattr(message, name)}
    return f"{type(message).__name__} [{shown}] " + " ".join(f"{name}={value!r}" for name, value in rest.items())
