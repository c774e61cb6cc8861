"""What a running task feels of a kill -9: nothing if it hits the broker, and a second run soon if it hits its worker."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from programs import ON_FREE_PORTS, READY, Program, Start

from taskq import Client


def listening(start: Start, data: Path, address: str = "127.0.0.1:0") -> tuple[Program, str]:
    options = ("--listen", address, "--http", "127.0.0.1:0", "--data", str(data), "--shards", "3")
    broker = start("broker", *options)
    return broker, broker.wait_for(READY)["tcp"]


def test_a_worker_goes_on_with_its_task_when_the_broker_is_killed_and_comes_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\nfrom taskq import App\napp = App()\n@app.task\n"
        "async def wait_for(path: str) -> int:\n    with open(path + '.runs', 'a') as runs: runs.write('x')\n"
        "    while not Path(path).exists(): await asyncio.sleep(0.01)\n    return os.getpid()\n"
    )
    broker, address = listening(start, tmp_path / "data")
    start("worker", "--connect", address, "--app", "slow")
    runs = tmp_path / "go.runs"
    with Client(address, deadline=30) as client:
        handle = client.enqueue("wait_for", {"path": str(tmp_path / "go")})
        while not runs.exists() or not runs.read_text():
            assert broker.process.poll() is None
        broker.signal(signal.SIGKILL)
        broker.end()
        broker, _ = listening(start, tmp_path / "data", address)
        while not client.workers():
            assert broker.process.poll() is None
        (tmp_path / "go").write_text("")
        client.result(handle, timeout=30)
        info = client.get(handle)
    assert runs.read_text() == "x"
    assert [attempt["outcome"] for attempt in info.fields["attempts"]] == ["completed"]


def test_the_tasks_of_a_worker_that_is_killed_with_its_keeper_run_again_within_a_lease(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\nfrom taskq import App\napp = App()\n@app.task\n"
        "async def first_hangs(path: str) -> str:\n    if Path(path).exists(): return 'second'\n"
        "    Path(path).write_text(str(os.getpid()))\n    await asyncio.sleep(3600)\n    return 'first'\n"
    )
    broker = start("broker", *ON_FREE_PORTS, "--lease", "2s", "--heartbeat", "0.5s")
    address = broker.wait_for(READY)["tcp"]
    start("worker", "--connect", address, "--app", "slow")
    start("worker", "--connect", address, "--app", "slow", "--name", "heir")
    path = tmp_path / "started"
    with Client(address) as client:
        handle = client.enqueue("first_hangs", {"path": str(path)})
        while not path.exists() or not path.read_text():
            assert broker.process.poll() is None
        pid = confirmed(client, client.get(handle).fields["worker"])
        killed_s = time.monotonic()
        keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for each in (keeper, pid):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        assert client.result(handle, timeout=30) == "second"
        assert time.monotonic() - killed_s < 4
        attempts = client.get(handle).fields["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["crashed", "completed"]


def confirmed(client: Client, name: str) -> int:
    """Wait for the next sign of life of this worker, which confirms what it was delivered; its pid."""
    ago_ms = -1
    while True:
        row = next(row for row in client.workers() if row["name"] == name)
        if row["heard_ms_ago"] < ago_ms:
            return int(row["pid"])
        ago_ms = row["heard_ms_ago"]
