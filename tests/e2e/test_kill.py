"""kill -9 of a real broker at random moments, under load: what it acknowledged is there afterwards, and what was final stays final."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from programs import ON_FREE_PORTS, READY, Program, Start

from taskq import AsyncClient, BrokerUnavailable, Client, TaskInfo, TaskqError
from taskq.errors import NotFound

KILLS = 5
LOAD_S = (0.05, 0.6)
BATCH = 50
APP = """
import asyncio
from taskq import App
app = App()

@app.task(queue="load")
async def double(number: int) -> int:
    return 2 * number
"""


class History:
    """What one producer was told: ids of acknowledged tasks with their number, and the results that were shown as final."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}
        self.results: dict[str, Any] = {}
        self._stopped = threading.Event()

    def produce(self, address: str, kept: bool) -> threading.Thread:
        """Enqueue and look at results, until the broker is gone."""
        self._stopped.clear()
        thread = threading.Thread(target=self._produce, args=(address, kept))
        thread.start()
        return thread

    def _produce(self, address: str, kept: bool) -> None:
        with Client(address, deadline=0.5) as client:
            try:
                while not self._stopped.is_set():
                    first = len(self.acknowledged)
                    task_type = "kept" if kept else "double"
                    payloads = [{"number": first + offset} for offset in range(BATCH)]
                    handles = client.enqueue_many(task_type, payloads, queue="load")
                    self.acknowledged.update((handle.id, first + offset) for offset, handle in enumerate(handles))
                    if not kept:
                        self.results[handles[0].id] = client.result(handles[0], timeout=0.5)
            except (TaskqError, BrokerUnavailable):
                return

    def stop(self) -> None:
        self._stopped.set()

    async def check(self, address: str) -> None:
        """Nothing acknowledged is lost, nothing that was final has changed, and what can be run is run."""
        async with AsyncClient(address) as client:
            found = await asyncio.gather(*(self._look(client, task_id) for task_id in self.acknowledged))
            lost = [task_id for task_id, info in zip(self.acknowledged, found, strict=True) if info is None]
            assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged tasks are lost: {lost[:3]}"
            doubled = [info for info in found if info is not None and info.task_type == "double"]
            results = await asyncio.gather(*(client.result(info.id, timeout=30) for info in doubled))
        assert results == [2 * self.acknowledged[info.id] for info in doubled]

    async def _look(self, client: AsyncClient, task_id: str) -> TaskInfo | None:
        try:
            info = await client.get(task_id)
        except NotFound:
            return None
        assert info.payload == {"number": self.acknowledged[task_id]}
        if task_id in self.results:
            assert (info.state, info.result) == ("completed", self.results[task_id])
        return info


def listening(start: Start, data: Path, durability: str, address: str = "127.0.0.1:0") -> tuple[Program, str]:
    options = ("--listen", address, "--http", "127.0.0.1:0", "--data", str(data), "--durability", durability, "--shards", "3")
    broker = start("broker", *options)
    return broker, broker.wait_for(READY)["tcp"]


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_nothing_acknowledged_is_lost_when_the_broker_is_killed(start: Start, tmp_path: Path, durability: str) -> None:
    rng = random.Random(durability)
    history = History()
    (tmp_path / "load.py").write_text(APP)
    broker, address = listening(start, tmp_path / "data", durability)
    worker = start("worker", "--connect", address, "--app", "load", "--concurrency", "20")
    for kill in range(KILLS):
        producer = history.produce(address, kept=kill % 2 == 1)
        producer.join(rng.uniform(*LOAD_S))
        broker.signal(signal.SIGKILL)
        assert broker.end() == -signal.SIGKILL
        history.stop()
        producer.join()
        broker, address = listening(start, tmp_path / "data", durability, address)
    assert len(history.acknowledged) > KILLS * BATCH
    asyncio.run(history.check(address))
    assert worker.stop() == 0
    assert broker.stop() == 0
    assert not list((tmp_path / "data" / "journal").iterdir()), "a clean stop leaves an empty journal"


def test_a_worker_goes_on_with_its_task_when_the_broker_is_killed_and_comes_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio, os\nfrom pathlib import Path\nfrom taskq import App\napp = App()\n@app.task\n"
        "async def wait_for(path: str) -> int:\n    with open(path + '.runs', 'a') as runs: runs.write('x')\n"
        "    while not Path(path).exists(): await asyncio.sleep(0.01)\n    return os.getpid()\n"
    )
    broker, address = listening(start, tmp_path / "data", "fsync")
    start("worker", "--connect", address, "--app", "slow")
    runs = tmp_path / "go.runs"
    with Client(address, deadline=30) as client:
        handle = client.enqueue("wait_for", {"path": str(tmp_path / "go")})
        while not runs.exists() or not runs.read_text():
            assert broker.process.poll() is None
        broker.signal(signal.SIGKILL)
        broker.end()
        broker, _ = listening(start, tmp_path / "data", "fsync", address)
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
        os.killpg(os.getpgid(pid), signal.SIGKILL)
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
