"""The corpus of requests that could be read in two ways: refused, or read in the one right way, as a second parser confirms."""

from __future__ import annotations

from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smuggling import AFTER, CHUNKED, CORPUS, LAST, OTHERWISE, SMUGGLED, STRICTER, Taken

from taskq.errors import Answer
from taskq.gateway.answers import STATUS
from taskq.gateway.http1 import PIECE_BYTES, HttpLimits, Receiver, Request

LIMITS = HttpLimits(body_bytes_max=2_000, head_bytes_max=8_000)


def ours(data: bytes, size: int = PIECE_BYTES) -> tuple[Taken, int]:
    """The requests that are taken, and the status of the refusal that ends them, 0 if none does."""
    receiver = Receiver(LIMITS)
    events = [event for at in range(0, len(data), size) for event in receiver.feed(data[at : at + size])]
    taken = [(event.method, event.path, bytes(event.body)) for event in events if isinstance(event, Request)]
    refusals = [STATUS[event.code] for event in events if isinstance(event, Answer)]
    assert len(refusals) <= 1 and (not refusals or receiver.ended)
    return taken, sum(refusals)


def theirs(data: bytes) -> tuple[Taken, bool]:
    """What h11 makes of it: the requests, and whether it refused what came after them.  Empty lines before a request are none of its business:
    RFC 9112 lets a server ignore them, and h11 does not."""
    taken: Taken = []
    while data := data.lstrip(b"\r\n"):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=8_000)
        connection.receive_data(data)
        try:
            found = request_of(connection)
        except h11.RemoteProtocolError:
            return taken, True
        if found is None:
            break
        taken.append(found)
        connection.send(h11.Response(status_code=404, headers=[("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is h11.MUST_CLOSE:
            break
        data = bytes(connection.trailing_data[0])
    return taken, False


def request_of(connection: h11.Connection) -> tuple[str, str, bytes] | None:
    """The first request; None if it is not complete."""
    head: Any = None
    body = b""
    while True:
        event: Any = connection.next_event()
        if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
            return None
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            target = head.target.decode("latin-1").removeprefix("http://localhost").partition("?")[0]
            return head.method.decode(), target, body


@pytest.mark.parametrize("size", [1, 7, PIECE_BYTES])
@pytest.mark.parametrize("name", CORPUS)
def test_each_is_refused_and_ends_the_connection_or_is_read_in_the_one_right_way(name: str, size: int) -> None:
    data, outcome = CORPUS[name]
    taken, status = ours(data + AFTER, size)
    if isinstance(outcome, int):
        assert (taken, status) == ([], outcome)
        return
    expected = outcome if name in LAST or SMUGGLED in outcome else [*outcome, SMUGGLED]
    assert (taken, status) == (expected, 0)


@pytest.mark.parametrize("name", CORPUS)
def test_what_a_second_parser_refuses_is_refused_here_and_what_both_take_is_the_same(name: str) -> None:
    our_requests, status = ours(CORPUS[name][0] + AFTER)
    their_requests, refused = theirs(CORPUS[name][0] + AFTER)
    if name in STRICTER:
        assert status and not refused, "it is no longer stricter here"
    elif name in OTHERWISE:
        assert our_requests != their_requests, "there is no difference any more"
    else:
        assert (our_requests, bool(status)) == (their_requests, refused)


LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /a HTTP/1.1\r\n",
        b"POST /b HTTP/1.0\r\n",
        b"Host: localhost\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        CHUNKED + b"\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"3;x=y\r\nabc\r\n",
        b"0\r\n\r\n",
        b"0\r\nA: b\r\n\r\n",
        b"\n",
        b" ",
        b"\t",
        b"\0",
        b"\r",
        b":",
        AFTER,
    ]
)


@given(st.lists(LINES, max_size=14))
@settings(max_examples=500, deadline=None)
def test_no_mix_of_lines_gives_a_request_that_a_second_parser_does_not_see(lines: list[bytes]) -> None:
    """The dangerous direction: something is taken here that a proxy in front would have read otherwise."""
    taken, _ = ours(b"".join(lines))
    seen, _ = theirs(b"".join(lines))
    assert taken == seen[: len(taken)]
