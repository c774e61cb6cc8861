"""`taskq backup` of a real broker, at work, killed and stopped; what it makes is given to a broker, which must have all that was acknowledged."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from programs import ON_FREE_PORTS, READY, Run, Start

from taskq import Client
from taskq.errors import NotFound
from taskq.storage import backup

# small segments, so that the journal is cut and dropped while it is copied
BUSY = (*ON_FREE_PORTS, "--journal-segment-bytes", "64KiB", "--durability", "os")


def ids_of(tcp: str, numbers: list[int], queue: str = "kept") -> list[str]:
    with Client(tcp) as client:
        return [handle.id for handle in client.enqueue_many("never_run", [{"number": number} for number in numbers], queue=queue)]


def restored(start: Start, folder: str) -> str:
    return start("broker", *ON_FREE_PORTS, "--data", folder).wait_for(READY)["tcp"]


def missing(tcp: str, ids: list[str]) -> list[str]:
    with Client(tcp) as client:
        return [task_id for task_id in ids if not exists(client, task_id)]


def exists(client: Client, task_id: str) -> bool:
    try:
        return client.get(task_id).payload is not None
    except NotFound:
        return False


def test_a_backup_under_load_has_all_that_was_acknowledged_before_it_began(start: Start, run: Run) -> None:
    broker = start("broker", *BUSY)
    tcp = broker.wait_for(READY)["tcp"]
    before, acknowledged, enough, over = [0, 0, 0], [], threading.Event(), threading.Event()

    def produce() -> None:
        with Client(tcp) as client:
            while not over.is_set():
                acknowledged.extend(client.enqueue_many("never_run", [{"text": "x" * 500}] * 200, queue="load"))
                if len(acknowledged) >= 20_000:
                    enough.set()

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        assert enough.wait(30)
        for number in range(3):
            before[number] = len(acknowledged)
            done = run("main", "backup", f"backup-{number}", "--json")
            assert (done.returncode, done.stderr) == (0, "")
            assert json.loads(done.stdout)["tasks"] >= before[number]
    finally:
        over.set()
        thread.join()
    made_during = len(acknowledged) > before[2]
    assert made_during, "there was no load while the last backup was made"
    assert broker.stop() == 0
    for number in range(3):
        sample = [handle.id for handle in [*acknowledged[: before[number] : 400], acknowledged[before[number] - 1]]]
        assert missing(restored(start, f"backup-{number}"), sample) == []


def test_a_flush_between_the_copies_of_journal_and_store_does_no_harm(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tcp = start("broker", *ON_FREE_PORTS).wait_for(READY)["tcp"]
    first = ids_of(tcp, [1])
    copy_journal = backup._copy_journal

    def then_flush(*arguments: Any) -> int:
        end_lsn = copy_journal(*arguments)
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(flush, end_lsn).result()
        return end_lsn

    def flush(end_lsn: int) -> None:
        ids_of(tcp, [2])
        with Client(tcp) as client:
            while client.broker()["applied_lsn"] <= end_lsn:
                pass

    monkeypatch.setattr(backup, "_copy_journal", then_flush)
    made = asyncio.run(backup.backup(tmp_path / "taskq-data", tmp_path / "copy"))
    assert made.tasks == 2
    assert missing(restored(start, "copy"), first) == []


def test_the_broker_that_was_copied_notices_nothing(start: Start, run: Run) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    tcp = broker.wait_for(READY)["tcp"]
    first = ids_of(tcp, [1])
    assert run("main", "backup", "copy").returncode == 0
    second = ids_of(tcp, [2])
    assert missing(tcp, first + second) == []
    assert broker.stop() == 0
    assert not [line for line in broker.said["stderr"] if "WARNING" in line or "ERROR" in line]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_whose_broker_has_ended_can_be_copied_too(start: Start, run: Run, tmp_path: Path, end: signal.Signals) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    ids = ids_of(broker.wait_for(READY)["tcp"], [1, 2, 3])
    broker.signal(end)
    broker.end()
    left = {path.name: path.read_bytes() for path in (tmp_path / "taskq-data").rglob("*") if path.is_file()}
    done = run("main", "backup", "copy")
    assert (done.returncode, done.stdout[:15]) == (0, "copy: 3 tasks, ")
    assert {path.name: path.read_bytes() for path in (tmp_path / "taskq-data").rglob("*") if path.is_file()} == left
    assert missing(restored(start, "copy"), ids) == []


def test_a_restored_broker_never_repeats_a_token_of_the_old_one(start: Start, run: Run, tmp_path: Path) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    broker.wait_for(READY)
    assert run("main", "backup", "copy").returncode == 0
    for _ in range(3):
        broker.stop()
        broker = start("broker", *ON_FREE_PORTS)
        broker.wait_for(READY)
    restored(start, "copy")
    assert epoch(tmp_path / "copy") > epoch(tmp_path / "taskq-data") + 1_000


def epoch(folder: Path) -> int:
    with closing(sqlite3.connect(f"file:{folder / 'store.sqlite'}?mode=ro", uri=True)) as store:
        return int(store.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0])


def test_a_backup_is_private_and_holds_no_journal(start: Start, run: Run, tmp_path: Path) -> None:
    start("broker", *ON_FREE_PORTS).wait_for(READY)
    assert run("main", "backup", "copy").returncode == 0
    made = tmp_path / "copy"
    assert made.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in made.rglob("*"))
    assert sorted(path.name for path in made.rglob("*") if path.is_file()) == ["journal.witness", "secret.key", "store.sqlite"]


def refused(run: Run, tmp_path: Path, *arguments: str) -> str:
    """The message; nothing may be left behind."""
    before = sorted(tmp_path.iterdir())
    done = run("main", "backup", *arguments)
    assert done.returncode != 0 and done.stderr.startswith("taskq: ") and done.stderr.count("\n") == 1, done.stderr
    assert sorted(tmp_path.iterdir()) == before
    return done.stderr


def test_what_is_no_data_folder_is_refused(run: Run, tmp_path: Path) -> None:
    assert "no data folder" in refused(run, tmp_path, "copy", "--data", "nowhere")


def test_a_target_that_exists_is_not_touched(start: Start, run: Run, tmp_path: Path) -> None:
    start("broker", *ON_FREE_PORTS).wait_for(READY)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").write_text("precious")
    assert "copy exists" in refused(run, tmp_path, "copy")
    assert (tmp_path / "copy" / "mine").read_text() == "precious"


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + 64] = b"\xff" * 64
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("where", "at", "told"), [("store.sqlite", 40, "taskq-data"), ("store.sqlite", 8_192, "store.sqlite"), ("journal", 300, "offset")]
)
def test_a_damaged_folder_gives_no_backup(start: Start, run: Run, tmp_path: Path, where: str, at: int, told: str) -> None:
    broker = start("broker", *BUSY)
    for number in range(4):
        ids_of(broker.wait_for(READY)["tcp"], list(range(number * 800, number * 800 + 800)))
    broker.signal(signal.SIGKILL)
    broker.end()
    path = tmp_path / "taskq-data" / where
    damage(min(path.iterdir()) if path.is_dir() else path, at)
    assert told in refused(run, tmp_path, "copy")
