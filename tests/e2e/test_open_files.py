"""Open files, of which each connection is one: a broker that has few of them says so or goes on, and never ends for want of them."""

from __future__ import annotations

import resource
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from certificates import Files, issue
from programs import IN_CODE, ON_FREE_PORTS, READY, Program, Spawn, environment

from taskq import Client
from taskq.actors.doors import FILES_LEAST

BROKER = IN_CODE.format("broker")


@pytest.fixture(autouse=True)
def room_for_connections() -> Iterator[None]:
    """This process makes them, and the tests after these have what they had."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8_192), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def limited(spawn: Spawn) -> object:
    """Start a broker that may have so many files."""

    def limited(files: int, *arguments: str) -> Program:
        code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); {BROKER}"
        return spawn([sys.executable, "-c", code, *ON_FREE_PORTS, *arguments], environment())

    return limited


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextmanager
def connected(number: int, count: int) -> Iterator[list[socket.socket]]:
    """So many silent connections, as far as the machine has them."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", number), timeout=20)) for _ in range(count)]


@pytest.mark.parametrize("files", [24, 64, FILES_LEAST - 1])
def test_too_few_files_are_refused_at_the_start_with_the_number_that_is_needed(limited, files: int) -> None:  # type: ignore[no-untyped-def]
    broker = limited(files)
    assert broker.end() == 78
    assert f"may have {files}, and needs at least {FILES_LEAST}" in broker.errors
    assert "Traceback" not in broker.errors


@pytest.mark.parametrize("files", [FILES_LEAST, 513, 1_024])
@pytest.mark.parametrize("door", ["tcp", "http"])
def test_more_silent_connections_than_files_do_not_end_it(limited, door: str, files: int) -> None:  # type: ignore[no-untyped-def]
    broker = limited(files, "--shards", "64")
    found = broker.wait_for(READY)
    with connected(port(found[door]), files + 100):
        assert_healthy(found["tcp"], found["http"])
    assert broker.stop() == 0


@pytest.mark.parametrize("door", ["tcp", "http"])
def test_handshakes_that_do_not_go_on_do_not_end_it(limited, tmp_path: Path, door: str) -> None:  # type: ignore[no-untyped-def]
    files: Files = issue(tmp_path / "tls")
    broker = limited(1_024, *files.flags)
    found = broker.wait_for(READY)
    with connected(port(found[door]), 1_500), Client(found["tcp"], tls_ca=str(files.ca)) as client:
        assert client.enqueue("t")
    assert broker.stop() == 0


def assert_healthy(tcp: str, http: str) -> None:
    """Both doors let somebody in soon."""
    with Client(tcp) as client:
        assert client.enqueue("t")
    ends_s = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"http://{http}/readyz", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < ends_s
