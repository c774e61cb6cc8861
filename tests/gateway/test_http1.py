"""Bytes to Requests: what is well formed, what is refused, and what a peer cannot smuggle."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.errors import Answer, BadRequest, PayloadTooLarge
from taskq.gateway.answers import STATUS, CrossOrigin, HeadersTooLarge, Response
from taskq.gateway.http1 import PIECE_BYTES, HttpLimits, Interim, Receiver, Request, encode, piece_bytes

LIMITS = HttpLimits(body_bytes_max=1_000, hosts=frozenset({"broker.example"}))
POST = b'POST /enqueue?x=1 HTTP/1.1\r\nHost: localhost:3000\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
CHUNKED = b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: 1\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def receive(data: bytes, limits: HttpLimits = LIMITS, size: int = PIECE_BYTES) -> list[Any]:
    receiver = Receiver(limits)
    return [event for at in range(0, len(data), size) for event in receiver.feed(data[at : at + size])]


def requests(events: list[Any]) -> list[Request]:
    assert all(isinstance(event, Request) for event in events), events
    return events


def get(*headers: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: localhost\r\n", body: bytes = b"") -> bytes:
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, PIECE_BYTES])
def test_requests_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    first, second, third = requests(receive(POST + CHUNKED + GET, size=size))
    assert first == Request("POST", "/enqueue", "x=1", "application/json", b'{"a":1}', True, "1.1")
    assert (second.method, bytes(second.body)) == ("POST", b"abcde")
    assert (third.method, third.path, third.body) == ("GET", "/healthz", b"")


@given(st.lists(st.integers(min_value=0, max_value=len(POST + CHUNKED)), max_size=8))
def test_any_cut_gives_the_same_requests(cuts: list[int]) -> None:
    data = POST + CHUNKED
    edges = [0, *sorted(cuts), len(data)]
    receiver = Receiver(LIMITS)
    events = [event for start, end in itertools.pairwise(edges) for event in receiver.feed(data[start:end])]
    assert [bytes(request.body) for request in requests(events)] == [b'{"a":1}', b"abcde"]


LIMITED = {
    "long URL": (get(start=b"GET /" + b"a" * 9_000 + b" HTTP/1.1"), 414),
    "endless URL": (b"GET /" + b"a" * 40_000, 414),
    "many headers": (get(*[b"A: b"] * 100), 431),
    "large headers": (get(*[b"A: " + b"b" * 4_000] * 5), 431),
    "large header": (get(b"A: " + b"b" * 17_000), 431),
    "endless header": (b"GET / HTTP/1.1\r\nA: " + b"b" * 60_000, 431),
    "endless header name": (b"GET / HTTP/1.1\r\n" + b"b" * 60_000, 431),
    "large trailer": (CHUNKED[:-2] + b"A: " + b"b" * 17_000 + b"\r\n\r\n", 431),
    "endless trailer": (CHUNKED[:-2] + b"A: " + b"b" * 60_000, 431),
    "endless trailer name": (CHUNKED[:-2] + b"b" * 60_000, 431),
    "endless extension of a chunk": (CHUNKED[: -len(b"0\r\nX-Trailer: 1\r\n\r\n")] + b"1;" + b"b" * 60_000, 431),
    "large body, said": (get(b"Content-Length: 1001"), 413),
    "large body, chunked": (get(b"Transfer-Encoding: chunked", body=b"200\r\n" + b"a" * 512 + b"\r\n1e9\r\n" + b"a" * 489 + b"\r\n"), 413),
    "compressed": (get(b"Content-Encoding: gzip", b"Content-Length: 1", body=b"a"), 415),
    "other expectation": (get(b"Expect: the-unexpected"), 417),
    "other host": (get(host=b"Host: evil.example\r\n"), 421),
    "other host in a whole URL": (get(start=b"GET http://evil.example/ HTTP/1.1"), 421),
}


@pytest.mark.parametrize("name", LIMITED)
def test_what_is_over_a_limit_is_refused_with_its_own_status(name: str) -> None:
    data, status = LIMITED[name]
    events = receive(data)
    assert [STATUS[event.code] for event in events] == [status]


@pytest.mark.parametrize("size", [1, PIECE_BYTES])
def test_a_request_just_below_the_limits_is_taken(size: int) -> None:
    data = get(b"A: " + b"b" * 15_000, *[b"C: d"] * 98, body=b"")
    assert len(requests(receive(data, size=size))) == 1
    assert len(requests(receive(get(b"Content-Length: 1000", body=b"a" * 1000), size=size))) == 1
    body = b"1;a=" + b"b" * 15_000 + b"\r\nc\r\n" + b"1\r\nd\r\n0\r\nE: " + b"f" * 15_000 + b"\r\n\r\n"
    assert len(requests(receive(get(b"Transfer-Encoding: chunked", body=body), size=size))) == 1
    tiny = get(b"A: " + b"b" * 15_000, b"Transfer-Encoding: chunked", body=b"1\r\na\r\n" * 1_000 + b"0\r\n\r\n")
    assert len(requests(receive(tiny, size=size))) == 1


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:3000", b"localhost.", b"127.0.0.1:3000", b"[::1]:3000", b"[::1]", b"10.0.0.7", b"broker.example:80"]
)
def test_our_names_and_addresses_are_hosts(host: bytes) -> None:
    assert len(requests(receive(get(host=b"Host: " + host + b"\r\n")))) == 1


def test_a_star_allows_any_host() -> None:
    assert len(requests(receive(get(host=b"Host: other.example\r\n"), HttpLimits(hosts=frozenset({"*"}))))) == 1


def test_a_whole_url_is_a_target_too() -> None:
    [request] = requests(receive(get(start=b"GET http://localhost:3000/v1/queues?a=b HTTP/1.1")))
    assert (request.path, request.query) == ("/v1/queues", "a=b")


def test_a_peer_that_expects_to_be_told_to_go_on_is_told() -> None:
    receiver = Receiver(LIMITS)
    assert receiver.feed(get(b"Expect: 100-continue", b"Content-Length: 2")) == [Interim()]
    assert receiver.started
    [request] = requests(receiver.feed(b"ab"))
    assert request.body == b"ab"


def test_a_body_that_is_too_large_is_refused_before_it_is_asked_for() -> None:
    [refusal] = receive(get(b"Expect: 100-continue", b"Content-Length: 5000"))
    assert STATUS[refusal.code] == 413


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (get(), True),
        (get(b"Connection: close"), False),
        (get(start=b"GET / HTTP/1.0"), False),
        (get(b"Connection: keep-alive", start=b"GET / HTTP/1.0"), True),
        (get(b"Connection: Upgrade", b"Upgrade: h2c"), False),
    ],
)
def test_keep_alive_is_as_the_peer_asked(data: bytes, keep_alive: bool) -> None:
    [request] = requests(receive(data + b"" if keep_alive else data + GET))
    assert request.keep_alive is keep_alive


OFFERS = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
    "websocket": (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    "TLS": (b"Connection: keep-alive, upgrade", b"Upgrade: TLS/1.2, HTTP/1.1"),
    "h2c with leave to go on": (b"Connection: Upgrade", b"Upgrade: h2c", b"Expect: 100-continue"),
}
BODIES = {
    "of a length": (b"Content-Length: 10", b"0123456789"),
    "in chunks": (b"Transfer-Encoding: chunked", b"4\r\n0123\r\n6;x=y\r\n456789\r\n0\r\nTrailer: 1\r\n\r\n"),
}


@pytest.mark.parametrize("size", [1, 7, PIECE_BYTES])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("offer", OFFERS)
def test_the_offer_of_another_protocol_is_ignored_and_the_body_is_read(offer: str, body: str, size: int) -> None:
    length, text = BODIES[body]
    data = get(*OFFERS[offer], length, start=b"POST /enqueue?a=1 HTTP/1.1", body=text)
    [request] = requests([event for event in receive(data + get(), size=size) if not isinstance(event, Interim)])
    assert (request.method, request.path, request.query, bytes(request.body)) == ("POST", "/enqueue", "a=1", b"0123456789")
    assert not request.keep_alive


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("length", BODIES)
def test_a_body_after_an_offer_has_the_same_limits(offer: str, length: str) -> None:
    limits = HttpLimits(body_bytes_max=9)
    data = get(*OFFERS[offer], BODIES[length][0], start=b"POST /enqueue HTTP/1.1", body=BODIES[length][1])
    assert isinstance(receive(data, limits)[-1], PayloadTooLarge)
    broken = get(*OFFERS[offer], b"Transfer-Encoding: chunked", start=b"POST /enqueue HTTP/1.1", body=b"zz\r\n")
    assert isinstance(receive(broken)[-1], BadRequest)
    endless = get(*OFFERS[offer], b"Transfer-Encoding: chunked", start=b"POST /enqueue HTTP/1.1", body=b"1\r\na\r\n0\r\nA: " + b"b" * 60_000)
    assert isinstance(receive(endless)[-1], HeadersTooLarge)


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE"])
@pytest.mark.parametrize(
    "site", [b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-site", b"Sec-Fetch-Site: x", b"Origin: http://evil.example", b"Origin: null"]
)
def test_a_page_of_another_site_reads_the_open_paths_and_nothing_else(method: bytes, site: bytes) -> None:
    for path, is_open in ((b"/v1/queues", False), (b"/v1/tasks/x?wait=60", False), (b"/readyz", True), (b"/nothing", False)):
        receiver = Receiver(LIMITS, None, frozenset({"/readyz"}))
        [event] = receiver.feed(get(site, start=method + b" " + path + b" HTTP/1.1"))
        assert isinstance(event, Request if is_open else CrossOrigin)


@pytest.mark.parametrize("site", [b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: none", b"Origin: http://localhost"])
def test_who_types_the_address_or_asks_from_the_same_origin_reads(site: bytes) -> None:
    assert len(requests(receive(get(site, start=b"GET /v1/queues HTTP/1.1")))) == 1


def test_the_parts_of_a_request_are_visible_to_deadlines() -> None:
    receiver = Receiver(LIMITS)
    states = []
    for piece in (b"\r\n", b"P", POST[1:-3], POST[-3:]):
        receiver.feed(piece)
        states.append((receiver.started, receiver.in_body))
    assert states == [(False, False), (True, False), (True, True), (False, False)]


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_wait_for_more(data: bytes) -> None:
    for event in receive(data):
        assert isinstance(event, Request | Answer | Interim)


_LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /enqueue HTTP/1.1\r\n",
        b"Host: localhost\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"\r\n",
        b"abc",
        b"3\r\n",
        b"0\r\n\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Upgrade: h2c\r\nConnection: upgrade\r\n",
        b"\n",
        b" ",
        b"\0",
    ]
)


@given(st.lists(_LINES, max_size=16), st.integers(min_value=1, max_value=40))
def test_any_mix_of_lines_is_read_alike_whole_and_in_pieces(lines: list[bytes], size: int) -> None:
    data = b"".join(lines)
    whole, cut = receive(data), receive(data, size=size)
    assert [type(event) for event in whole] == [type(event) for event in cut]
    for event in whole[:-1]:
        assert not isinstance(event, Answer)


def test_a_response_has_its_length_and_says_when_it_is_the_last() -> None:
    response = Response(503, b"{}", (("Retry-After", "2"),))
    data = encode(response, Request("GET", "/"), False)
    assert data.startswith(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n")
    assert data.endswith(b"Content-Length: 2\r\nRetry-After: 2\r\n\r\n{}")
    assert b"Connection: close\r\n" in encode(response, Request("GET", "/"), True)
    assert b"Connection: keep-alive\r\n" in encode(response, Request("GET", "/", version="1.0"), False)


def test_the_answer_to_head_has_no_body_but_its_length() -> None:
    data = encode(Response(200, b"{}"), Request("HEAD", "/"), False)
    assert data.endswith(b"Content-Length: 2\r\n\r\n")


@pytest.mark.parametrize("data", [get(host=b""), get(host=b"Host: example.com\r\n"), get(b"Content-Length: 99999999"), b"nonsense\r\n\r\n"])
def test_a_receiver_that_refused_is_freed_with_its_connection_and_not_by_a_collection_long_after(data: bytes) -> None:
    """An error keeps the frames that raised it, and they keep what was received."""
    receiver = Receiver(LIMITS)
    (refusal,) = receiver.feed(data)
    receiver.close()
    left = weakref.ref(receiver)
    gc.disable()
    try:
        del receiver, refusal
        assert left() is None
    finally:
        gc.enable()


def test_a_piece_holds_no_more_ends_of_heads_than_there_is_room_for() -> None:
    one = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert [piece_bytes(one * 5, room) for room in (1, 4, 5, 6)] == [len(one), 4 * len(one), 5 * len(one), 5 * len(one)]
    assert piece_bytes(b"x" * 10_000, 1) == piece_bytes(b"x" * (PIECE_BYTES - 2) + b"\r\n\r\n", 1) == PIECE_BYTES
