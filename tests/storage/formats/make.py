"""Make the data folder that later versions must be able to read:  .venv/bin/python tests/storage/formats/make.py

A real broker and a real worker bring tasks into every state.  Then the broker is killed, so that the journal is needed (NAME-killed), started and
stopped (NAME-stopped); what a client was shown of each task before goes into NAME.json.  NAME is the version and the numbers of the formats: a
change of a format gets a new name, and the old files stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from taskq import Client, TaskInfo
from taskq.storage import journal, sqlite
from taskq.version import VERSION

FOLDER = Path(__file__).parent
NAME = f"{VERSION}-store{sqlite.FORMAT}-journal{journal.VERSION}"
SHOWN = ("id", "queue", "task_type", "state", "payload", "result", "attempts_used", "crashes", "key", "priority", "max_attempts", "due_ms")
WAIT_S = 20
APP = """
import asyncio
from taskq import App, Discard, Retry
app = App()

@app.task
async def double(number: int) -> int:
    return 2 * number

@app.task
async def refuse() -> None:
    raise Discard("no such user")

@app.task
async def fail() -> None:
    raise Retry("300d", "not today")

@app.task
async def wait() -> None:
    await asyncio.sleep(3600)
"""


def shown(info: TaskInfo) -> dict[str, Any]:
    fields = {**info.fields, "payload": info.payload, "result": info.result}
    return {name: fields[name] for name in SHOWN if name in fields}


def enqueue_everything(client: Client) -> dict[str, str]:
    """Ids, with the state that each is to reach."""
    made = {client.enqueue("double", {"number": number}).id: "completed" for number in range(5)}
    made[client.enqueue("refuse").id] = "failed"
    made[client.enqueue("fail").id] = "retrying"
    made[client.enqueue("wait").id] = "running"
    made[client.enqueue("double", {"number": 7}, delay="300d", priority="high").id] = "scheduled"
    made[client.enqueue("nobody", {"text": "ä" * 3_000, "none": None}, queue="other", key="only-one", priority=2).id] = "pending"
    made.update((handle.id, "pending") for handle in client.enqueue_many("nobody", [{"number": number} for number in range(50)], queue="many"))
    cancelled = client.enqueue("nobody", {}, queue="other")
    client.cancel(cancelled)
    made[cancelled.id] = "cancelled"
    return made


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"from taskq.cli import {name}; {name}()", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": "."})


def start_broker(folder: Path) -> tuple[subprocess.Popen[str], str]:
    broker = start(folder, "broker", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--lease", "1h")
    assert broker.stdout is not None
    return broker, broker.stdout.readline().split("tcp=")[1].split()[0]


def wait_for_states(client: Client, made: dict[str, str]) -> list[dict[str, Any]]:
    ends_s = time.monotonic() + WAIT_S
    while time.monotonic() < ends_s:
        infos = [client.get(task_id) for task_id in made]
        if [info.state for info in infos] == list(made.values()):
            return [shown(info) for info in infos]
    raise TimeoutError(f"{[(info.task_type, info.state) for info in infos]}")


def pack(folder: Path, name: str) -> None:
    with tarfile.open(FOLDER / f"{name}.tar.xz", "w:xz") as archive:
        for path in sorted((folder / "taskq-data").rglob("*")):
            archive.add(path, path.relative_to(folder), recursive=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "app.py").write_text(APP)
        broker, tcp = start_broker(folder)
        worker = start(folder, "worker", "--connect", tcp, "--app", "app", "--name", "w1")
        with Client(tcp) as client:
            tasks = wait_for_states(client, enqueue_everything(client))
        broker.kill()
        broker.wait()
        worker.kill()
        worker.wait()
        pack(folder, f"{NAME}-killed")
        broker, _ = start_broker(folder)
        broker.terminate()
        broker.wait()
        pack(folder, f"{NAME}-stopped")
        (FOLDER / f"{NAME}.json").write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
        print(f"{NAME}: {len(tasks)} tasks")


if __name__ == "__main__":
    main()
