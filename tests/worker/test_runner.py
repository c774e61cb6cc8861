"""The runner's session with a broker: credit, reports, cancels, broken connections, stalls, stopping.  The broker is the scripted one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest

from taskq import serial
from taskq.core import messages as m
from taskq.worker.page import Page
from taskq.worker.registry import TaskDefinition
from taskq.worker.runner import Runner
from taskq.worker.settings import EXIT_FATAL, WorkerConfig


@attrs.define
class Functions:
    """The app of these tests; `gate` holds what waits at it."""

    gate: asyncio.Event = attrs.field(factory=asyncio.Event)
    thread_gate: threading.Event = attrs.field(factory=threading.Event)
    started: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(0))
    runs: list[Any] = attrs.field(factory=list)

    async def double(self, number: int) -> int:
        self.runs.append(number)
        return number * 2

    async def wait(self, number: int) -> int:
        self.started.release()
        await self.gate.wait()
        return number

    def block(self) -> None:
        self.thread_gate.wait(10)

    async def fail(self) -> None:
        raise ValueError("broken")

    @property
    def tasks(self) -> dict[str, TaskDefinition]:
        return {function.__name__: TaskDefinition(function.__name__, function) for function in (self.double, self.wait, self.block, self.fail)}


class Session:
    """A runner that works in this process."""

    def __init__(self, url: str) -> None:
        self.functions = Functions()
        self.page = Page()
        self.told: list[dict[str, Any]] = []
        self.runner = Runner(WorkerConfig(url, concurrency=4, drain_s=5.0), self.functions, self.page, self.told.append)
        self.running = asyncio.create_task(self.runner.run())

    async def stop(self, level: int = 1) -> int:
        self.runner.stop(level)
        async with asyncio.timeout(10):
            return await self.running


@pytest.fixture
async def session(broker: Any) -> AsyncIterator[Session]:
    session = Session(broker.url)
    await broker.expect(m.Credit)
    yield session
    session.functions.gate.set()
    session.functions.thread_gate.set()
    assert await session.stop(2) == 0


async def test_a_worker_subscribes_to_the_queues_and_types_of_its_app(broker: Any, session: Session) -> None:
    broker.rewind()
    greeting = await broker.expect(m.Hello)
    assert greeting.role == "worker" and {"name", "host", "pid", "version"} <= set(greeting.client)
    assert await broker.expect(m.Consume) == m.Consume(["default"], ["block", "double", "fail", "wait"], 4, [0])
    assert (await broker.expect(m.Credit)).allowed >= 4
    assert session.told[0]["session"] == broker.worker.session.hex()


async def test_tasks_that_came_together_are_reported_together(broker: Any, session: Session) -> None:
    tokens = broker.deliver(*(("double", [number]) for number in range(50)))
    ack = await broker.expect(m.Ack)
    assert ack.tokens == b"".join(tokens)
    assert [serial.decode(payload, m.MSGPACK) for payload in ack.payloads] == [2 * number for number in range(50)]
    assert session.page.received == 50


async def test_failures_carry_type_text_and_disposition(broker: Any, session: Session) -> None:
    broker.deliver(("fail", []), ("double", ["too", "many"]), ("unknown", []))
    failed = await broker.expect(m.Fail)
    broker.rewind()
    released = await broker.expect(m.Release)
    assert (failed.dispositions, failed.error_types) == ([m.RETRY, m.DISCARD], ["ValueError", "ArgumentsError"])
    assert len(released.tokens) == 8


async def test_credit_grows_with_free_slots_and_never_falls(broker: Any, session: Session) -> None:
    first = broker.worker.allowed
    broker.deliver(*(("wait", [number]) for number in range(4)))
    for _ in range(4):
        await session.functions.started.acquire()
    session.functions.gate.set()
    await broker.expect(m.Ack)
    credit = await broker.expect(m.Credit)
    assert credit.allowed > first
    for _ in range(5):
        broker.deliver(*(("double", [number]) for number in range(100)))
        await broker.expect(m.Ack)
    told = [frame.message.allowed for _, frame in broker.seen if type(frame.message) is m.Credit]
    assert told == sorted(told) and told[-1] > 504


async def test_a_revoked_run_is_cancelled_and_given_back(broker: Any, session: Session) -> None:
    (token,) = broker.deliver(("wait", [1]))
    await session.functions.started.acquire()
    broker.worker.send(m.Revoke(token))
    assert (await broker.expect(m.Release)).tokens == token


async def test_a_cancel_that_comes_with_a_heartbeat_counts(broker: Any, session: Session) -> None:
    (token,) = broker.deliver(("wait", [1]))
    broker.cancelled.add(token)
    assert (await broker.expect(m.Release)).tokens == token


async def test_a_lease_lost_by_heartbeat_ends_the_run_without_a_report(broker: Any, session: Session) -> None:
    broker.deliver(("wait", [1]))
    await session.functions.started.acquire()
    broker.leases.clear()
    while len(session.runner._bench):
        await broker.expect(m.Heartbeat)
    broker.deliver(("double", [1]))
    await broker.expect(m.Ack)
    assert not [frame for _, frame in broker.seen if type(frame.message) in (m.Release, m.Fail)]


async def test_work_goes_on_while_the_broker_is_away_and_is_reported_after(broker: Any, session: Session) -> None:
    (token,) = broker.deliver(("wait", [7]))
    await session.functions.started.acquire()
    broker.break_connections()
    session.functions.gate.set()
    resume = await broker.expect(m.Resume)
    assert (resume.tokens, resume.received) == (token, 1)
    assert (await broker.expect(m.Ack)).tokens == token
    await broker.expect(m.Consume)


async def test_a_report_without_an_answer_is_sent_again_with_the_flag(broker: Any, session: Session) -> None:
    broker.silent = True
    (token,) = broker.deliver(("double", [1]))
    await broker.expect(m.Ack, resent=False)
    broker.silent = False
    broker.break_connections()
    assert (await broker.expect(m.Resume)).tokens == token
    assert (await broker.expect(m.Ack, resent=True)).tokens == token


async def test_a_broker_that_forgot_the_session_starts_a_new_one(broker: Any, session: Session) -> None:
    broker.deliver(("wait", [1]))
    await session.functions.started.acquire()
    broker.forgetful = True
    broker.break_connections()
    await broker.expect(m.Resume)
    await broker.expect(m.Consume)
    assert session.page.received == 0 and session.told[-1]["session"] == broker.worker.session.hex() != session.told[0]["session"]
    await broker.expect(m.Credit)
    broker.deliver(("double", [4]))
    assert serial.decode((await broker.expect(m.Ack)).payloads[0], m.MSGPACK) == 8
    assert session.page.received == 1


async def test_after_a_stall_only_current_leases_are_started(broker: Any, session: Session) -> None:
    session.runner._guard._pulse_s -= 60
    kept, lost = broker.deliver(("double", [1]), ("double", [2]))
    del broker.leases[lost]
    assert (await broker.expect(m.Ack)).tokens == kept
    assert session.functions.runs == [1]
    broker.deliver(("double", [3]))
    await broker.expect(m.Ack)
    assert session.functions.runs == [1, 3]


async def has_room(broker: Any) -> None:
    """The worker takes as many tasks again as it runs at a time."""
    async with asyncio.timeout(10):
        while broker.worker.allowed < broker.delivered + 4:
            await broker.expect(m.Heartbeat)


def fill(broker: Any, name: str) -> None:
    """Deliver all that the worker allows."""
    broker.deliver(*((name, [1] if name == "wait" else []) for _ in range(broker.worker.allowed - broker.delivered)))


async def test_a_worker_that_lost_all_it_had_read_after_a_stall_takes_tasks_again(broker: Any, session: Session) -> None:
    session.runner._guard._pulse_s -= 60
    fill(broker, "wait")
    broker.leases.clear()
    await has_room(broker)
    broker.deliver(("double", [1]))
    await broker.expect(m.Ack)


def by_heartbeat(broker: Any) -> None:
    broker.leases.clear()


def by_resume(broker: Any) -> None:
    broker.leases.clear()
    broker.break_connections()


def by_a_new_session(broker: Any) -> None:
    broker.forgetful = True
    broker.break_connections()


@pytest.mark.parametrize("name", ["wait", "block"])
@pytest.mark.parametrize("lose", [by_heartbeat, by_resume, by_a_new_session])
async def test_a_worker_that_lost_all_its_leases_takes_tasks_again(broker: Any, session: Session, lose: Callable[[Any], None], name: str) -> None:
    fill(broker, name)
    while session.runner._bench._running < 4:
        await broker.expect(m.Heartbeat)
    lose(broker)
    await broker.expect(m.Credit if lose is by_heartbeat else m.Consume)
    await has_room(broker)
    broker.deliver(("double", [1]))
    await broker.expect(m.Ack)


async def test_a_credit_that_was_lost_on_its_way_is_told_with_the_next_heartbeat(broker: Any, session: Session) -> None:
    broker.worker.allowed = 0
    assert (await broker.expect(m.Heartbeat)).allowed >= 4


async def test_a_broker_that_goes_away_gets_no_more_credit(broker: Any, session: Session) -> None:
    broker.worker.send(m.Goaway("restart", 100))
    before = broker.worker.allowed
    broker.deliver(*(("double", [number]) for number in range(4)))
    await broker.expect(m.Ack)
    await broker.expect(m.Heartbeat)
    assert broker.worker.allowed == before
    broker.break_connections()
    await broker.expect(m.Resume)
    await broker.expect(m.Credit)


async def test_stopping_finishes_what_runs_and_gives_back_what_waits(broker: Any, session: Session) -> None:
    tokens = broker.deliver(*(("wait", [number]) for number in range(6)))
    for _ in range(4):
        await session.functions.started.acquire()
    session.runner.stop(1)
    assert (await broker.expect(m.Consume)).queues == []
    assert (await broker.expect(m.Release)).tokens == b"".join(tokens[4:])
    session.functions.gate.set()
    assert (await broker.expect(m.Ack)).tokens == b"".join(tokens[:4])
    await broker.expect(m.Bye)
    assert await session.running == 0


async def test_a_task_that_comes_after_the_goodbye_is_left_to_it(broker: Any, session: Session, caplog: pytest.LogCaptureFixture) -> None:
    """A shard may have granted it before the worker took its subscription back; the goodbye gives all leases back."""

    def deliver_and_agree(peer: Any, bye: m.Bye) -> m.Ok:
        broker.deliver(("double", [1]))
        return m.Ok()

    broker._answers[m.Bye] = deliver_and_agree
    assert await session.stop() == 0
    assert session.functions.runs == []
    assert m.Release not in {type(frame.message) for _, frame in broker.seen}
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


async def test_a_second_stop_gives_everything_back_at_once(broker: Any, session: Session) -> None:
    tokens = broker.deliver(("wait", [1]), ("block", []))
    await session.functions.started.acquire()
    session.runner.stop(1)
    await broker.expect(m.Consume)
    session.runner.stop(2)
    released = await broker.expect(m.Release)
    rest = released.tokens if len(released.tokens) == 16 else released.tokens + (await broker.expect(m.Release)).tokens
    assert sorted([rest[:8], rest[8:]]) == sorted(tokens)
    await broker.expect(m.Bye)


async def test_a_refused_ack_is_split_and_the_guilty_task_fails(broker: Any, session: Session) -> None:
    def refuse_twos(peer: Any, message: m.Ack) -> Any:
        if any(serial.decode(payload, m.MSGPACK) == 4 for payload in message.payloads):
            return m.Error("PAYLOAD_TOO_LARGE", "too large")
        return broker._report(peer, message)

    broker._answers[m.Ack] = refuse_twos
    tokens = broker.deliver(("double", [1]), ("double", [2]))
    await broker.expect(m.Ack)
    failed = await broker.expect(m.Fail)
    assert (failed.tokens, failed.dispositions, failed.error_types) == (tokens[1], [m.DISCARD], ["PAYLOAD_TOO_LARGE"])
    while broker.leases:
        await broker.expect(m.Heartbeat)


@pytest.mark.parametrize(("call", "kind"), [("double", m.Ack), ("fail", m.Fail), ("wait", m.Release)])
async def test_a_report_that_is_refused_again_and_again_runs_nothing_again(broker: Any, session: Session, call: str, kind: type) -> None:
    """Its last word is a short Fail; if that is refused as well the lease stays, so that the task is not given back uncharged."""
    for refused in (m.Ack, m.Fail, m.Release):
        broker._answers[refused] = lambda peer, message: m.Error("FORBIDDEN", "not that one")
    (token,) = broker.deliver((call, [] if call == "fail" else [1]))
    if kind is m.Release:
        await session.functions.started.acquire()
        broker.cancelled.add(token)
    await broker.expect(kind)
    last = await broker.expect(m.Fail)
    while not last.errors[0].startswith("the broker refused"):
        last = await broker.expect(m.Fail)
    assert last.tokens == token and last.error_types == ["FORBIDDEN"] and "not that one" in last.errors[0]
    for _ in range(2):
        assert (await broker.expect(m.Heartbeat)).tokens == token
    broker.rewind()
    assert sum(isinstance(frame.message, (m.Ack, m.Fail, m.Release)) for _, frame in broker.seen) <= 2


async def test_a_report_that_breaks_the_connection_is_found_and_the_others_arrive(broker: Any, session: Session) -> None:
    def break_at_four(peer: Any, message: m.Ack) -> Any:
        if any(serial.decode(payload, m.MSGPACK) == 4 for payload in message.payloads):
            peer.send(m.Error("INTERNAL", "a bug"))
            peer.transport.close()
            return None
        return broker._report(peer, message)

    broker._answers[m.Ack] = break_at_four
    tokens = broker.deliver(*(("double", [number]) for number in (1, 2, 3)))
    failed = await broker.expect(m.Fail)
    assert (failed.tokens, failed.dispositions, failed.error_types) == (tokens[1], [m.DISCARD], ["INTERNAL"])
    while broker.leases:
        await broker.expect(m.Heartbeat)
    assert not session.running.done()


async def test_a_refused_subscription_ends_the_worker(broker: Any) -> None:
    broker._answers[m.Consume] = lambda peer, message: m.Error("BAD_REQUEST", "queues: no such name") if message.queues else m.Ok()
    session = Session(broker.url)
    assert await session.running == EXIT_FATAL
    assert "no such name" in session.told[-1]["fatal"]
