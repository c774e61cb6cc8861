"""The blocking client: who calls does the work of the connection itself, and nobody's call is forgotten when callers come, go and are interrupted."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scripted import Scripted, created

from taskq import App, AsyncClient, BrokerUnavailable, Client, ResultTimeout, testing
from taskq.core import messages as m
from taskq.errors import NotFound
from taskq.protocol.frames import RESENT, Frame
from taskq.protocol.framing import FrameDecoder

WAIT_S = 20


@contextmanager
def scripted(heartbeat_ms: int = 5_000) -> Iterator[tuple[Scripted, Client]]:
    broker, loop = Scripted(heartbeat_ms=heartbeat_ms), asyncio.new_event_loop()
    server = loop.run_until_complete(broker.listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with Client(broker.url, deadline=5) as client:
            yield broker, client
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(server.wait_closed())
        loop.close()


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The threads in which answers to enqueues were taken."""
    found: list[threading.Thread] = []
    answered = AsyncClient._answered

    def note(self: AsyncClient, *arguments: Any) -> None:
        found.append(threading.current_thread())
        answered(self, *arguments)

    monkeypatch.setattr(AsyncClient, "_answered", note)
    return found


def in_threads(*calls: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


class TestALoneCaller:
    def test_sends_and_reads_by_itself(self, readers: list[threading.Thread]) -> None:
        with scripted() as (broker, client):
            handles = [client.enqueue("t", {"n": number}) for number in range(20)]
        assert [handle.raw for handle in handles] == [frame.message.ids for frame in broker.frames]
        assert set(readers) == {threading.current_thread()} and broker.connections == 1

    def test_takes_over_from_the_stand_in_that_served_the_quiet_connection(self, readers: list[threading.Thread]) -> None:
        with scripted(heartbeat_ms=700) as (broker, client):
            client.enqueue("t")
            assert broker.beats.acquire(timeout=WAIT_S), "the stand-in keeps the connection alive"
            client.enqueue("t")
            client.enqueue("t")
        assert set(readers) == {threading.current_thread()} and broker.connections == 1

    def test_keeps_the_connection_alive_while_it_calls_without_a_pause(self) -> None:
        with scripted(heartbeat_ms=400) as (broker, client):
            until_s = time.monotonic() + WAIT_S
            beats = 0
            while beats < 3 and time.monotonic() < until_s:
                client.enqueue("t")
                beats += broker.beats.acquire(blocking=False)
        assert beats == 3 and broker.connections == 1

    def test_sends_again_with_the_flag_when_the_connection_breaks(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: [None]]
            handle = client.enqueue("t")
        first, second = broker.frames[1:]
        assert (first.message.ids, second.message.ids) == (handle.raw, handle.raw)
        assert (first.flags, second.flags) == (0, RESENT)

    def test_finds_out_that_the_connection_broke_between_two_calls(self) -> None:
        with scripted() as (broker, client):
            broker.script = [lambda frame: [*created(frame), None]]
            client.enqueue("t")
            assert client.enqueue("t").created

    def test_asks_an_overloaded_broker_again(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: [m.Error("OVERLOADED", "too much", "", True, 30)]]
            assert client.enqueue("t").created
        assert len(broker.frames) == 3

    def test_gives_up_at_the_deadline(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: []]
            with pytest.raises(BrokerUnavailable, match="did not answer before the deadline"):
                client.enqueue("t", deadline=0.1)
            assert client.enqueue("t").created
        assert broker.connections == 1

    def test_is_told_the_brokers_refusal(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: [m.Error("NOT_FOUND", "no such thing")]]
            with pytest.raises(NotFound, match="no such thing"):
                client.enqueue("t")


class TestSeveralCallers:
    def test_the_call_of_another_thread_does_not_wait_for_the_leaders_end(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            asked, answer = threading.Event(), threading.Event()
            broker.script = [lambda frame: asked.set() or []]  # type: ignore[func-returns-value]
            failed: list[BaseException] = []

            def lead() -> None:
                with pytest.raises(BrokerUnavailable):
                    client.enqueue("long", deadline=2)
                failed.append(AssertionError("the leader ended first")) if not answer.is_set() else None

            threads = in_threads(lead)
            assert asked.wait(WAIT_S)
            client.enqueue("short")
            answer.set()
            join(threads)
            assert not failed

    def test_a_call_that_the_leader_leaves_behind_goes_on(self) -> None:
        def both(frame: Frame) -> list[Any]:
            """The leader's answer, and that the other has to be sent again later."""
            first = broker.frames[-2]
            return [Frame(0, first.seq, created(first)[0]), m.Error("OVERLOADED", "too much", "", True, 300)]

        with scripted() as (broker, client):
            client.enqueue("t")
            asked = threading.Event()
            broker.script = [lambda frame: asked.set() or [], both]  # type: ignore[func-returns-value]
            ended: list[Any] = []
            threads = in_threads(lambda: ended.append(client.enqueue("leads")))
            assert asked.wait(WAIT_S)
            threads += in_threads(lambda: ended.append(client.enqueue("is_left_behind")))
            join(threads)
            assert len(ended) == 2

    def test_many_threads_enqueue_and_follow_their_tasks_at_once(self) -> None:
        def use(client: Client) -> int:
            ids: list[str] = []

            def work(number: int) -> None:
                for each in range(20):
                    handle = client.enqueue("t", {"n": number, "each": each})
                    assert handle.info_sync().payload == {"n": number, "each": each}
                    ids.append(handle.id)

            join(in_threads(*(lambda number=number: work(number) for number in range(8))))  # type: ignore[misc]
            return len(set(ids))

        async def all_of_it() -> int:
            async with testing.broker() as node:
                with Client(node.tcp) as client:
                    found = await asyncio.to_thread(use, client)
                    await asyncio.to_thread(client.close)
                    return found

        assert asyncio.run(all_of_it()) == 160

    def test_every_call_in_a_thread_with_a_running_loop_is_refused_and_says_what_to_await(self) -> None:
        app = App()

        @app.task
        def greet(name: str) -> str:
            return name

        with scripted() as (broker, client):
            app.use(str(client.address))
            handle = client.enqueue("t")
            calls: dict[str, Callable[[], Any]] = {
                "AsyncClient.enqueue": lambda: Client(str(client.address)).enqueue("t"),
                "call of AsyncClient": lambda: client.enqueue_many("t", [{}]),
                "the same call of AsyncClient": client.queues,
                "handle.result": lambda: handle.result_sync(1),
                "handle.info": handle.info_sync,
                "handle.state": handle.state_sync,
                "handle.cancel": handle.cancel_sync,
                "greet.enqueue(": lambda: greet.enqueue_sync("x"),
                "greet.enqueue_many(": lambda: greet.enqueue_many_sync([{"name": "x"}]),
            }

            async def on_a_loop() -> None:
                for instead, call in calls.items():
                    with pytest.raises(RuntimeError, match="await") as refused:
                        call()
                    assert instead in str(refused.value)
                assert (await asyncio.to_thread(client.enqueue, "t")).created

            asyncio.run(on_a_loop())
            app.close_sync()
        assert len(broker.frames) == 2


class Late(Exception):
    """What a signal's handler raises."""


@contextmanager
def alarm(after_s: float, do: Callable[[], Any] = lambda: None) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        do()
        raise Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestInterrupts:
    @pytest.mark.parametrize("call", [lambda client: client.enqueue("t"), lambda client: client.enqueue_many("t", [{}])])
    def test_a_signal_ends_a_wait_and_the_connection_goes_on(self, call: Callable[[Client], Any]) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: []]
            with alarm(0.2), pytest.raises(Late):
                call(client)
            assert client.enqueue("t").created
            assert broker.connections == 1

    @pytest.mark.parametrize("error", [KeyboardInterrupt, Late])
    @pytest.mark.parametrize("call", [lambda client: client.enqueue("t"), lambda client: client.enqueue_many("t", [{}])])
    def test_a_signal_in_the_middle_of_the_work_costs_the_connection_and_no_more(
        self, call: Callable[[Client], Any], error: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            feed, this_thread = FrameDecoder.feed, threading.current_thread()

            def interrupted(self: FrameDecoder, data: bytes) -> list[Frame]:
                if threading.current_thread() is this_thread:
                    monkeypatch.setattr(FrameDecoder, "feed", feed)
                    raise error
                return feed(self, data)

            monkeypatch.setattr(FrameDecoder, "feed", interrupted)
            with pytest.raises(error):
                call(client)
            assert client.enqueue("t").created
            assert broker.connections == 2

    def test_a_handler_that_calls_in_the_middle_of_its_threads_call_is_refused_instead_of_hanging(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            broker.script = [lambda frame: []]
            with alarm(0.2, lambda: client.enqueue("t")), pytest.raises(RuntimeError, match="give it its own"):
                client.enqueue("t")
            assert client.enqueue("t").created


class TestTheEnd:
    def test_a_closed_client_connects_again(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            client.close()
            client.enqueue("t")
        assert broker.connections == 2

    def test_closing_refuses_the_call_of_the_leader(self) -> None:
        with scripted() as (broker, client):
            client.enqueue("t")
            asked = threading.Event()
            broker.script = [lambda frame: asked.set() or []]  # type: ignore[func-returns-value]
            refused: list[BaseException] = []

            def lead() -> None:
                try:
                    client.enqueue("t")
                except BaseException as error:
                    refused.append(error)

            threads = in_threads(lead)
            assert asked.wait(WAIT_S)
            client.close()
            join(threads)
            assert isinstance(refused[0], BrokerUnavailable)

    def test_the_handle_of_a_closed_client_says_what_to_do(self) -> None:
        with scripted() as (_, client):
            handle = client.enqueue("t")
            client.close()
            with pytest.raises(RuntimeError, match="ask by id with another client"):
                handle.state_sync()

    async def test_a_wait_that_times_out_leaves_the_client_usable(self) -> None:
        def use(url: str) -> None:
            with Client(url) as client:
                handle = client.enqueue("nobody_knows")
                with pytest.raises(ResultTimeout):
                    client.result(handle, timeout=0.05)
                assert client.get(handle).state == "pending"

        async with testing.broker() as node:
            await asyncio.to_thread(use, node.tcp)
