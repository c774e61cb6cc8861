"""No text costs more than linear time.  PATTERNS has every regular expression of the tree, SCANS every function that goes through text of others by
hand; each is fed texts of a megabyte that are made to mislead it.  A pattern that is in the tree and not in the table fails the test.
"""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import pytest

from taskq import durations, printable
from taskq.config import BrokerConfig, host_port, settings_of
from taskq.connection import Address
from taskq.core import access, gate
from taskq.errors import TaskqError, echo, told
from taskq.gateway import bearer, enqueue
from taskq.gateway.answers import error_response
from taskq.gateway.http1 import PIECE_BYTES, HttpLimits, Receiver, Request
from taskq.gateway.routes import Gateway
from taskq.ids import NIL
from taskq.protocol import guard

ROOT = Path(__file__).parent.parent / "taskq"
SIZE = 1 << 20
# a machine that is busy with other things needs some of it; a quadratic scan of a megabyte takes hours
LONGEST_S = 5.0

RUN = "one run of one class, of bounded length"
DISJOINT = "neighbouring parts share no character, so each text can be cut in one way only"

# file → name → why it is linear
PATTERNS: dict[str, dict[str, str]] = {
    "config.py": {"_SIZE": f"{DISJOINT}; the digits are bounded"},
    "durations.py": {"_PART": f"{DISJOINT}; it is matched where the part before ended, in 64 characters", "_NUMBER": DISJOINT},
    "printable.py": {"UNFIT": "one character", "UNFIT_IN_LINES": "one character"},
    "cli/waiting.py": {"NAMELESS": "words, of fixed length but for one of two", "SECONDS": "a run of bounded length, then fixed ones"},
    "core/access.py": {"GLOB": RUN},
    "core/enqueue.py": {"NAME": RUN},
    "core/gate.py": {"TOKEN_NAME": RUN, "_TEXT": "runs of bounded length"},
    "core/scram.py": {"_FIRST": "runs of bounded length", "_CHALLENGE": "runs of bounded length", "_FINAL": "runs of bounded length"},
    "gateway/payloads.py": {"WHITE": "one run of one class, matched at a position", "SURROGATE": "one character"},
    "gateway/http1.py": {"_HOST": f"two alternatives that begin with other characters; {DISJOINT}"},
    "storage/journal.py": {"_NAME": "of fixed length"},
    "worker/registry.py": {"NAME": RUN},
}
CALLS = frozenset({"compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn", "template"})


