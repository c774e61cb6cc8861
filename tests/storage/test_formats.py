"""What older versions left on disk is read by this one: each stored data folder is given to a broker, which must show every task as it was."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from programs import ON_FREE_PORTS, READY, Start

from taskq import Client
from taskq.storage import journal, sqlite

FORMATS = Path(__file__).parent / "formats"
# the folders are older than a broker keeps finished tasks, else
KEEP = ["--retention-completed", "36500d", "--retention-failed", "36500d"]
STORED = sorted(FORMATS.glob("*.tar.xz"))


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (folder / "taskq-data").chmod(0o700)


def expected(archive: Path) -> list[dict[str, Any]]:
    name = archive.name.removesuffix(".tar.xz").rpartition("-")[0]
    tasks: list[dict[str, Any]] = json.loads((FORMATS / f"{name}.json").read_text())
    return tasks


def test_the_formats_of_this_version_are_stored() -> None:
    """A change of a format needs new files (make.py), and code that still reads the old ones or refuses them by name."""
    assert [path for path in STORED if f"-store{sqlite.FORMAT}-journal{journal.VERSION}-" in path.name]


@pytest.mark.parametrize("archive", STORED, ids=lambda path: path.name)
def test_a_stored_data_folder_is_read_whole(archive: Path, start: Start, tmp_path: Path) -> None:
    unpack(archive, tmp_path)
    tasks = expected(archive)
    broker = start("broker", *ON_FREE_PORTS, "--lease", "1h", "--drain", "0", *KEEP)
    with Client(broker.wait_for(READY)["tcp"]) as client:
        for task in tasks:
            info = client.get(task["id"])
            found = {**info.fields, "payload": info.payload, "result": info.result}
            assert {name: found[name] for name in task} == task
        by_queue = {row["queue"]: row["pending"] for row in client.queues()}
        assert by_queue["many"] == 50 and by_queue["other"] == 1
        (keyed,) = [task for task in tasks if task.get("key")]
        again = client.enqueue("nobody", keyed["payload"], queue="other", key=keyed["key"], priority=2)
        assert not again.created and again.id == keyed["id"]
        assert client.enqueue("nobody", {"new": True}, queue="many").created
    assert broker.stop() == 0
