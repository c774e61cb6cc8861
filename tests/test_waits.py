"""Waits for tasks to end: they take the time that they were given, say why it was not enough, and are in nobody's way, however many they are."""

from __future__ import annotations

import asyncio
import pickle
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from taskq import App, AsyncClient, BrokerUnavailable, Client, ResultTimeout, TaskCancelled, TaskFailed, testing
from taskq.core import messages as m
from taskq.protocol import link as links
from taskq.waits import ANSWER_S

WAIT_S = 60
GONE = "127.0.0.1:1"


class TestTime:
    @pytest.mark.parametrize("timeout", [0.6, 1, 2])
    async def test_a_result_takes_its_timeout_when_the_broker_is_gone(self, timeout: float) -> None:
        async with AsyncClient(GONE) as client:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable, match="refused"):
                await client.result("01a2265ed0a380b0a9765b3c0d698fe6", timeout)
            assert timeout - 0.1 <= time.monotonic() - began < timeout + ANSWER_S + 1

    async def test_a_result_takes_its_timeout_when_the_broker_goes_meanwhile(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            waiting = asyncio.ensure_future(handle.result(2))
            await handle.info()
            began = time.monotonic()
            await node.stop()
            with pytest.raises(BrokerUnavailable):
                await waiting
            assert time.monotonic() - began < 2 + ANSWER_S + 1

    async def test_a_broker_that_is_there_and_says_nothing_does_not_hold_up_a_result(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}") as client:
                began = time.monotonic()
                with pytest.raises(BrokerUnavailable):
                    await client.result("01a2265ed0a380b0a9765b3c0d698fe6", 1)
                assert time.monotonic() - began < 1 + ANSWER_S + 1

    @pytest.mark.parametrize("name", ["get", "cancel", "wait", "result", "queues", "workers", "broker"])
    async def test_every_call_has_a_timeout(self, name: str) -> None:
        about = ("01a2265ed0a380b0a9765b3c0d698fe6",) if name in ("get", "cancel", "wait", "result") else ()

        def blocking() -> None:
            with Client(GONE) as client, pytest.raises(BrokerUnavailable):
                getattr(client, name)(*about, timeout=0.2)

        async with AsyncClient(GONE) as client:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await getattr(client, name)(*about, timeout=0.2)
            await asyncio.to_thread(blocking)
            await client.close(timeout=0.2)
        assert time.monotonic() - began < 4

    @pytest.mark.parametrize("name", ["result", "info", "state", "cancel"])
    async def test_every_call_of_a_handle_has_a_timeout(self, name: str) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            await node.stop()
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await getattr(handle, name)(timeout=0.2)
            with pytest.raises(BrokerUnavailable):
                await asyncio.to_thread(getattr(handle, f"{name}_sync"), timeout=0.2)
            assert time.monotonic() - began < 4


class TestWords:
    async def test_a_result_timeout_says_why_the_task_has_not_begun(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t", queue="typo")
            with pytest.raises(ResultTimeout, match=r"still pending after 0\.3 s: no connected worker .*; it goes on") as caught:
                await handle.result(0.3)
            error = caught.value
            assert (error.id, error.task_type, error.state, error.error) == (handle.id, "t", "pending", "")
            assert error.blocker.startswith("no connected worker") and error.blocker in str(error)
            copy = pickle.loads(pickle.dumps(error))
            assert (str(copy), copy.blocker, copy.id) == (str(error), error.blocker, error.id)

    async def test_a_result_timeout_says_what_the_last_attempt_ended_with(self) -> None:
        app = App("localhost:1", deadline=10)

        @app.task(max_attempts=5, backoff_base="10m")
        async def breaks() -> None:
            raise KeyError("no such page")

        async with testing.broker(app) as node, testing.worker(app, node):
            handle = await breaks.enqueue()
            while await handle.state() != "retrying":
                await asyncio.sleep(0)
            with pytest.raises(ResultTimeout, match=r"still retrying after 0\.2 s: .*its last error: KeyError: 'no such page'") as caught:
                await handle.result(0.2)
            assert caught.value.state == "retrying" and "KeyError" in caught.value.error

    async def test_a_task_that_failed_tells_type_id_and_attempts(self) -> None:
        app = App("localhost:1", deadline=10)

        @app.task(max_attempts=2, backoff_base=0)
        async def breaks() -> None:
            raise KeyError("no such page")

        async with testing.broker(app) as node, testing.worker(app, node):
            handle = await breaks.enqueue()
            with pytest.raises(TaskFailed) as caught:
                await handle.result(WAIT_S)
            error = caught.value
            assert (error.id, error.task_type, error.error_type, error.attempts) == (handle.id, "breaks", "KeyError", 2)
            assert "no such page" in error.error
            copy = pickle.loads(pickle.dumps(error))
            assert (copy.error_type, copy.attempts) == ("KeyError", 2)

    async def test_a_task_that_was_cancelled_tells_which(self) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            await handle.cancel()
            with pytest.raises(TaskCancelled) as caught:
                await handle.result(WAIT_S)
            assert (caught.value.id, caught.value.task_type) == (handle.id, "t")


def test_a_client_can_be_used_in_a_second_run() -> None:
    async def use(client: AsyncClient) -> bool:
        handle = await client.enqueue("t")
        assert (await handle.info()).state == "pending"
        with pytest.raises(ResultTimeout):
            await handle.result(0)
        return handle.created

    def in_two_runs(url: str) -> list[bool]:
        client = AsyncClient(url)
        return [asyncio.run(use(client)), asyncio.run(use(client))]

    async def with_a_broker() -> list[bool]:
        async with testing.broker() as node:
            return await asyncio.to_thread(in_two_runs, node.tcp)

    assert asyncio.run(with_a_broker()) == [True, True]


async def test_twenty_thousand_waits_on_one_connection_hold_up_nothing_and_all_have_their_results() -> None:
    tasks = 20_000
    app = App("localhost:1", deadline=30)

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with testing.broker(app) as node, AsyncClient(node.tcp, deadline=30) as client:
        handles = await client.enqueue_many("double", [{"number": number} for number in range(tasks)])
        waits = asyncio.gather(*(client.result(handle) for handle in reversed(handles)))
        begun = [await client.enqueue("double", {"number": 0}, queue="other") for _ in range(20)]
        slowest_s = await _slowest(client.queues, 10)
        assert slowest_s < 5, "a call behind the waits would take as long as they do"
        async with testing.worker(app, node, concurrency=100):
            async with asyncio.timeout(WAIT_S):
                assert await waits == [2 * number for number in reversed(range(tasks))]
        assert all(handle.created for handle in begun)


async def _slowest(call: Callable[[], Coroutine[Any, Any, Any]], times: int) -> float:
    slowest_s = 0.0
    for _ in range(times):
        began = time.monotonic()
        await call()
        slowest_s = max(slowest_s, time.monotonic() - began)
    return slowest_s


def test_waits_have_a_lane_of_their_own() -> None:
    link = links.Link(m.Hello(1, "producer", {}))
    for number in range(links.WAITS_MAX + 10):
        link.request(m.Get(number.to_bytes(16, "big"), 1_000), number)
    link.request(m.Get(bytes(16)), "look")
    link.opened(0)
    link.take()
    link.receive(links.Frame(0, 1, m.Welcome(bytes(16), bytes(32), 0, 1, 5_000, 15_000)), 1)
    sent = [frame.message for frame in link.take()]
    assert sum(1 for message in sent if message.wait_ms) == links.WAITS_MAX and m.Get(bytes(16)) in sent


class TestOverHttp:
    """A client that is gone looks like one that has only ended its side, until it is answered: so both are answered at once."""

    @pytest.mark.parametrize("requests", [1, 3])
    async def test_who_ends_its_side_while_it_waits_is_answered_within_a_second(self, requests: int) -> None:
        async with testing.broker() as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            host, _, port = node.http.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET /v1/tasks/{handle.id}?wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * requests)
            await client.queues()
            began = time.monotonic()
            writer.write_eof()
            answers = await asyncio.wait_for(reader.read(), 10)
            assert time.monotonic() - began < 2
            assert answers.count(b"HTTP/1.1 200") == answers.count(b'"state":"pending"') == requests
            writer.close()

    async def test_clients_that_are_gone_make_room_for_others(self) -> None:
        async with testing.broker(connections_max=4) as node, AsyncClient(node.tcp) as client:
            handle = await client.enqueue("t")
            host, _, port = node.http.rpartition(":")

            async def asked(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                return reader, writer

            waiting = [await asked(f"/v1/tasks/{handle.id}?wait=30") for _ in range(4)]
            await client.queues()
            for _, writer in waiting:
                writer.close()
            async with asyncio.timeout(3):
                for _ in range(4):
                    answer = b""
                    while not answer.startswith(b"HTTP/1.1 200"):
                        reader, writer = await asked("/v1/queues")
                        answer = await reader.read()
                        writer.close()