def patterns_of(path: Path) -> list[tuple[str, int]]:
    """(name that it is given, line) of each use of `re` in a file; a pattern without a name of its own is called by its line."""
    tree = ast.parse(path.read_text())
    named = {
        node.value: target.id for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
    }
    names = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "re" for alias in node.names
    }
    return [
        (named.get(node, f"line {node.lineno}"), node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _is_pattern(node.func, names)
    ]


def _is_pattern(called: ast.expr, names: set[str]) -> bool:
    if isinstance(called, ast.Attribute):
        return isinstance(called.value, ast.Name) and called.value.id == "re" and called.attr in CALLS
    return isinstance(called, ast.Name) and called.id in names


def test_every_pattern_of_the_tree_is_in_the_table() -> None:
    found = {str(path.relative_to(ROOT)): {name for name, _ in patterns_of(path)} for path in ROOT.rglob("*.py") if patterns_of(path)}
    assert found == {file: set(rows) for file, rows in PATTERNS.items()}


@pytest.mark.parametrize(
    "source", ["import re\nX = 1\nre.search('a', 'b')", "from re import compile as c\nc('a')", "import re\nNEW = re.compile('a')"]
)
def test_a_pattern_that_is_not_in_the_table_is_seen(source: str, tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(source)
    assert len(patterns_of(tmp_path / "new.py")) == 1


# pieces that one pattern or another takes gladly, each repeated to the whole size, with an end that nothing takes
PIECES = (
    "1",
    "1.",
    " ",
    "1 ",
    "1h",
    "a",
    "a.",
    "a_",
    "-",
    "[",
    "[:",
    ":",
    "=",
    ",",
    "n,,n=a,r=",
    "r=a,s=",
    "tq_",
    "\x1b",
    "\u202e",
    "/",
    "%41",
    "&",
    "a=&",
    "\n",
)
HOSTILE = [piece * (SIZE // len(piece)) + end for piece in PIECES for end in ("", "!", "\x00")]


def seconds_of(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, rows in PATTERNS.items() for name in rows])
def test_no_pattern_takes_long_for_a_megabyte(file: str, name: str) -> None:
    pattern: re.Pattern[Any] = getattr(import_module("taskq." + file.removesuffix(".py").replace("/", ".")), name)
    for text in HOSTILE:
        hostile = text.encode(errors="replace") if isinstance(pattern.pattern, bytes) else text
        # `sub` is how the patterns of one character are used, the others match at a place
        work = (
            (lambda text=hostile: pattern.sub("?", text))
            if file == "printable.py"
            else (lambda text=hostile: (pattern.match(text), pattern.fullmatch(text)))
        )
        assert seconds_of(work) < LONGEST_S, (name, text[:8])


def _gateway() -> Gateway:
    return Gateway(HttpLimits(), lambda: {"ready": True, "reason": ""}, b"{}")


def _receive(head: str) -> None:
    receiver, data = Receiver(HttpLimits()), head.encode(errors="replace")
    for at in range(0, len(data), PIECE_BYTES):
        receiver.feed(data[at : at + PIECE_BYTES])


def _get(path: str, query: str = "") -> Any:
    return _gateway().call(Request("GET", path, query))


def _post(body: str) -> Any:
    return _gateway().call(Request("POST", "/enqueue", "", "application/json", body.encode(errors="replace")))


def _enqueue(name: str, text: str) -> Any:
    return _post(f'{{"task_type":"t","{name}":{text}}}')


def _quoted(text: str) -> str:
    """As a string of JSON, whatever is in it."""
    return f'"{text.translate(dict.fromkeys(range(32), "_"))}"'


def _set(name: str) -> Callable[[str], Any]:
    return next(row for row in settings_of(BrokerConfig) if row.name == name).parse


def _gate_of_nobody() -> gate.Gate:
    return gate.Gate(dict, b"k" * 32)


# what goes through text of others by hand
SCANS: dict[str, Callable[[str], Any]] = {
    "durations.seconds": durations.seconds,
    "printable.printable": printable.printable,
    "printable.printable_lines": printable.printable_lines,
    "errors.echo": echo,
    "errors.told": told,
    "config.host_port": host_port,
    "config: a size": _set("hot_bytes_max"),
    "config: a number": _set("shards"),
    "config: a duration": _set("lease"),
    "config: a list": _set("http_hosts"),
    "connection.Address": Address.parse,
    "access.matches, the glob": lambda text: access.matches("*".join(text), "a" * 1000),
    "access.matches, the name": lambda text: access.matches("*a*1*h*!*b", text),
    "access.scope_of": access.scope_of,
    "gate.bearer": lambda text: _gate_of_nobody().bearer(text),
    "gate.name_of": gate.name_of,
    "bearer.token_of": lambda text: bearer.token_of(text.encode(errors="replace")),
    "bearer.is_loopback": bearer.is_loopback,
    "enqueue.task_id": enqueue.task_id,
    "http1: a request line": lambda text: _receive(f"GET /{text} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "http1: a host": lambda text: _receive(f"GET / HTTP/1.1\r\nHost: {text}\r\n\r\n"),
    "http1: headers": lambda text: _receive("GET / HTTP/1.1\r\nHost: localhost\r\n" + f"a: {text[:64]}\r\n" * (SIZE // 64) + "\r\n"),
    "http1: chunks": lambda text: _receive(
        "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + f"1\r\n{text[0]}\r\n" * (SIZE // 6) + "0\r\n\r\n"
    ),
    "routes: a path": lambda text: _get("/" + text),
    "routes: an id": lambda text: _get("/v1/tasks/" + text),
    "routes: a query": lambda text: _get(f"/v1/tasks/{NIL.hex()}", text),
    "routes: wait": lambda text: _get(f"/v1/tasks/{NIL.hex()}", "wait=" + text.replace("&", "1")),
    "routes: a body": _post,
    "routes: a list": lambda text: _post("[" + ",".join("1" * (SIZE // 8)) + text),
    **{f"enqueue: {name}": partial(lambda name, text: _enqueue(name, _quoted(text)), name) for name in ("payload", "colour", *enqueue.OPTIONS)},
    "enqueue: retry.base": lambda text: _enqueue("retry", f'{{"base":{_quoted(text)}}}'),
    "enqueue: a number": lambda text: _enqueue("delay", text),
    "guard.walk": lambda text: guard.walk(b"\xdd\x00\x10\x00\x00" + text.encode(errors="replace"), 10_000, 1 << 20),
}


@pytest.mark.parametrize("name", SCANS)
def test_no_scan_takes_long_for_a_megabyte(name: str) -> None:
    def scan(text: str) -> None:
        with suppress(ValueError, TaskqError):
            SCANS[name](text)

    for text in HOSTILE:
        assert seconds_of(lambda text=text: scan(text)) < LONGEST_S, text[:8]


@pytest.mark.parametrize("digits", [64, 65, 640, 4_000, SIZE])
def test_a_duration_of_many_digits_is_read_or_refused_at_once(digits: int) -> None:
    def read() -> None:
        with pytest.raises(ValueError, match="delay: "):
            durations.seconds("1" * (digits - 1) + "x", "delay")

    assert seconds_of(read) < 0.5


@attrs.frozen
class Loud:
    """An object of somebody whose repr does not work."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


LARGE = {
    "as long as may be": "x" * 200, "text": "x" * SIZE, "bytes": b"\xff" * SIZE, "escapes": "\x00" * SIZE, "an int": 10**5_000, "a list": [1] * SIZE,
    "no repr": Loud(), "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_an_echo_is_short_whatever_was_sent(name: str) -> None:
    assert 1 <= len(echo(LARGE[name])) <= 200


def test_an_echo_shows_a_short_value_whole_and_the_begin_of_a_long_one() -> None:
    assert (echo("a'b"), echo(5), echo("x" * 198)) == ('"a\'b"', "5", f"'{'x' * 198}'")
    assert echo("x" * 199).startswith("'xxx") and echo("x" * 199).endswith("…")


def test_a_message_that_somebody_forgot_to_cut_is_cut_at_the_door() -> None:
    assert told("a" * 1_000) == "a" * 1_000
    assert len(told("a" * 10_000)) == 1_000


VALUES = {
    "text": f'"{"1" * SIZE}"', "an int": "1" * SIZE, "an int of 300 digits": "1" * 300, "a list": f'["{"a" * SIZE}"]',
    "an option": f'{{"base":"{"1" * SIZE}"}}', "an unknown option": f'{{"{"b" * SIZE}":1}}',
}  # fmt: skip
FIELDS = {**{name: name for name in enqueue.OPTIONS}, "an unknown name": "x" * SIZE}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", VALUES)
def test_a_megabyte_in_any_field_is_answered_with_less_than_a_kibibyte(field: str, value: str) -> None:
    with pytest.raises(TaskqError) as caught:
        _enqueue(FIELDS[field], VALUES[value])
    response = error_response(caught.value)
    assert response.status == 400
    assert len(response.body) < 1_024


URLS = {
    "a path": ("/" + "x" * SIZE, ""), "an id": ("/v1/tasks/" + "x" * SIZE, ""), "a wait": (f"/v1/tasks/{NIL.hex()}", "wait=" + "1" * SIZE),
    "a name": (f"/v1/tasks/{NIL.hex()}", "x" * SIZE), "a flag": (f"/v1/tasks/{NIL.hex()}", "payload=" + "x" * SIZE),
}  # fmt: skip


@pytest.mark.parametrize("name", URLS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_megabyte_in_a_url_or_a_header_is_answered_with_less_than_a_kibibyte(method: str, name: str) -> None:
    path, query = URLS[name]
    with pytest.raises(TaskqError) as caught:
        _gateway().call(Request(method, path, query, content_type="x" * SIZE))
    assert len(error_response(caught.value).body) < 1_024


@pytest.mark.parametrize("head", ["GET /{} HTTP/1.1", "{} / HTTP/1.1", "GET / HTTP/1.1\r\nHost: {}", "GET / HTTP/1.1\r\n{}: 1", "GET / HTTP/{}"])
def test_a_long_head_is_answered_with_less_than_a_kibibyte(head: str) -> None:
    receiver, data = Receiver(HttpLimits()), f"{head.format('x' * 15_000)}\r\n\r\n".encode()
    events = [event for at in range(0, len(data), PIECE_BYTES) for event in receiver.feed(data[at : at + PIECE_BYTES])]
    refusal = events[-1]
    assert isinstance(refusal, TaskqError)
    assert len(error_response(refusal).body) < 1_024
