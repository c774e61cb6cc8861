"""The HTTP door of a real broker against requests that mean no good: smuggled, sent by a page of another site, named for another host."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from programs import WAIT_S
from smuggling import AFTER, CORPUS, LAST, SMUGGLED

from taskq import testing
from taskq.gateway.routes import ROUTES
from taskq.node import Node

TASK = b'{"task_type":"a"}'
JSON = "Content-Type: application/json"
PATHS = sorted({route.path.replace("{id}", "0" * 32) for route in ROUTES} | {"/nowhere", "/"})
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with testing.broker(payload_bytes_max="1KiB") as node:
        yield node


async def exchange(node: Node, data: bytes) -> bytes:
    """What the broker says to these bytes, until it ends the connection."""
    reader, writer = await asyncio.open_connection(*node.http.split(":"))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), WAIT_S)
    finally:
        writer.close()


async def ask(node: Node, method: str, path: str, *headers: str, body: bytes = b"", host: str = "localhost") -> tuple[int, dict[str, str], Any]:
    """Status, headers and decoded body of the answer to one request."""
    length = [f"Content-Length: {len(body)}"] if body else []
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, *length, "", ""]
    head, _, text = (await exchange(node, "\r\n".join(lines).encode("latin-1") + body)).partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    told = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
    return int(first.split(" ")[1]), told, json.loads(text) if text else None


def statuses(data: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


async def test_each_smuggled_request_is_answered_once_and_ends_its_connection(node: Node) -> None:
    async def check(name: str) -> None:
        data, outcome = CORPUS[name]
        if isinstance(outcome, int):
            found = await exchange(node, data + AFTER)
            assert statuses(found) == [outcome], name
            assert b"Connection: close\r\n" in found
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["message"], name
            return
        requests = outcome if name in LAST or SMUGGLED in outcome else [*outcome, SMUGGLED]
        last = b"" if name in LAST else b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        found = await exchange(node, data + (b"" if name in LAST else AFTER) + last)
        assert len(statuses(found)) == len(requests) + bool(last), name

    await asyncio.gather(*map(check, CORPUS))


async def test_what_follows_a_request_that_was_refused_before_it_was_whole_is_never_read(node: Node) -> None:
    bad = b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 1\r\n\r\n"
    good = b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\n" + JSON.encode() + b"\r\nContent-Length: %d\r\n\r\n%b" % (len(TASK), TASK)
    assert statuses(await exchange(node, good + bad + good)) == [201, 400]
    [queue] = (await ask(node, "GET", "/v1/queues"))[2]["queues"]
    assert queue["pending"] == 1


# ---- hosts


@pytest.mark.parametrize("method", METHODS)
async def test_another_host_is_told_so_on_every_path_before_anything_else(node: Node, method: str) -> None:
    for path in PATHS:
        bad = ("Content-Type: text/plain", "Content-Encoding: gzip", "Origin: http://evil.example", "Expect: nothing")
        for host in ("evil.example", "evil.example:3000", "localhost.evil.example", "127.0.0.1.evil.example", "127.1", "0x7f000001"):
            status, headers, told = await ask(node, method, path, *bad, body=b"x", host=host)
            assert status == 421, (path, host)
            assert headers["connection"] == "close"
            assert told["error"]["code"] == "WRONG_HOST"


@pytest.mark.parametrize(
    ("hosts", "fine"), [((), False), (("queue.example",), True), (("QUEUE.example",), True), (("*",), True), (("other",), False)]
)
async def test_names_are_ours_when_the_settings_say_so(hosts: tuple[str, ...], fine: bool) -> None:
    async with testing.broker(http_hosts=hosts) as node:
        for host in ("queue.example", "Queue.Example:80", "queue.example."):
            assert ((await ask(node, "GET", "/healthz", host=host))[0] == 200) is fine
        for host in ("localhost", "127.0.0.1:3000", "[::1]"):
            assert (await ask(node, "GET", "/healthz", host=host))[0] == 200


# ---- pages of other sites

STRANGERS = (
    ("Origin: http://evil.example",),
    ("Origin: http://localhost",),
    ("Origin: http://localhost:3001",),
    ("Origin: https://localhost.evil.example:3000",),
    ("Origin: null",),
    ("Origin:",),
    ("Sec-Fetch-Site: cross-site",),
    ("Sec-Fetch-Site: same-site",),
    ("Sec-Fetch-Site: strange",),
    ("Sec-Fetch-Site:",),
    ("Sec-Fetch-Site: cross-site", "Origin: http://localhost:3000"),
)
FRIENDS = (
    (),
    ("Origin: http://localhost:3000",),
    ("Origin: https://LOCALHOST:3000",),
    ("Sec-Fetch-Site: same-origin",),
    ("Sec-Fetch-Site: none",),
    ("Sec-Fetch-Site: same-origin", "Origin: http://localhost:3000"),
)


@pytest.mark.parametrize("headers", STRANGERS)
async def test_a_page_of_another_site_changes_nothing(node: Node, headers: tuple[str, ...]) -> None:
    for method, path in (("POST", "/enqueue"), ("DELETE", f"/v1/tasks/{'0' * 32}"), ("PUT", "/nowhere")):
        status, told, found = await ask(node, method, path, JSON, *headers, body=TASK, host="localhost:3000")
        assert (status, found["error"]["code"]) == (403, "CROSS_ORIGIN")
        assert not [name for name in told if name.startswith("access-control-")]
    assert (await ask(node, "GET", "/v1/queues"))[2] == {"queues": []}


@pytest.mark.parametrize("headers", STRANGERS)
async def test_a_page_of_another_site_reads_nothing_but_how_the_broker_is(node: Node, headers: tuple[str, ...]) -> None:
    for path in ("/v1/queues", "/v1/workers", f"/v1/tasks/{'0' * 32}?wait={'1' * 5_000}x"):
        status, _, found = await ask(node, "GET", path, *headers, host="localhost:3000")
        assert (status, found["error"]["code"]) == (403, "CROSS_ORIGIN")
    for path in ("/healthz", "/readyz"):
        assert (await ask(node, "GET", path, *headers, host="localhost:3000"))[0] == 200


@pytest.mark.parametrize("headers", FRIENDS)
async def test_a_program_and_a_page_of_the_broker_itself_may_enqueue(node: Node, headers: tuple[str, ...]) -> None:
    assert (await ask(node, "POST", "/enqueue", JSON, *headers, body=TASK, host="localhost:3000"))[0] == 201


async def test_two_origins_are_none(node: Node) -> None:
    assert (await ask(node, "POST", "/enqueue", JSON, "Origin: http://localhost", "Origin: http://evil.example", body=TASK))[0] == 400


async def test_a_browser_that_asks_for_leave_gets_none(node: Node) -> None:
    asking = ("Origin: http://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
    for path in PATHS:
        status, told, _ = await ask(node, "OPTIONS", path, *asking)
        assert status in (404, 405)
        assert not [name for name in told if name.startswith("access-control-")]


# ---- bodies


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((JSON,), 201),
        (("Content-Type: Application/JSON; charset=utf-8",), 201),
        (("Content-Encoding: identity", JSON), 201),
        ((), 415),
        (("Content-Type: text/plain",), 415),
        (("Content-Type: text/plain; application/json",), 415),
        (("Content-Type: application/x-www-form-urlencoded",), 415),
        (("Content-Type: multipart/form-data; boundary=a",), 415),
        (("Content-Type: application/json, text/plain",), 415),
        (("Content-Type: application/jsonp",), 415),
        (("Content-Type:",), 415),
        (("Content-Encoding: gzip", JSON), 415),
        (("Content-Encoding: deflate, identity", JSON), 415),
        ((JSON, "Content-Type: text/plain"), 400),
    ],
)
async def test_a_body_is_plain_json_and_says_so(node: Node, headers: tuple[str, ...], status: int) -> None:
    assert (await ask(node, "POST", "/enqueue", *headers, body=TASK))[0] == status


async def test_a_body_that_nobody_asked_for_is_json_too_or_refused(node: Node) -> None:
    for method, path in (("GET", "/v1/queues"), ("DELETE", f"/v1/tasks/{'0' * 32}")):
        assert (await ask(node, method, path, "Content-Type: text/plain", body=b"a=b"))[0] == 415


async def test_a_compressed_bomb_is_refused_by_its_name(node: Node) -> None:
    import zlib

    bomb = zlib.compress(b"\0" * (64 << 20), 9)
    assert len(bomb) < 70_000
    status, _, told = await ask(node, "POST", "/enqueue", JSON, "Content-Encoding: deflate", body=bomb)
    assert (status, told["error"]["field"]) == (415, "Content-Encoding")


# ---- every answer


async def test_every_answer_has_the_headers_of_safety_and_every_refusal_the_one_shape(node: Node) -> None:
    asked = [(method, path, headers) for method in METHODS for path in PATHS for headers in ((), ("Origin: null",), ("Expect: a",))]
    for method, path, headers in asked:
        status, told, body = await ask(node, method, path, *headers)
        assert told["content-type"] == "application/json"
        assert told["x-content-type-options"] == "nosniff"
        assert told["cache-control"] == "no-store"
        assert told["referrer-policy"] == "no-referrer"
        assert told["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert not [name for name in told if name.startswith("access-control-") or name in ("server", "set-cookie")]
        if status >= 400 and method != "HEAD":
            error = body["error"]
            assert set(error) <= {"code", "message", "field", "retryable", "retry_after_ms"}, error
            assert re.fullmatch("[A-Z_]+", error["code"]) and error["message"] and error["retryable"] in (True, False)
