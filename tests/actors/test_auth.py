"""Access tokens at both doors of a real broker: who is let in, what it may do there, and what becomes of who is not."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from access_tokens import make

from taskq import AsyncClient, testing
from taskq.actors import http as http_module
from taskq.actors import http_connection
from taskq.actors import session as module
from taskq.core import messages as m
from taskq.core.access import SCOPES
from taskq.core.gate import FAILURES_MAX, text_of
from taskq.core.scram import Prover
from taskq.errors import AuthFailed, AuthRequired, Forbidden, NotFound
from taskq.node import Node
from taskq.protocol.codec import encode
from taskq.protocol.framing import FrameDecoder
from taskq.storage.tokens import changing

WAIT_S = 10.0
OURS, THEIRS = "email.eu", "images"


def revoke(folder: Path, name: str) -> None:
    with changing(folder) as tokens:
        del tokens[name]


class Peer:
    """A TCP connection that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder(1 << 26)

    def send(self, message: Any, seq: int = 1) -> None:
        self._writer.writelines(bytes(part) for part in encode(message, seq))

    async def message(self) -> Any:
        """The next one, None at the end."""
        while data := await asyncio.wait_for(self._reader.read(1 << 16), WAIT_S):
            frames = self._decoder.feed(data)
            if frames:
                assert len(frames) == 1
                return frames[0].message
        return None

    async def ask(self, message: Any, seq: int = 1) -> Any:
        self.send(message, seq)
        return await self.message()

    async def begin(self, token: str, name: str, role: str = "producer") -> m.Proof:
        """Greet; the proof that is to follow."""
        prover = Prover(name, token, bytes)
        challenge = await self.ask(m.Hello(1, role, auth=prover.first()))
        assert type(challenge) is m.Challenge
        return m.Proof(prover.final(challenge.challenge))

    async def come_in(self, token: str, name: str, role: str = "producer") -> Any:
        return await self.ask(await self.begin(token, name, role), 2)

    def close(self) -> None:
        self._writer.close()


