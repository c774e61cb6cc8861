"""A worker on another host: broker and worker in network namespaces of their own, joined by a virtual cable."""

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
