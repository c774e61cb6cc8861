"""The HTTP door on real sockets, before a small broker that keeps its tasks in a dict."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.actors.http import HttpListener, start_http
from taskq.actors.local import LOCAL_ORIGIN
from taskq.clock import SystemClock
from taskq.core import messages as m
from taskq.core.task import CANCELLED, PENDING, RUNNING, STATES
from taskq.errors import Draining
from taskq.gateway.http1 import HttpLimits
from taskq.ids import NIL, make_id, split

README = b'{"task_type":"send_email","payload":{"to":"user@example.com"}}'
JSON = {"Content-Type": "application/json"}
FLOODING, PIPELINED = 100, 300
SHORT = HttpLimits(head_s=0.1, request_s=0.3, idle_s=0.2, linger_s=0.1, sweep_s=0.02)


class Broker:
    """Answers at once, or, while `held` is a list, when the test releases it."""

    def __init__(self) -> None:
        self.states: dict[bytes, int] = {}
        self.payloads: dict[bytes, bytes] = {}
        self.asked: list[Any] = []
        self.origins: list[int] = []
        self.held: list[tuple[Any, Callable[[Any], None]]] | None = None
        self.arrived = asyncio.Event()
        self._rng = random.Random(1)

    def submit(self, message: Any, reply: Callable[[Any], None], **asker: Any) -> None:
        self.asked.append(message)
        self.origins.append(asker["origin"])
        self.arrived.set()
        if self.held is not None:
            self.held.append((message, reply))
        else:
            reply(self.answer(message))

    def release(self) -> None:
        held, self.held = self.held or [], None
        for message, reply in held:
            reply(self.answer(message))

    def answer(self, message: Any) -> Any:
        answers: dict[type, Callable[[Any], Any]] = {m.Enqueue: self._enqueue, m.Get: self._get, m.Cancel: self._cancel}
        return answers.get(type(message), lambda _: m.Inspected([{"queue": "default"}]))(message)

    def _enqueue(self, message: m.Enqueue) -> Any:
        ids = [make_id(1_700_000_000_000, 1, self._rng) if task_id == NIL else task_id for task_id in split(message.ids, 16)]
        outcomes = bytes(m.EXISTS if task_id in self.states else m.CREATED for task_id in ids)
        for task_id, payload in zip(ids, message.payloads, strict=True):
            self.states.setdefault(task_id, PENDING)
            self.payloads[task_id] = bytes(payload)
        return m.Enqueued(b"".join(ids), outcomes, bytes(self.states[task_id] for task_id in ids), m.FSYNC)

    def _get(self, message: m.Get) -> Any:
        if message.id not in self.states:
            return m.Error("NOT_FOUND", "no such task")
        info = {"id": message.id.hex(), "state": STATES[self.states[message.id]], "encoding": m.JSON, "result_encoding": m.JSON, "attempts": []}
        return m.TaskInfo([self.payloads[message.id], b'"sent"'], info)

    def _cancel(self, message: m.Cancel) -> Any:
        outcomes = {None: m.CANCEL_NOT_FOUND, RUNNING: m.CANCEL_REQUESTED, PENDING: m.CANCEL_DONE}
        outcome = outcomes.get(self.states.get(message.ids), m.CANCEL_ALREADY_FINAL)
        if outcome == m.CANCEL_DONE:
            self.states[message.ids] = CANCELLED
        return m.Cancelled(bytes([outcome]))


class Door:
    def __init__(self, listener: HttpListener, broker: Broker) -> None:
        self.listener = listener
        self.broker = broker

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.listener.address)

    async def exchange(self, data: bytes) -> bytes:
        """Send these bytes and read until the broker closes."""
        reader, writer = await self.raw()
        writer.write(data)
        found = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return found

    async def client(self, work: Callable[[http.client.HTTPConnection], Any]) -> Any:
        def run() -> Any:
            connection = http.client.HTTPConnection(*self.listener.address, timeout=10)
            try:
                return work(connection)
            finally:
                connection.close()

        return await asyncio.to_thread(run)


Open = Callable[..., Awaitable[Door]]


@pytest.fixture
async def open_door() -> AsyncIterator[Open]:
    doors: list[Door] = []

    async def open_one(limits: HttpLimits | None = None, status: Callable[[], dict[str, Any]] = lambda: {"ready": True, "reason": ""}) -> Door:
        broker = Broker()
        listener = await start_http("127.0.0.1", 0, broker.submit, status, limits or HttpLimits(sweep_s=0.05), SystemClock())
        doors.append(Door(listener, broker))
        return doors[-1]

    yield open_one
    for door in doors:
        await door.listener.close(0.2)


@pytest.fixture
async def door(open_door: Open) -> Door:
    return await open_door()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection.request(method, path, body, {**JSON, **headers} if body is not None else headers)
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else None


def get(path: str = "/healthz", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(body: bytes = README, *headers: str) -> bytes:
    lines = ["POST /enqueue HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def statuses(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


async def test_a_task_lives_its_life_over_one_connection(door: Door) -> None:
    def work(connection: http.client.HTTPConnection) -> None:
        status, created = ask(connection, "POST", "/enqueue", README)
        assert (status, created["state"], created["durability"]) == (201, "pending", "fsync")
        first = connection.sock
        status, found = ask(connection, "GET", f"/v1/tasks/{created['id']}?payload=1")
        assert (status, found["payload"], found["result"]) == (200, {"to": "user@example.com"}, None)
        assert ask(connection, "POST", "/enqueue", json.dumps({"task_type": "a", "id": created["id"]}))[0] == 200
        assert ask(connection, "DELETE", f"/v1/tasks/{created['id']}") == (200, {"id": created["id"], "state": "cancelled"})
        assert ask(connection, "DELETE", f"/v1/tasks/{created['id']}")[0] == 409
        assert ask(connection, "GET", f"/v1/tasks/{'0' * 32}")[0] == 404
        assert ask(connection, "GET", "/v1/queues") == (200, {"queues": [{"queue": "default"}]})
        assert ask(connection, "HEAD", "/v1/workers") == (200, None)
        assert ask(connection, "GET", "/openapi.json")[1]["openapi"] == "3.1.0"
        assert ask(connection, "PUT", "/enqueue", b"{}")[0] == 405
        assert ask(connection, "GET", "/nowhere")[0] == 404
        assert connection.sock is first

    await door.client(work)


async def test_a_list_of_tasks_is_answered_task_by_task(door: Door) -> None:
    tasks = [{"task_type": "a", "queue": f"q{n % 3}", "payload": n} for n in range(1000)]
    tasks[500]["priority"] = 11
    status, found = await door.client(lambda connection: ask(connection, "POST", "/enqueue", json.dumps(tasks)))
    assert status == 201
    assert len(door.broker.asked) == 3
    assert found["tasks"][500]["error"]["field"] == "tasks[500].priority"
    ids = [item.get("id") for item in found["tasks"]]
    assert all(door.broker.payloads[bytes.fromhex(text)] == str(n).encode() for n, text in enumerate(ids) if text)


async def test_readiness_follows_the_status_that_was_handed_in(open_door: Open) -> None:
    door = await open_door(status=lambda: {"ready": False, "reason": "draining"})
    status, found = await door.client(lambda connection: ask(connection, "GET", "/readyz"))
    assert (status, found["error"]["message"], found["error"]["retryable"]) == (503, "the broker is not ready: draining", True)


@pytest.mark.parametrize("size", [1, 5, 50])
async def test_a_request_may_come_in_any_pieces(door: Door, size: int) -> None:
    reader, writer = await door.raw()
    data = post() + get("/healthz", "Connection: close")
    for at in range(0, len(data), size):
        writer.write(data[at : at + size])
        await asyncio.sleep(0)
    assert statuses(await reader.read()) == [201, 200]
    writer.close()


async def test_a_body_of_a_megabyte_arrives_whole(door: Door) -> None:
    text = json.dumps({"task_type": "a", "payload": "x" * ((1 << 20) - 2)})
    status, created = await door.client(lambda connection: ask(connection, "POST", "/enqueue", text))
    assert status == 201
    assert len(door.broker.payloads[bytes.fromhex(created["id"])]) == 1 << 20


async def test_a_payload_over_the_limit_is_refused_by_name(door: Door) -> None:
    text = json.dumps({"task_type": "a", "payload": "x" * (1 << 20)})
    status, found = await door.client(lambda connection: ask(connection, "POST", "/enqueue", text))
    assert (status, found["error"]["code"], found["error"]["field"]) == (413, "PAYLOAD_TOO_LARGE", "payload")


async def test_a_body_over_the_limit_is_refused_and_its_sender_can_read_why(door: Door) -> None:
    status, found = await door.client(lambda connection: ask(connection, "POST", "/enqueue", b"x" * (8 << 20)))
    assert (status, found["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_expect_100_continue_is_answered_before_the_body_and_after_earlier_answers(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(post() + post(README, "Expect: 100-continue", "Connection: close")[: -len(README)])
    await door.broker.arrived.wait()
    door.broker.release()
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201")
    assert b"HTTP/1.1 100 Continue\r\n\r\n" in await reader.readuntil(b"Continue\r\n\r\n")
    writer.write(README)
    assert statuses(await reader.read()) == [201]
    writer.close()


async def test_pipelined_requests_are_answered_in_their_order(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(post() + get("/healthz") + post(b'{"task_type":1}') + get("/nowhere", "Connection: close"))
    await door.broker.arrived.wait()
    door.broker.release()
    assert statuses(await reader.read()) == [201, 200, 400, 404]
    writer.close()


async def test_answers_that_overtake_each_other_leave_in_order(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = held = []
    bodies = [json.dumps({"task_type": f"t{n}"}).encode() for n in range(3)]
    writer.write(b"".join(post(body) for body in bodies[:2]) + post(bodies[2], "Connection: close"))
    while len(held) < 3:
        door.broker.arrived.clear()
        await door.broker.arrived.wait()
    for n in (2, 0, 1):
        held[n][1](m.Enqueued(bytes([n]) * 16, b"\0", b"\2", m.OS))
    found = await reader.read()
    assert [json.loads(part[: part.index(b"}") + 1])["id"][:2] for part in found.split(b"\r\n\r\n")[1:]] == ["00", "01", "02"]
    writer.close()


async def test_reading_stops_when_enough_requests_wait(open_door: Open) -> None:
    door = await open_door(HttpLimits(queued_max=16))
    reader, writer = await door.raw()
    door.broker.held = held = []
    total = 600
    writer.write(post() * (total - 1) + post(README, "Connection: close"))
    await door.broker.arrived.wait()
    [connection] = door.listener._connections
    while connection._reading:
        await asyncio.sleep(0)
    assert 16 <= len(held) < 64
    door.broker.release()
    assert statuses(await reader.read()) == [201] * total
    writer.close()


async def test_a_peer_that_sent_all_and_half_closed_gets_its_answers(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(post() * 2)
    writer.write_eof()
    await door.broker.arrived.wait()
    await asyncio.sleep(0)
    door.broker.release()
    assert statuses(await asyncio.wait_for(reader.read(), 5)) == [201, 201]
    writer.close()


async def test_a_reply_to_a_peer_that_is_gone_is_dropped(door: Door) -> None:
    _, writer = await door.raw()
    door.broker.held = []
    writer.write(post())
    await door.broker.arrived.wait()
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await asyncio.wait_for(door.listener._gone.wait(), 5)
    door.broker.release()
    assert await door.client(lambda connection: ask(connection, "GET", "/healthz")) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz", 400),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 100_000, 431),
    ],
)
async def test_a_broken_request_is_answered_and_ends_only_its_own_connection(door: Door, data: bytes, status: int) -> None:
    other_reader, other = await door.raw()
    found = await door.exchange(get() + data)
    assert statuses(found) == [200, status]
    assert b"Connection: close" in found
    other.write(get("/healthz", "Connection: close"))
    assert statuses(await other_reader.read()) == [200]
    other.close()


async def test_a_bug_is_a_500_that_shows_nothing_and_a_traceback_in_the_log(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    door.broker.answer = lambda message: object()  # type: ignore[method-assign]

    def broken(message: Any, reply: Any, **asker: Any) -> None:
        raise RuntimeError("secret")

    with caplog.at_level(logging.ERROR, "taskq.actors.http"):
        first = await door.client(lambda connection: ask(connection, "GET", "/v1/queues"))
        door.listener._submit = broken
        second = await door.client(lambda connection: ask(connection, "GET", "/v1/queues"))
    for status, found in (first, second):
        assert (status, found["error"]["code"]) == (500, "INTERNAL")
        assert "secret" not in json.dumps(found)
    assert "RuntimeError: secret" in caplog.text


async def test_a_refusal_that_submit_raises_is_an_answer(door: Door) -> None:
    def draining(message: Any, reply: Any, **asker: Any) -> None:
        raise Draining(retry_after_ms=3_000)

    door.listener._submit = draining
    status, found = await door.client(lambda connection: ask(connection, "POST", "/enqueue", README))
    assert (status, found["error"]["code"], found["error"]["retry_after_ms"]) == (503, "DRAINING", 3000)


@pytest.mark.parametrize(("data", "what"), [(b"G", b"head"), (get()[:-2], b"head"), (post()[:-5], b"request did not")])
async def test_a_request_that_does_not_arrive_in_time_is_cut_with_408(open_door: Open, data: bytes, what: bytes) -> None:
    door = await open_door(SHORT)
    found = await door.exchange(data)
    assert statuses(found) == [408]
    assert what in found


async def test_a_byte_now_and_then_does_not_move_the_deadline(open_door: Open) -> None:
    door = await open_door(SHORT)
    reader, writer = await door.raw()
    answer = asyncio.ensure_future(reader.read())
    loop = asyncio.get_running_loop()
    start = loop.time()
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nA: ")
    while not answer.done():
        writer.write(b"a")
        await asyncio.wait([answer], timeout=0.02)
        assert loop.time() - start < 5
    assert statuses(await answer) == [408]
    writer.close()


async def test_an_idle_connection_is_closed_without_a_word(open_door: Open) -> None:
    door = await open_door(SHORT)
    assert await door.exchange(b"") == b""
    assert statuses(await door.exchange(get())) == [200]


async def test_a_request_that_waits_for_the_broker_is_not_cut(open_door: Open) -> None:
    door = await open_door(SHORT)
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(get(f"/v1/tasks/{'0' * 32}?wait=30"))
    await door.broker.arrived.wait()
    assert door.broker.asked == [m.Get(bytes(16), 30_000)]
    before = door.listener.now_ms
    while door.listener.now_ms - before < 600:
        await asyncio.sleep(0.02)
    door.broker.release()
    assert statuses(await reader.read()) == [404]
    writer.close()


async def test_a_peer_that_does_not_read_its_answers_is_cut(open_door: Open) -> None:
    door = await open_door(SHORT)
    peer = socket.create_connection(door.listener.address)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.setblocking(False)
    data = memoryview(get("/openapi.json") * 5_000)
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(loop.sock_sendall(peer, data), 10)
    await asyncio.wait_for(door.listener._gone.wait(), 10)
    peer.close()


async def test_too_many_connections_are_turned_away_with_a_reason(open_door: Open) -> None:
    door = await open_door(HttpLimits(connections_max=1, sweep_s=0.05, linger_s=0.1))
    reader, writer = await door.raw()
    writer.write(get())
    await reader.readuntil(b"}")
    assert statuses(await door.exchange(b"")) == [503]
    writer.write(get("/healthz", "Connection: close"))
    assert statuses(await reader.read()) == [200]
    writer.close()


async def test_a_full_door_still_answers_how_the_broker_is_and_nothing_else(open_door: Open) -> None:
    door = await open_door(HttpLimits(connections_max=2, sweep_s=0.05, linger_s=5))
    door.broker.held = []
    busy = [await door.raw() for _ in range(2)]
    for _, writer in busy:
        writer.write(get(f"/v1/tasks/{'0' * 32}"))
    while len(door.broker.held) < 2:
        await door.broker.arrived.wait()
        door.broker.arrived.clear()
    for path, status in (("/readyz", 200), ("/healthz", 200), (f"/v1/tasks/{'0' * 32}", 503), ("/v1/queues", 503)):
        answer = await door.exchange(get(path) * 2)
        assert statuses(answer) == [status]
        assert b"Connection: close" in answer
    assert len(door.broker.held) == 2
    for _, writer in busy:
        writer.close()


async def test_of_those_that_ask_nothing_the_oldest_make_room(open_door: Open) -> None:
    door = await open_door(HttpLimits(silent_connections_max=3))
    asked = await door.raw()
    asked[1].write(get())
    await asked[0].readuntil(b"}")
    silent = [await door.raw() for _ in range(30)]
    for _, writer in silent[::2]:
        writer.write(b"GET /rea")
    for reader, _ in silent[:27]:
        assert await asyncio.wait_for(reader.read(), 10) == b""
    for _, writer in (asked, *silent[28:29]):
        writer.write(b"dyz HTTP/1.1\r\nHost: localhost\r\n\r\n" if writer is not asked[1] else get("/readyz"))
    for reader, writer in (asked, *silent[28:29]):
        assert b"200" in await asyncio.wait_for(reader.readuntil(b"}"), 10)
        writer.close()
    for _, writer in silent:
        writer.close()


async def test_where_the_door_is_full_who_has_been_idle_for_longest_makes_room(open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.actors.quiet.SPARED_S", 0.0)
    door = await open_door(HttpLimits(connections_max=3))
    first, *others = [await door.raw() for _ in range(3)]
    for reader, writer in (first, *others):
        writer.write(get())
        await reader.readuntil(b"}")
    assert statuses(await door.exchange(get("/v1/queues", "Connection: close"))) == [200]
    assert await first[0].read() == b""
    first[1].close()
    for reader, writer in others:
        writer.write(get())
        assert b"200" in await reader.readuntil(b"}")
        writer.close()


async def test_who_was_told_to_go_on_with_a_body_is_not_idle(open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.actors.quiet.SPARED_S", 0.0)
    door = await open_door(HttpLimits(connections_max=2))
    reader, writer = await door.raw()
    writer.write(post(README, "Expect: 100-continue")[: -len(README)])
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    idle = await door.raw()
    idle[1].write(get())
    await idle[0].readuntil(b"}")
    assert statuses(await door.exchange(get("/v1/queues", "Connection: close"))) == [200]
    assert await idle[0].read() == b""
    idle[1].close()
    writer.write(README)
    assert b"201" in await asyncio.wait_for(reader.readuntil(b"}"), 10)
    writer.close()


async def test_closing_ends_idle_connections_and_lets_requests_in_progress_finish(door: Door) -> None:
    idle_reader, idle = await door.raw()
    idle.write(get())
    await idle_reader.readuntil(b"}")
    reader, writer = await door.raw()
    door.broker.arrived.clear()
    door.broker.held = []
    writer.write(post())
    await door.broker.arrived.wait()
    closing = asyncio.ensure_future(door.listener.close(10))
    assert await idle_reader.read() == b""
    with pytest.raises(OSError):
        await door.raw()
    door.broker.release()
    found = await reader.read()
    await closing
    assert statuses(found) == [201]
    assert b"Connection: close" in found
    idle.close()
    writer.close()


async def test_closing_does_not_wait_for_who_only_waits_itself(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(get(f"/v1/tasks/{'0' * 32}?wait=60"))
    await door.broker.arrived.wait()
    await door.listener.close(10)
    found = await reader.read()
    assert statuses(found) == [503]
    assert b"DRAINING" in found and b"Connection: close" in found
    door.broker.release()
    writer.close()


async def test_closing_cuts_what_is_not_done_by_the_deadline(door: Door) -> None:
    reader, writer = await door.raw()
    door.broker.held = []
    writer.write(post())
    await door.broker.arrived.wait()
    await door.listener.close(0.05)
    with pytest.raises(ConnectionError):
        if not await reader.read():
            raise ConnectionResetError
    writer.close()


async def test_localhost_means_both_loopbacks_on_one_port() -> None:
    broker = Broker()
    listener = await start_http("localhost", 0, broker.submit, lambda: {"ready": True}, HttpLimits(), SystemClock())
    hosts, ports = zip(*listener.addresses, strict=True)
    assert hosts[0] == "127.0.0.1"
    assert set(hosts) <= {"127.0.0.1", "::1"}
    assert len(set(ports)) == 1
    for address in listener.addresses:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(get("/healthz", "Connection: close"))
        assert statuses(await reader.read()) == [200]
        writer.close()
    await listener.close(1)


async def test_a_port_in_use_is_an_error(door: Door) -> None:
    host, port = door.listener.address
    with pytest.raises(OSError):
        await start_http(host, port, door.broker.submit, lambda: {"ready": True}, HttpLimits(), SystemClock())


async def test_many_peers_at_once_reach_the_broker_and_each_gets_its_own_answer(door: Door) -> None:
    async def one(n: int) -> None:
        found = await door.exchange(post(json.dumps({"task_type": "a", "payload": n}).encode(), "Connection: close"))
        task_id = bytes.fromhex(json.loads(found.partition(b"\r\n\r\n")[2])["id"])
        assert door.broker.payloads[task_id] == str(n).encode()

    await asyncio.gather(*(one(n) for n in range(200)))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([get(), post(), post()[:-9], b"\r\n\r\n"])), max_size=6))
async def test_random_bytes_end_at_most_their_own_connection(chunks: list[bytes]) -> None:
    broker = Broker()
    listener = await start_http("127.0.0.1", 0, broker.submit, lambda: {"ready": True}, HttpLimits(), SystemClock())
    door = Door(listener, broker)
    reader, writer = await door.raw()
    for chunk in chunks:
        writer.write(chunk)
        await asyncio.sleep(0)
    writer.write_eof()
    found = await asyncio.wait_for(reader.read(), 5)
    assert not found or found.startswith(b"HTTP/1.1 ")
    assert 500 not in statuses(found)
    assert statuses(await door.exchange(get("/healthz", "Connection: close"))) == [200]
    writer.close()
    await listener.close(1)


async def test_each_connection_asks_in_its_own_name(door: Door) -> None:
    def ask_twice(connection: http.client.HTTPConnection) -> None:
        for _ in range(2):
            ask(connection, "GET", "/v1/queues")

    await door.client(ask_twice)
    await door.client(ask_twice)
    first, second = door.broker.origins[0], door.broker.origins[2]
    assert door.broker.origins == [first, first, second, second]
    assert first != second and max(first, second) < LOCAL_ORIGIN


async def test_who_asks_one_thing_is_not_behind_all_that_others_have_sent(open_door: Open) -> None:
    answered = 0

    def status() -> dict[str, Any]:
        nonlocal answered
        answered += 1
        return {"ready": True, "reason": ""}

    door = await open_door(status=status)
    with ExitStack() as flood:
        for _ in range(FLOODING):
            one = flood.enter_context(socket.create_connection(door.listener.address))
            one.setblocking(False)
            one.send(get("/readyz") * PIPELINED)
        assert (await door.client(lambda connection: ask(connection, "POST", "/enqueue", README)))[0] == 201
        assert answered < FLOODING * PIPELINED // 4


async def test_no_more_than_sixteen_requests_of_a_connection_are_taken_at_a_time(door: Door) -> None:
    door.broker.held = []
    _, writer = await door.raw()
    writer.write(get("/v1/queues") * 50)
    await door.broker.arrived.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(door.broker.held) == HttpLimits().queued_max
    writer.close()


async def test_what_waits_for_its_turn_is_all_answered_in_order(door: Door) -> None:
    body = b'{"task_type":"t",' + b"\r\n\r\n" * 2_000 + b'"payload":1}'
    found = await door.exchange((get("/healthz") + post(body) + get("/nothing")) * 40 + get("/healthz", "Connection: close"))
    assert statuses(found) == [200, 201, 404] * 40 + [200]