@attrs.define
class House:
    """A broker that asks for tokens, and its folder."""

    node: Node
    folder: Path
    peers: list[Peer] = attrs.field(factory=list)

    async def peer(self) -> Peer:
        host, port = self.node.tcp.rsplit(":", 1)
        self.peers.append(Peer(*await asyncio.open_connection(host, int(port))))
        return self.peers[-1]

    async def http(
        self, method: str, path: str, token: str | None = None, body: Any = None, scheme: str = "Bearer"
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of one request on a connection of its own."""
        host, port = self.node.http.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.node.http}", "Connection: close"]
        lines += [f"Authorization: {scheme} {token}"] if token is not None else []
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"] if data else []
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        head, _, found = (await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n\r\n")
        writer.close()
        first, *rest = head.decode().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in rest), json.loads(found)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with testing.broker(data=tmp_path, auth=True) as node:
        house = House(node, tmp_path)
        yield house
        for peer in house.peers:
            peer.close()


# ---- what a token is good for, at both doors ----------------------------------------------------------------------------------------------


async def enqueue_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    return await client.enqueue("work", {}, queue=queue)


async def get_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    assert (await client.get(task)).queue == queue


async def cancel_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    assert await client.cancel(task) == "cancelled"


async def queues_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    assert queue in [row["queue"] for row in await client.queues()], "not shown"


async def workers_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    await client.workers()


async def broker_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    assert (await client._call(m.Inspect("broker"))).rows


async def consume_tcp(client: AsyncClient, queue: str, task: str) -> Any:
    """As a worker does: another role on a connection of its own."""
    from taskq.connection import Channel, hello

    channel = Channel(client.address, hello("worker"), lambda event: None, token=client._token)
    channel.start()
    try:
        await channel.call(m.Consume([queue], ["work"], 1), WAIT_S)
    finally:
        await channel.stop(bye=False)


# operation → how it is done, and the scope that it takes
Operation = Callable[[AsyncClient, str, str], Awaitable[Any]]
TCP: dict[str, tuple[Operation, str]] = {
    "enqueue": (enqueue_tcp, "produce"),
    "cancel": (cancel_tcp, "produce"),
    "get": (get_tcp, "read"),
    "queues": (queues_tcp, "read"),
    "workers": (workers_tcp, "read"),
    "consume": (consume_tcp, "consume"),
    "broker": (broker_tcp, "admin"),
}
HTTP: dict[str, tuple[Callable[[str, str], tuple[str, str, Any]], str]] = {
    "enqueue": (lambda queue, task: ("POST", "/enqueue", {"task_type": "work", "queue": queue}), "produce"),
    "cancel": (lambda queue, task: ("DELETE", f"/v1/tasks/{task}", None), "produce"),
    "get": (lambda queue, task: ("GET", f"/v1/tasks/{task}", None), "read"),
    "queues": (lambda queue, task: ("GET", "/v1/queues", None), "read"),
    "workers": (lambda queue, task: ("GET", "/v1/workers", None), "read"),
}
# which queues the token is for → whether that is enough for OURS, and for all
GLOBS = {"": (True, True), ":email*": (True, False), f":{THEIRS}": (False, False)}


def is_allowed(operation: str, needed: str, scope: str, glob: str) -> bool:
    ours, everywhere = GLOBS[glob]
    if needed == "admin":
        return scope == "admin" and everywhere
    return scope in (needed, "admin") and (ours or operation == "workers")


async def tasks_of(house: House) -> Callable[[], Awaitable[str]]:
    root = make(house.folder, "root", "admin")

    async def fresh() -> str:
        async with AsyncClient(house.node.tcp, token=root) as client:
            return (await client.enqueue("work", {}, queue=OURS)).id

    return fresh


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("glob", GLOBS)
async def test_every_operation_over_tcp_takes_its_scope_for_its_queue(house: House, scope: str, glob: str) -> None:
    fresh, token = await tasks_of(house), make(house.folder, "tried", scope + glob)
    for operation, (run, needed) in TCP.items():
        task = await fresh()
        async with AsyncClient(house.node.tcp, token=token) as client:
            try:
                await run(client, OURS, task)
                done = True
            except Forbidden as refusal:
                assert "access token tried does not have the scope " + needed in str(refusal)
                assert OURS in str(refusal) or "any queue" in str(refusal) or needed == "admin"
                done = False
            except NotFound as error:
                assert operation == "get" and scope in ("read", "admin") and OURS not in str(error)
                done = False
            except AssertionError as error:
                assert operation == "queues" and "not shown" in str(error) and scope in ("read", "admin")
                done = False
        assert done == is_allowed(operation, needed, scope, glob), operation


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("glob", GLOBS)
async def test_every_operation_over_http_takes_the_same(house: House, scope: str, glob: str) -> None:
    fresh, token = await tasks_of(house), make(house.folder, "tried", scope + glob)
    for operation, (request, needed) in HTTP.items():
        method, path, asked = request(OURS, await fresh())
        status, _, body = await house.http(method, path, token, asked)
        allowed = is_allowed(operation, needed, scope, glob)
        if operation == "queues" and status == 200:
            assert (OURS in [row["queue"] for row in body["queues"]]) == allowed
        else:
            assert (status < 300) == allowed, (operation, status, body)
        if operation == "get" and status == 404:
            assert scope in ("read", "admin") and OURS not in str(body)
        elif status >= 300:
            assert status == 403 and body["error"]["code"] == "FORBIDDEN"
            assert f"the scope {needed} for " in body["error"]["message"]


def test_both_matrices_are_the_same_where_both_doors_have_the_operation() -> None:
    assert all(TCP[operation][1] == needed for operation, (_, needed) in HTTP.items())


async def test_a_list_of_tasks_for_several_queues_is_taken_queue_by_queue(house: House) -> None:
    token = make(house.folder, "mailer", "produce:email*")
    tasks = [{"task_type": "work", "queue": OURS}, {"task_type": "work", "queue": THEIRS}]
    status, _, body = await house.http("POST", "/enqueue", token, tasks)
    assert status == 201
    assert body["tasks"][0]["state"] == "pending" and body["tasks"][1]["error"]["code"] == "FORBIDDEN"


# ---- TCP ---------------------------------------------------------------------------------------------------------------------------------


async def test_without_a_token_a_client_is_told_at_once_how_to_give_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKQ_TOKEN", raising=False)
    async with AsyncClient(house.node.tcp) as client:
        with pytest.raises(AuthRequired, match=r"TASKQ_TOKEN.*token="):
            await client.enqueue("work", {})


async def test_the_token_is_taken_from_the_environment(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_TOKEN", make(house.folder, "mailer", "produce"))
    async with AsyncClient(house.node.tcp) as client:
        await client.enqueue("work", {})


async def test_a_client_with_a_wrong_token_is_told_at_once(house: House) -> None:
    make(house.folder, "mailer", "produce")
    for name in ("mailer", "nobody"):
        async with AsyncClient(house.node.tcp, token=text_of(name, bytes(32))) as client:
            with pytest.raises(AuthFailed, match="is not known"):
                await client.enqueue("work", {})


async def test_a_client_with_a_token_works_with_a_broker_that_asks_for_none() -> None:
    async with testing.broker() as node, AsyncClient(node.tcp, token=text_of("mailer", bytes(32))) as client:
        await client.enqueue("work", {})


async def test_a_known_and_an_unknown_name_get_the_same_answers(house: House) -> None:
    make(house.folder, "mailer", "produce")
    told = []
    for name in ("mailer", "nobody"):
        peer = await house.peer()
        told.append(await peer.come_in(text_of(name, bytes(32)), name))
        assert await peer.message() is None
    assert told[0] == told[1] and told[0].code == "AUTH_FAILED"


async def test_before_the_proof_a_frame_stays_small_and_afterwards_it_may_be_large(house: House) -> None:
    token = make(house.folder, "mailer", "produce")
    large = m.Enqueue([bytes(20_000)], "q", bytes(16), ["work"])
    peer = await house.peer()
    await peer.begin(token, "mailer")
    assert (await peer.ask(large, 2)).code == "FRAME_TOO_LARGE"
    peer = await house.peer()
    assert type(await peer.come_in(token, "mailer")) is m.Welcome
    assert type(await peer.ask(large, 3)) is m.Enqueued


async def test_who_greets_and_proves_nothing_is_cut_off(tmp_path: Path) -> None:
    async with testing.broker(data=tmp_path, auth=True, greeting_deadline=0.2) as node:
        house = House(node, tmp_path)
        peer = await house.peer()
        await peer.begin(make(house.folder, "mailer", "produce"), "mailer")
        error = await peer.message()
        assert (error.code, error.message) == ("TIMED_OUT", "no PROOF came within 0.2 s")
        peer.close()


async def test_a_broker_that_stops_says_nothing_to_who_has_not_come_in(house: House) -> None:
    peer = await house.peer()
    await peer.begin(make(house.folder, "mailer", "produce"), "mailer")
    await house.node.drain(0)
    peer.send(m.Heartbeat(), 2)
    assert (await peer.message()).code == "OUT_OF_ORDER", "and not GOAWAY"


@pytest.mark.parametrize("role", ["producer", "worker"])
async def test_the_connections_of_a_revoked_token_end_and_no_others(house: House, role: str) -> None:
    token, kept = make(house.folder, "gone", "produce", "consume"), make(house.folder, "kept", "produce")
    gone, stays = await house.peer(), await house.peer()
    assert type(await gone.come_in(token, "gone", role)) is m.Welcome
    assert type(await stays.come_in(kept, "kept")) is m.Welcome
    begun = asyncio.get_running_loop().time()
    revoke(house.folder, "gone")
    error = await gone.message()
    assert error.code == "AUTH_FAILED" and "revoked" in error.message
    assert await gone.message() is None
    assert asyncio.get_running_loop().time() - begun < 2.5
    assert type(await stays.ask(m.Heartbeat(), 3)) is m.Beat
    assert (await (await house.peer()).come_in(token, "gone")).code == "AUTH_FAILED"


async def test_a_token_that_is_made_anew_with_other_rights_ends_what_the_old_one_opened(house: House) -> None:
    token = make(house.folder, "mailer", "produce", "read")
    peer = await house.peer()
    assert type(await peer.come_in(token, "mailer")) is m.Welcome
    make(house.folder, "mailer", "read")
    assert (await peer.message()).code == "AUTH_FAILED"


async def test_a_token_counts_as_soon_as_it_is_made(house: House) -> None:
    assert (await (await house.peer()).come_in(text_of("later", bytes(32)), "later")).code == "AUTH_FAILED"
    token = make(house.folder, "later", "produce")
    assert type(await (await house.peer()).come_in(token, "later")) is m.Welcome


async def test_after_ten_failures_the_next_are_told_late_and_the_right_token_is_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAILURE_S", 0.5)
    monkeypatch.setattr(http_connection, "FAILURE_S", 0.5)
    token = make(house.folder, "mailer", "produce", "read")
    loop = asyncio.get_running_loop()

    async def taken(work: Awaitable[Any]) -> tuple[Any, float]:
        begun = loop.time()
        return await work, loop.time() - begun

    for _ in range(FAILURES_MAX):
        told, seconds = await taken((await house.peer()).come_in(text_of("mailer", bytes(32)), "mailer"))
        assert told.code == "AUTH_FAILED" and seconds < 0.5
    peer = await house.peer()
    told, seconds = await taken(peer.come_in(text_of("mailer", bytes(32)), "mailer"))
    assert told.code == "AUTH_FAILED" and seconds >= 0.5
    assert await peer.message() is None
    (status, _, _), seconds = await taken(house.http("GET", "/v1/queues", "wrong"))
    assert status == 401 and seconds >= 0.5, "both doors count together"
    told, seconds = await taken((await house.peer()).come_in(token, "mailer"))
    assert type(told) is m.Welcome and seconds < 0.5
    (status, _, _), seconds = await taken(house.http("GET", "/v1/queues", token))
    assert status == 200 and seconds < 0.5


# ---- HTTP --------------------------------------------------------------------------------------------------------------------------------


async def test_over_http_a_request_without_a_token_is_a_401_that_says_what_to_send(house: House) -> None:
    make(house.folder, "mailer", "read")
    for scheme, token in (("Bearer", None), ("Basic", "dXNlcjpwYXNz"), ("Bearer", "")):
        status, headers, body = await house.http("GET", "/v1/queues", token, scheme=scheme)
        assert (status, headers["WWW-Authenticate"], body["error"]["code"]) == (401, 'Bearer realm="taskq"', "AUTH_REQUIRED")
        assert "Authorization: Bearer" in body["error"]["message"]


async def test_over_http_a_wrong_token_is_a_401(house: House) -> None:
    make(house.folder, "mailer", "read")
    for token in ("x", text_of("mailer", bytes(32)), text_of("nobody", bytes(32))):
        status, headers, body = await house.http("GET", "/v1/queues", token)
        assert (status, body["error"]["code"]) == (401, "AUTH_FAILED")
        assert 'error="invalid_token"' in headers["WWW-Authenticate"] and token not in json.dumps(body)


async def test_the_word_bearer_may_be_written_in_any_case(house: House) -> None:
    assert (await house.http("GET", "/v1/queues", make(house.folder, "mailer", "read"), scheme="bEaReR"))[0] == 200


async def test_over_http_a_revoked_token_is_refused_at_once(house: House) -> None:
    token = make(house.folder, "mailer", "read")
    assert (await house.http("GET", "/v1/queues", token))[0] == 200
    revoke(house.folder, "mailer")
    assert (await house.http("GET", "/v1/queues", token))[0] == 401


async def test_an_answer_that_was_waited_for_looks_at_the_token_again(house: House) -> None:
    token = make(house.folder, "mailer", "read")
    async with AsyncClient(house.node.tcp, token=make(house.folder, "boss", "admin")) as client:
        handle = await client.enqueue("t")
        waiting = asyncio.ensure_future(house.http("GET", f"/v1/tasks/{handle.id}?wait=20", token))
        while not any(actor.shard.waiters for actor in house.node._shards):
            await asyncio.sleep(0.01)
        revoke(house.folder, "mailer")
        await client.cancel(handle.id)
        status, headers, body = await waiting
    assert (status, body["error"]["code"]) == (401, "AUTH_FAILED")
    assert "WWW-Authenticate" in headers and set(body) == {"error"}


async def test_what_tells_nothing_of_tasks_is_open_to_everybody(house: House) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert (await house.http("GET", path))[0] == 200
    for path in ("/v1/queues", "/v1/workers", "/v1/tasks/" + "0" * 32, "/", "/healthz/", "/nothing"):
        assert (await house.http("GET", path))[0] == 401, path


async def test_a_body_is_not_waited_for_from_who_is_not_let_in(house: House) -> None:
    """The refusal comes while the body is still under way, and the connection ends."""
    host, port = house.node.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /enqueue HTTP/1.1\r\nHost: {house.node.http}\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n[".encode())
    told = await asyncio.wait_for(reader.read(), WAIT_S)
    assert told.startswith(b"HTTP/1.1 401 ") and b"Connection: close" in told
    writer.close()


async def test_two_authorization_headers_are_one_too_many(house: House) -> None:
    token = make(house.folder, "mailer", "read")
    assert (await house.http("GET", "/v1/queues", f"{token}\r\nAuthorization: Bearer {token}"))[0] == 400


class Wire:
    """A transport with any peer and any encryption, that keeps what is written."""

    def __init__(self, peer: Any, tls: ssl.SSLObject | None = None) -> None:
        self.known = {"peername": peer, "ssl_object": tls}
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.known.get(name, default)

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: None


class AnyTls(ssl.SSLObject):
    """Only that it is there counts."""

    def __new__(cls) -> AnyTls:
        return object.__new__(cls)

    def __init__(self) -> None:
        pass


PEERS: dict[str, tuple[Wire, bool]] = {
    "from this machine": (Wire(("127.0.0.1", 5)), True),
    "from another address of this machine": (Wire(("127.9.9.9", 5)), True),
    "from this machine over IPv6": (Wire(("::1", 5, 0, 0)), True),
    "from this machine over IPv6 as IPv4": (Wire(("::ffff:127.0.0.1", 5, 0, 0)), True),
    "from elsewhere": (Wire(("192.0.2.7", 5)), False),
    "from elsewhere over IPv6": (Wire(("2001:db8::1", 5, 0, 0)), False),
    "from elsewhere over IPv6 as IPv4": (Wire(("::ffff:192.0.2.7", 5, 0, 0)), False),
    "from nowhere": (Wire(None), False),
    "from elsewhere over TLS": (Wire(("192.0.2.7", 5), AnyTls()), True),
}


@pytest.mark.parametrize(("wire", "taken"), PEERS.values(), ids=PEERS)
async def test_a_token_is_taken_only_where_nobody_can_have_listened(house: House, wire: Wire, taken: bool) -> None:
    token = make(house.folder, "mailer", "read")
    listener = http_listener(house.node)
    for authorization in (f"Authorization: Bearer {token}\r\n", ""):
        wire.written = b""
        protocol = http_connection.HttpProtocol(listener)
        protocol.connection_made(wire)  # type: ignore[arg-type]
        protocol.data_received(f"GET /v1/workers HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n".encode())
        for _ in range(5):
            await asyncio.sleep(0)
        expected = (b"200" if authorization else b"401") if taken else b"403"
        assert wire.written.startswith(b"HTTP/1.1 " + expected)
        if not taken:
            assert b"TLS_REQUIRED" in wire.written and b"https" in wire.written and token.encode() not in wire.written
        protocol.connection_lost(None)


def http_listener(node: Node) -> http_module.HttpListener:
    """A listener like that of the node, which listens to nothing."""
    from taskq.gateway.http1 import HttpLimits
    from taskq.gateway.routes import Gateway

    gateway = Gateway(HttpLimits(), lambda: {"ready": True}, b"{}")
    return http_module.HttpListener(gateway, node._local.submit, node.clock, node._doors, node._house.gate)


async def test_a_broker_without_tokens_starts_and_says_how_to_make_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with testing.broker(data=tmp_path, auth=True):
        assert f"taskq token create NAME --scope admin --data {tmp_path}" in caplog.text
