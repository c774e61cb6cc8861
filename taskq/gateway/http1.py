"""HTTP/1.1 as bytes: what came in becomes Requests, a Response becomes bytes.

PURE: no sockets, no clock, no routes.  The grammar is llhttp's (through httptools), which refuses conflicting lengths, bare line feeds, folded
headers and the like.  Ours, because llhttp has no limits: the sizes of URL, headers and body, exactly one Host that is ours, versions 1.0 and
1.1 only, no other transfer coding than chunked, no content coding, Expect.

The first thing that is wrong ends the connection: `feed` gives the refusal as its last event and ignores whatever comes after it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeAlias

import attrs
import httptools

from taskq.core.access import Grant
from taskq.errors import Answer, AuthFailed, AuthRequired, BadRequest, PayloadTooLarge, TaskqError, echo
from taskq.gateway.answers import (
    CrossOrigin,
    ExpectationFailed,
    HeadersTooLarge,
    HttpVersionUnsupported,
    Response,
    UnsupportedMediaType,
    UrlTooLong,
    WrongHost,
)

PIECE_BYTES = 4_096
HEAD_END = b"\r\n\r\n"


@attrs.frozen
class HttpLimits:
    """The limits of the HTTP door.  `queued_max`: requests of one connection that wait for their answers; more are not read.
    `silent_connections_max`: connections on which nothing was asked yet.  `hosts`: names that a Host header may have beside IP addresses and
    localhost; "*" allows any."""

    payload_bytes_max: int = 1 << 20
    body_bytes_max: int = (1 << 20) + (64 << 10)
    head_bytes_max: int = 16 << 10
    url_bytes_max: int = 8 << 10
    headers_max: int = 100
    queued_max: int = 16
    connections_max: int = 10_000
    address_connections_max: int = 1_024
    silent_connections_max: int = 500
    wait_s_max: float = 60.0
    head_s: float = 5.0
    request_s: float = 15.0
    idle_s: float = 30.0
    linger_s: float = 2.0
    sweep_s: float = 0.5
    hosts: frozenset[str] = frozenset()


@attrs.define
class Request:
    """One whole request; `path` is as sent, without the query.  `grant`: what its access token allows, None where no token is asked for."""

    method: str
    path: str
    query: str = ""
    content_type: str = ""
    body: bytes | bytearray = b""
    keep_alive: bool = True
    version: str = "1.1"
    grant: Grant | None = None


@attrs.frozen
class Interim:
    """Bytes that go out before the answer itself."""

    data: bytes = b"HTTP/1.1 100 Continue\r\n\r\n"


Event: TypeAlias = "Request | Interim | TaskqError"
# path and Authorization header of a request, as soon as its head is known → what it may do; raises what it is refused with
Admit: TypeAlias = Callable[[str, bytes], Grant | None]
REFUSALS = (Answer, AuthRequired, AuthFailed)

# the headers that matter here; none of them may come twice
ONCE = (b"host", b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"expect", b"authorization")
SINGLE = frozenset({*ONCE, b"origin", b"sec-fetch-site"})
# what a browser says of a request that was not made by a page of another site
OWN_SITE = frozenset({b"same-origin", b"none"})
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


@attrs.frozen
class Body:
    """What is told of a body alone."""

    on_body: Callable[[bytes], None]
    on_message_complete: Callable[[], None]


class Receiver:
    """The receiving side of one connection.  `started`: a request has begun and is not complete.  `in_body`: its head is complete.
    `ended`: no further request will be read.  `admit` is asked before anything of a body is kept; None: everybody may come in.
    `open_paths`: what pages of other sites may read too."""

    def __init__(self, limits: HttpLimits, admit: Admit | None = None, open_paths: frozenset[str] = frozenset()) -> None:
        self.started = False
        self.in_body = False
        self.ended = False
        self._limits = limits
        self._admit = admit
        self._open_paths = open_paths
        self._known_host = b""
        self._events: list[Event] = []
        self._parser: Any = httptools.HttpRequestParser(self)
        self._clear()

    @property
    def held_bytes(self) -> int:
        """What is kept of a request that is not whole."""
        return len(self._body) + self._head_bytes + len(self._url) if self.started else 0

    def close(self) -> None:
        """Part with the parser, which refers back to this object."""
        self.ended = True
        self._parser = None
        self._clear()

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """Parse a piece of at most PIECE_BYTES (so that a piece bounds what it can hold); returns what became complete."""
        if self.ended:
            return []
        events: list[Event] = []
        self._events = events
        head, was_started, was_in_body, body_bytes = self._head, self.started, self.in_body, len(self._body)
        rest: bytes | memoryview = b""
        try:
            self._parser.feed_data(data)
            if was_started and self.started and self._head is head and self.in_body is was_in_body:
                self._count_unseen(len(data), len(self._body) > body_bytes)
        except httptools.HttpParserUpgrade as upgrade:
            if self.started:
                self._begin_body()
                rest = data[upgrade.args[0] :]
            else:
                self._end_after_upgrade()
        except (httptools.HttpParserError, *REFUSALS) as error:
            self._refuse(error)
        return events + self.feed(rest) if rest else events

    def _clear(self) -> None:
        self._url = b""
        self._head: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._unseen_bytes = 0
        self._headers = 0
        self._body: bytes | bytearray = b""
        self._request = Request("", "")

    def _count_unseen(self, size: int, has_body: bool) -> None:
        """A header is reported when it is whole, an extension of a chunk never: this bounds one that does not end.  A trailer is a header too."""
        self._unseen_bytes = 0 if has_body else self._unseen_bytes + size
        if self._unseen_bytes > self._limits.head_bytes_max:
            raise self._headers_too_large()

    def _begin_body(self) -> None:
        """The parser takes what follows the offer of another protocol for that protocol.  It is the body of the request: read by a parser of its
        own, which is told no more than how long it is."""
        self._parser = httptools.HttpRequestParser(Body(self.on_body, self.on_message_complete))
        chunked = b"transfer-encoding" in self._head
        length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: " + self._head[b"content-length"]
        self._parser.feed_data(b"POST / HTTP/1.1\r\nConnection: close\r\n" + length + b"\r\n\r\n")

    def _end_after_upgrade(self) -> None:
        """The peer offered another protocol (curl --http2): answered as HTTP/1.1, and that was the last request."""
        self.ended = True
        if self._events and isinstance(self._events[-1], Request):
            self._events[-1].keep_alive = False

    def _refuse(self, error: Exception) -> None:
        """Bytes after a last request are nobody's; anything else that is wrong is answered."""
        if self.ended:
            return
        self.ended = True
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
        if isinstance(cause, REFUSALS):
            self._events.append(cause.bare())
        elif isinstance(cause, httptools.HttpParserError):
            self._events.append(BadRequest(f"not a valid HTTP/1.1 request: {cause}"))
        else:
            raise error

    # ---- called by the parser ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._clear()
        self.started = True

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        if len(self._url) > self._limits.url_bytes_max:
            raise UrlTooLong(f"the URL is longer than {self._limits.url_bytes_max} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._headers > self._limits.headers_max or self._head_bytes + len(self._url) > self._limits.head_bytes_max:
            raise self._headers_too_large()
        if self.in_body:
            return
        name = name.lower()
        if name in SINGLE:
            if name in self._head:
                raise BadRequest(f"the header {name.decode()} may be there once only")
            self._head[name] = value

    def on_headers_complete(self) -> None:
        self.in_body = True
        self._unseen_bytes = 0
        head = self._head
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise HttpVersionUnsupported()
        path, query, authority = _target(self._url)
        self._check_host(authority or head.get(b"host", b""), b"host" in head)
        grant = None if self._admit is None else self._admit(path, head.get(b"authorization", b""))
        if len(head) > 1:
            self._check_coding(head, version)
            self._check_length(head)
            if (b"sec-fetch-site" in head or b"origin" in head) and path not in self._open_paths:
                self._check_site(head)
        content_type = head.get(b"content-type", b"").decode("latin-1")
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._request = Request(self._parser.get_method().decode(), path, query, content_type, b"", keep_alive, version, grant)
        if b"expect" in head:
            self._meet(head[b"expect"], version)

    def on_body(self, body: bytes) -> None:
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._limits.body_bytes_max:
            raise self._body_too_large()

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and (b"transfer-encoding" in self._head or self._head.get(b"content-length", b"0").strip(b"0")):
            return
        request = self._request
        request.body = self._body
        self._body = b""
        self.started = self.in_body = False
        self.ended = not request.keep_alive
        self._events.append(request)

    # ---- checks --------------------------------------------------------------------------------------------------------------------

    def _check_host(self, host: bytes, given: bool) -> None:
        if given and host and host == self._known_host:
            return
        found = _HOST.fullmatch(host)
        if not given or found is None:
            raise BadRequest("the request needs one valid Host header", field="Host")
        name = found[1].decode().lower().strip("[]").rstrip(".")
        names = self._limits.hosts
        if name != "localhost" and name not in names and "*" not in names and not _is_address(name):
            known = "use its IP address or localhost, or start it with --http-hosts"
            raise WrongHost(f"the Host header names {echo(name)}, which is not this broker; {known}", field="Host")
        self._known_host = host

    def _check_site(self, head: dict[bytes, bytes]) -> None:
        """A page of another site may make the browser send a request; it neither changes anything here nor makes the broker work.  Browsers say where
        a request comes from, other programs say nothing."""
        if self._parser.get_method() == b"OPTIONS":
            return
        site, origin = head.get(b"sec-fetch-site"), head.get(b"origin")
        own = site.lower() in OWN_SITE if site is not None else origin is not None and origin.lower().partition(b"://")[2] == head[b"host"].lower()
        if not own:
            raise CrossOrigin(field="Origin" if site is None else "Sec-Fetch-Site")

    def _check_coding(self, head: dict[bytes, bytes], version: str) -> None:
        if head.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaType("compressed bodies are not read; send the body without Content-Encoding", field="Content-Encoding")
        coding = head.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            raise BadRequest("the only transfer coding is chunked, in HTTP/1.1", field="Transfer-Encoding")

    def _check_length(self, head: dict[bytes, bytes]) -> None:
        if int(head.get(b"content-length", b"0")) > self._limits.body_bytes_max:
            raise self._body_too_large()

    def _meet(self, expectation: bytes, version: str) -> None:
        if expectation.lower() != b"100-continue":
            raise ExpectationFailed(field="Expect")
        if version == "1.1":
            self._events.append(Interim())

    def _headers_too_large(self) -> Answer:
        return HeadersTooLarge(f"at most {self._limits.headers_max} headers and {self._limits.head_bytes_max} bytes of them are read")

    def _body_too_large(self) -> Answer:
        limit = self._limits.body_bytes_max
        way_out = "send fewer tasks at a time, or store the data elsewhere and enqueue a reference"
        return PayloadTooLarge(f"the body is larger than {limit} bytes; {way_out}")


def _target(url: bytes) -> tuple[str, str, bytes]:
    """(path, query, authority) of a request target; the authority is empty unless the target is a whole URL."""
    authority = b""
    if url[:7].lower() == b"http://":
        authority, _, rest = url[7:].partition(b"/")
        url = b"/" + rest
    if url[:1] != b"/" or b"#" in url or not url.isascii():
        raise BadRequest("the request target must be a path such as /enqueue")
    path, _, query = url.decode("ascii").partition("?")
    return path, query, authority


def _is_address(name: str) -> bool:
    """An IP address as Host cannot come from a name that somebody else's DNS points at us."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def piece_bytes(data: bytes, requests: int) -> int:
    """How much of this is fed at once: a piece, or less, so that at most so many heads end in it; one more if its end was cut in two."""
    at = 0
    for _ in range(requests):
        found = data.find(HEAD_END, at, PIECE_BYTES)
        if found < 0:
            return min(len(data), PIECE_BYTES)
        at = found + len(HEAD_END)
    return at


# ---- the sending side ----------------------------------------------------------------------------------------------------------------

_COMMON = (
    b"\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nReferrer-Policy: no-referrer"
    b"\r\nContent-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\nContent-Length: "
)
_START = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() + _COMMON for status in HTTPStatus}
_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE_1_0 = b"Connection: keep-alive\r\n"


def encode(response: Response, request: Request | None, close: bool) -> bytes:
    """The bytes of a response to this request (None: it was never whole); the body is left out for HEAD."""
    connection = b""
    if close:
        connection = _CLOSE
    elif request is not None and request.version == "1.0":
        connection = _KEEP_ALIVE_1_0
    body = response.body
    extra = "".join(f"{name}: {value}\r\n" for name, value in response.headers).encode("latin-1") if response.headers else b""
    shown = b"" if request is not None and request.method == "HEAD" else body
    return b"%b%d\r\n%b%b\r\n%b" % (_START[response.status], len(body), extra, connection, shown)
