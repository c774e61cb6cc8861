"""Requests that two parsers might read in two ways, and the one way in which they are read here.

`CORPUS`: name → (bytes, outcome).  An outcome is the status of the refusal, after which the connection ends, or the list of the requests that
are taken, as (method, path, body).  `AFTER` is what an attacker would like to have smuggled in behind.  A second parser, h11, is of the same
opinion but for `STRICTER`, which only we refuse, and `OTHERWISE`, which says why ours stands.
"""

from __future__ import annotations

from typing import TypeAlias

Taken: TypeAlias = list[tuple[str, str, bytes]]

AFTER = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLED = ("GET", "/smuggled", b"")
CHUNKED = b"Transfer-Encoding: chunked"


def get(*headers: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: localhost\r\n", body: bytes = b"") -> bytes:
    return start + b"\r\n" + host + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body


def post(*headers: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return get(*headers, start=b"POST / HTTP/" + version, body=body)


def chunks(body: bytes, *headers: bytes) -> bytes:
    return post(CHUNKED, *headers, body=body)


CORPUS: dict[str, tuple[bytes, int | Taken]] = {
    # ---- two lengths
    "CL and TE": (post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), 400),
    "TE and CL": (post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    "two equal lengths": (post(b"Content-Length: 1", b"Content-Length: 1", body=b"a"), 400),
    "two lengths": (post(b"Content-Length: 1", b"Content-Length: 2", body=b"ab"), 400),
    "two lengths in other letters": (post(b"Content-Length: 1", b"content-LENGTH: 1", body=b"a"), 400),
    "a list of equal lengths": (post(b"Content-Length: 1, 1", body=b"a"), 400),
    "a list of lengths": (post(b"Content-Length: 1, 2", body=b"a"), 400),
    # ---- a length that is no number
    "length with a plus": (post(b"Content-Length: +1", body=b"a"), 400),
    "length with a minus": (post(b"Content-Length: -1"), 400),
    "length with an underscore": (post(b"Content-Length: 1_0", body=b"a" * 10), 400),
    "length with a space inside": (post(b"Content-Length: 1 0", body=b"a" * 10), 400),
    "length with spaces around": (post(b"Content-Length:  1 \t", body=b"a"), [("POST", "/", b"a")]),
    "length with zeros before": (post(b"Content-Length: 0001", body=b"a"), [("POST", "/", b"a")]),
    "length with a dot": (post(b"Content-Length: 1.0", body=b"a"), 400),
    "length in hex": (post(b"Content-Length: 0x1", body=b"a"), 400),
    "length in Arabic digits": (post("Content-Length: ١".encode(), body=b"a"), 400),
    "length that overflows": (post(b"Content-Length: 18446744073709551617", body=b"a"), 400),
    "no digits": (post(b"Content-Length:", body=b"a"), 400),
    "length over the limit": (post(b"Content-Length: 99999999"), 413),
    # ---- codings
    "gzip before chunked": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "chunked before gzip": (post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400),
    "identity": (post(b"Transfer-Encoding: identity"), 400),
    "chunked twice": (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400),
    "two codings": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), 400),
    "two different codings": (post(b"Transfer-Encoding: identity", CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunked behind a vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400),
    "chunked in quotes": (post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"), 400),
    "chunked with a parameter": (post(b"Transfer-Encoding: chunked;a=b", body=b"0\r\n\r\n"), 400),
    "xchunked": (post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), 400),
    "chunked in capitals": (post(b"Transfer-Encoding: CHUNKED", body=b"1\r\na\r\n0\r\n\r\n"), [("POST", "/", b"a")]),
    "chunked in HTTP/1.0": (post(CHUNKED, version=b"1.0", body=b"0\r\n\r\n"), 400),
    "no coding": (post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), 400),
    "compressed": (post(b"Content-Encoding: gzip", b"Content-Length: 1", body=b"a"), 415),
    "compressed with br": (post(b"Content-Encoding: br", b"Content-Length: 1", body=b"a"), 415),
    # ---- chunks
    "chunks": (chunks(b"1\r\na\r\n00a\r\n0123456789\r\n0\r\n\r\n"), [("POST", "/", b"a0123456789")]),
    "a length in the trailer": (chunks(b"1\r\na\r\n0\r\nContent-Length: 9\r\nHost: evil\r\n\r\n"), 400),
    "a trailer": (chunks(b"1\r\na\r\n0\r\nHost: evil\r\nA: b\r\n\r\n"), [("POST", "/", b"a")]),
    "an extension": (chunks(b"1;name=value\r\na\r\n0;end\r\n\r\n"), [("POST", "/", b"a")]),
    "an extension with a bare line feed": (chunks(b"1;a\nb\r\na\r\n0\r\n\r\n"), 400),
    "an extension with a bare carriage return": (chunks(b"1;a\rb\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with a plus": (chunks(b"+1\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with a minus": (chunks(b"-1\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with 0x": (chunks(b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size with an underscore": (chunks(b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"), 400),
    "a chunk size behind a space": (chunks(b" 1\r\na\r\n0\r\n\r\n"), 400),
    "no chunk size": (chunks(b"\r\na\r\n0\r\n\r\n"), 400),
    "a chunk size that overflows": (chunks(b"10000000000000001\r\na\r\n0\r\n\r\n"), 400),
    "a chunk over the limit": (chunks(b"ffffff\r\n" + b"a" * 70_000), 413),
    "a chunk longer than its size": (chunks(b"1\r\nab\r\n0\r\n\r\n"), 400),
    "a chunk without its end": (chunks(b"1\r\na0\r\n\r\n"), 400),
    "chunk lines ended by bare line feeds": (chunks(b"1\na\n0\n\n"), 400),
    "a chunk ended by a bare line feed": (chunks(b"1\r\na\n0\r\n\r\n"), 400),
    "a chunk ended by a carriage return": (chunks(b"1\r\na\r0\r\n\r\n"), 400),
    # ---- lines
    "bare line feeds": (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    "one bare line feed": (post(b"A: b\nContent-Length: 1", body=b"a"), 400),
    "a bare carriage return": (post(b"A: b\rContent-Length: 1", body=b"a"), 400),
    "a carriage return too many": (b"GET / HTTP/1.1\r\r\nHost: localhost\r\n\r\n", 400),
    "a folded header": (get(b"A: b\r\n c"), 400),
    "a folded coding": (post(b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"), 400),
    "a folded first header": (get(host=b" A: b\r\nHost: localhost\r\n"), 400),
    "a space before the colon": (post(b"Content-Length : 1", body=b"a"), 400),
    "a tab before the colon": (post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"), 400),
    "a space inside a name": (post(b"Content Length: 1", body=b"a"), 400),
    "no colon": (get(b"Content-Length"), 400),
    "no name": (get(b": a"), 400),
    "NUL in a value": (get(b"A: a\0b"), 400),
    "NUL in a name": (get(b"A\0: b"), 400),
    "NUL behind a name": (post(b"Content-Length\0: 1", body=b"a"), 400),
    "a name that is no token": (get(b"A(): b"), 400),
    "a name in letters beyond ASCII": (get("Ä: b".encode()), 400),
    "an underscore for a dash": (post(b"Content_Length: 5"), [("POST", "/", b"")]),
    "an empty value": (get(b"A:"), [("GET", "/", b"")]),
    "empty lines before": (b"\r\n\r\n" + get(), [("GET", "/", b"")]),
    # ---- the first line
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "HTTP/0.9 with one line feed": (b"GET /\n", 400),
    "the HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/2.0": (get(start=b"GET / HTTP/2.0"), 505),
    "HTTP/1.2": (get(start=b"GET / HTTP/1.2"), 400),
    "HTTP/01.1": (get(start=b"GET / HTTP/01.1"), 400),
    "another protocol": (get(start=b"GET / ICE/1.1"), 400),
    "two spaces": (get(start=b"GET  / HTTP/1.1"), [("GET", "/", b"")]),
    "a tab for a space": (get(start=b"GET\t/ HTTP/1.1"), 400),
    "a space at the end": (get(start=b"GET / HTTP/1.1 "), 400),
    "a space inside the path": (get(start=b"GET /a b HTTP/1.1"), 400),
    "an unknown method": (get(start=b"FOO / HTTP/1.1"), 400),
    "a method in small letters": (get(start=b"get / HTTP/1.1"), 400),
    "CONNECT": (get(start=b"CONNECT localhost:1 HTTP/1.1"), 400),
    "a star": (get(start=b"OPTIONS * HTTP/1.1"), 400),
    "a fragment": (get(start=b"GET /#a HTTP/1.1"), 400),
    "bytes in the path": (get(start=b"GET /\xff HTTP/1.1"), 400),
    "NUL in the path": (get(start=b"GET /\0 HTTP/1.1"), 400),
    "a whole URL": (get(start=b"GET http://localhost/a HTTP/1.1"), [("GET", "/a", b"")]),
    "a whole URL of another host": (get(start=b"GET http://evil.example/a HTTP/1.1"), 421),
    "a whole URL of another scheme": (get(start=b"GET ftp://localhost/a HTTP/1.1"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    # ---- hosts
    "no Host": (get(host=b""), 400),
    "no Host in HTTP/1.0": (get(host=b"", start=b"GET / HTTP/1.0"), 400),
    "an empty Host": (get(host=b"Host:\r\n"), 400),
    "two Hosts": (get(b"Host: localhost"), 400),
    "a Host with a path": (get(host=b"Host: localhost/a\r\n"), 400),
    "a Host with a user": (get(host=b"Host: a@localhost\r\n"), 400),
    "a Host with bytes": (get(host=b"Host: \xff\r\n"), 400),
    "a list of Hosts": (get(host=b"Host: localhost, localhost\r\n"), 400),
    "another Host": (get(host=b"Host: evil.example\r\n"), 421),
    # ---- what asks for something first
    "an upgrade": (get(b"Connection: Upgrade", b"Upgrade: websocket"), [("GET", "/", b"")]),
    "an upgrade to h2c": (get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), [("GET", "/", b"")]),
    "another expectation": (post(b"Expect: 200-ok", b"Content-Length: 1", body=b"a"), 417),
    "two expectations": (post(b"Expect: 100-continue", b"Expect: 100-continue", b"Content-Length: 1", body=b"a"), 400),
    "the last request": (get(b"Connection: close"), [("GET", "/", b"")]),
    "a body of GET": (get(b"Content-Length: 1", body=b"a"), [("GET", "/", b"a")]),
    "a request behind another": (post(b"Content-Length: 1", body=b"a"), [("POST", "/", b"a"), SMUGGLED]),
}
# the connection ends after these, so that what follows is nobody's
LAST = frozenset({"an upgrade", "an upgrade to h2c", "the last request"})

# h11 takes these, or leaves the refusal to who uses it
STRICTER = frozenset(
    {
        "CL and TE", "TE and CL", "two equal lengths", "two lengths in other letters", "a list of equal lengths", "length that overflows",
        "length over the limit", "chunked in HTTP/1.0", "compressed", "compressed with br", "a length in the trailer",
        "an extension with a bare carriage return", "a chunk size that overflows", "a chunk over the limit", "bare line feeds",
        "one bare line feed", "a folded header", "a folded coding", "HTTP/2.0", "HTTP/1.2", "an unknown method", "a method in small letters",
        "CONNECT", "a star", "a fragment", "a whole URL of another host", "a whole URL of another scheme", "no Host in HTTP/1.0",
        "an empty Host", "a Host with a path", "a Host with a user", "a Host with bytes", "a list of Hosts", "another Host",
        "another expectation", "two expectations",
    }
)  # fmt: skip
OTHERWISE = {
    "two spaces": "llhttp skips spaces before the target; RFC 9112 (3) allows it, and there is no second reading of the line",
    "the HTTP/2 preface": "h11 gives PRI as a request and then refuses the rest; here PRI is refused",
    "an upgrade": "refused by being answered as HTTP/1.1; the connection ends then, since what follows may be of the other protocol",
    "an upgrade to h2c": "the same",
}
