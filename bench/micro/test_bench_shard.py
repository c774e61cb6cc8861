"""What the decisions about a task cost: enqueue, grant and ack in a shard, and a session that receives them.  `extra_info` holds µs per task
(best round)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from taskq.core import messages as m
from taskq.core.admission import Limits
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.effects import Command, Ready
from taskq.core.house import House, Terms
from taskq.core.line import Budget
from taskq.core.ring import Ring
from taskq.core.session import Session
from taskq.core.shard import Shard
from taskq.ids import NIL, make_id, slot_of_queue

TASKS = 1_000
NOW_MS = 1_700_000_000_000
PAYLOAD = b"p" * 150
RESULT = b"\xa2ok"
SESSION = bytes(16)
ROUNDS = {"rounds": 30, "warmup_rounds": 3}


class Bench:
    """One shard and one worker.  The producer is origin 1, the worker origin 2."""

    def __init__(self) -> None:
        self.rng = random.Random(1)
        limits = Limits(queue_tasks_max=10_000_000, queue_bytes_max=10 << 30, leases_max=10_000_000)
        self.shared = Shared(Sequence64(1), Sequence64(1 << 40), Budget(128 << 20), random.Random(2), limits)
        self.shard = Shard(0, 1, self.shared)
        self.worker = Consumer(SESSION, "w1", NOW_MS + 15_000, origin=2, queues=("email",), task_types=frozenset({"send_email"}))
        self.shared.consumers[SESSION] = self.worker
        self.shard.turn([Command(0, 0, Ready(SESSION))], NOW_MS)

    def enqueue(self, *, ids: bool = True) -> Command:
        slot = slot_of_queue("email")
        block = b"".join(make_id(NOW_MS, slot, self.rng) for _ in range(TASKS)) if ids else NIL * TASKS
        return Command(1, 1, m.Enqueue([PAYLOAD] * TASKS, "email", block, ["send_email"]))

    def turn(self, command: Command) -> Any:
        return self.shard.turn([command], NOW_MS)

    def wait_for_tasks(self) -> None:
        """The worker has credit for a thousand more, and there is none yet."""
        self.worker.allowed += TASKS
        self.turn(Command(0, 0, Ready(SESSION)))

    def filled(self) -> Command:
        """A thousand more pending tasks; the command that grants them."""
        self.turn(self.enqueue())
        self.worker.allowed += TASKS
        return Command(0, 0, Ready(SESSION))

    def granted(self) -> Command:
        """A thousand more running tasks; the command that completes them."""
        [reply] = self.turn(self.filled()).replies
        return Command(2, 1, m.Ack([RESULT] * TASKS, reply.message.ids, reply.message.tokens), session=SESSION)

    def forget(self) -> None:
        """As if all were flushed, so that rounds do not add up."""
        self.shard.take_dirty()
        self.shard.tasks = {task_id: task for task_id, task in self.shard.tasks.items() if task.token}


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.shard.check()


def note(benchmark: Any) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_task"] = round(benchmark.stats.stats.min * 1e6 / TASKS, 3)


@pytest.mark.parametrize("ids", [True, False], ids=["client_ids", "nil_ids"])
def test_bench_enqueue_1000(benchmark: Any, bench: Bench, ids: bool) -> None:
    effects = benchmark.pedantic(bench.turn, setup=lambda: ((bench.enqueue(ids=ids),), {}), **ROUNDS)
    assert len(effects.records[0].payloads) == TASKS
    note(benchmark)


def test_bench_grant_1000(benchmark: Any, bench: Bench) -> None:
    effects = benchmark.pedantic(bench.turn, setup=lambda: ((bench.filled(),), {}), **ROUNDS)
    assert len(effects.replies[0].message.payloads) == TASKS
    note(benchmark)


def test_bench_ack_1000(benchmark: Any, bench: Bench) -> None:
    def setup() -> tuple[tuple[Command], dict[str, Any]]:
        bench.forget()
        return (bench.granted(),), {}

    effects = benchmark.pedantic(bench.turn, setup=setup, **ROUNDS)
    assert effects.replies[0].message.outcomes == bytes(TASKS)
    note(benchmark)


def test_bench_enqueue_and_grant_in_one_turn(benchmark: Any, bench: Bench) -> None:
    def setup() -> tuple[tuple[Command], dict[str, Any]]:
        bench.wait_for_tasks()
        return (bench.enqueue(),), {}

    effects = benchmark.pedantic(bench.turn, setup=setup, **ROUNDS)
    assert [type(record).__name__ for record in effects.records] == ["Admitted", "Granted"]
    note(benchmark)


@pytest.fixture
def house() -> House:
    terms = Terms(1, 5_000, 15_000, 15_000, {}, b"key")
    return House(Ring(4), terms, {}, random.Random(1), dict)


def test_bench_session_receive_100_acks_of_10(benchmark: Any, house: House) -> None:
    """`extra_info` holds µs per task of the hundred frames."""
    session = Session(2, house)
    session.receive(1, False, m.Hello(1, "worker"), NOW_MS)
    rng, slot = random.Random(1), slot_of_queue("email")
    frames = [
        m.Ack([RESULT] * 10, b"".join(make_id(NOW_MS, slot, rng) for _ in range(10)), b"".join(n.to_bytes(8, "big") for n in range(at, at + 10)))
        for at in range(0, TASKS, 10)
    ]

    def receive() -> int:
        for seq, frame in enumerate(frames, 2):
            session.receive(seq, False, frame, NOW_MS)
        commands, session.commands = session.commands, []
        session.requests.open.clear()
        return len(commands)

    assert benchmark(receive) == len(frames)
    note(benchmark)


def test_bench_session_receive_an_enqueue_of_1000(benchmark: Any, house: House) -> None:
    session = Session(1, house)
    session.receive(1, False, m.Hello(1, "producer"), NOW_MS)
    frame = m.Enqueue([PAYLOAD] * TASKS, "email", NIL * TASKS, ["send_email"])

    def receive() -> int:
        session.receive(2, False, frame, NOW_MS)
        commands, session.commands = session.commands, []
        session.requests.open.clear()
        return len(commands)

    assert benchmark(receive) == 1
    note(benchmark)
