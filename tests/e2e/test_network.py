"""Another host: broker and worker, or broker and client, in network namespaces of their own, joined by a virtual cable."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import IN_CODE, READY, Spawn

BROKER, WORKER = "10.71.7.1", "10.71.7.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, `broker` and `worker`; root only, as everywhere."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can make network namespaces; run the tests as root to see this one")
    names = f"tq-b-{os.getpid()}", f"tq-w-{os.getpid()}"
    cable = f"tqb{os.getpid()}"[:14], f"tqw{os.getpid()}"[:14]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
        for name, end, address in zip(names, cable, (BROKER, WORKER), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20, check=False)


def on(host: str, name: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", host, sys.executable, "-c", IN_CODE.format(name), *arguments]


def test_a_worker_on_another_host_runs_the_tasks(hosts: tuple[str, str], spawn: Spawn, tmp_path: Path) -> None:
    there, here = hosts
    (tmp_path / "greeting.py").write_text("from taskq import App\napp = App()\n@app.task\ndef greet(name: str) -> str: return 'hello ' + name\n")
    broker = spawn(on(there, "broker", "--listen", f"{BROKER}:0", "--http", "127.0.0.1:0", "--insecure"))
    address = broker.wait_for(READY)["tcp"]
    assert address.startswith(BROKER)
    worker = spawn(on(here, "worker", "--connect", address, "--app", "greeting"))
    client = spawn(on(here, "main", "enqueue", "greet", "name=world", "--wait", "--broker", address))
    assert client.end() == 0, client.errors
    assert "hello world" in "".join(client.said["stdout"])
    assert worker.stop() == 0
    assert broker.stop() == 0


# opens two connections, says what the second was answered before it asked anything, and keeps the first
CROWD = """import signal, socket, sys
host, port = sys.argv[1].split(":")
first, second = (socket.create_connection((host, int(port))) for _ in range(2))
print(second.recv(4096), flush=True)
signal.pause()"""


@pytest.mark.parametrize("door", ["tcp", "http"])
def test_an_address_has_so_many_connections_and_others_come_in(hosts: tuple[str, str], spawn: Spawn, door: str) -> None:
    there, here = hosts
    settings = ("--listen", f"{BROKER}:0", "--http", f"{BROKER}:0", "--insecure", "--address-connections-max", "1")
    broker = spawn(on(there, "broker", *settings))
    address = broker.wait_for(READY)[door]
    crowd = spawn(["ip", "netns", "exec", here, sys.executable, "-c", CROWD, address])
    crowd.wait_for("TOO_MANY_CONNECTIONS")
    if door == "tcp":
        another = spawn(on(there, "main", "enqueue", "greet", "--broker", address))
    else:
        another = spawn(["ip", "netns", "exec", there, "curl", "--silent", "--fail", f"http://{address}/readyz"])
    assert another.end() == 0, another.said
    crowd.stop()
    assert broker.stop() == 0


def test_a_token_that_comes_over_the_wire_in_the_clear_is_refused_and_said_so(hosts: tuple[str, str], spawn: Spawn) -> None:
    there, here = hosts
    make = spawn(on(there, "main", "token", "create", "reader", "--scope", "read"))
    assert make.end() == 0, make.errors
    token = "".join(make.said["stdout"]).strip()
    broker = spawn(on(there, "broker", "--listen", f"{BROKER}:0", "--http", f"{BROKER}:0", "--auth", "--insecure"))
    address = broker.wait_for(READY)["http"]
    ask = ["curl", "--silent", "--header", f"Authorization: Bearer {token}", "--write-out", "%{http_code}", f"http://{address}/v1/queues"]
    from_elsewhere = spawn(["ip", "netns", "exec", here, *ask])
    assert from_elsewhere.end() == 0
    told = "".join(from_elsewhere.said["stdout"])
    assert told.endswith("403") and "TLS_REQUIRED" in told and token not in told
    assert broker.stop() == 0
    assert token not in broker.errors
