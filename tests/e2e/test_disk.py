"""A disk that is full, for real: a small tmpfs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import ON_FREE_PORTS, READY, Start

from taskq import Client, TaskqError
from taskq.errors import DiskLow

DISK_KIB = 2_048


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MiB; root only, as everywhere."""
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("only root can mount a disk; run the tests as root to see this one")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)], check=True, timeout=20)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def test_a_start_on_a_full_disk_is_a_message_and_no_traceback(start: Start, disk: Path) -> None:
    (disk / "other").write_bytes(bytes((DISK_KIB - 16) * 1024))
    broker = start("broker", *ON_FREE_PORTS, "--data", str(disk / "data"))
    assert broker.end() == 1
    assert "Traceback" not in broker.errors
    assert "taskq-broker: " in broker.errors


def test_a_disk_that_fills_up_ends_the_broker_and_loses_nothing_that_was_acknowledged(start: Start, disk: Path) -> None:
    broker = start("broker", *ON_FREE_PORTS, "--data", str(disk / "data"), "--disk-free-bytes-min", "0", "--ballast-bytes", "0")
    acknowledged = []
    with Client(broker.wait_for(READY)["tcp"], deadline=2) as client:
        try:
            while True:
                acknowledged.append(client.enqueue("work", os.urandom(40_000)).id)
        except TaskqError:
            pass
    assert broker.end() == 70
    assert acknowledged
    subprocess.run(["mount", "-o", f"remount,size={DISK_KIB * 8}k", str(disk)], check=True, timeout=20)
    broker = start("broker", *ON_FREE_PORTS, "--data", str(disk / "data"), "--disk-free-bytes-min", "0")
    with Client(broker.wait_for(READY)["tcp"]) as client:
        assert {client.get(task_id).state for task_id in acknowledged} == {"pending"}
    assert broker.stop() == 0


def test_a_start_on_a_disk_without_a_byte_lives_on_the_ballast(start: Start, disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={DISK_KIB * 8}k", str(disk)], check=True, timeout=20)
    data = ("--data", str(disk / "data"), "--ballast-bytes", "2MiB", "--disk-free-bytes-min", "2MiB")
    broker = start("broker", *ON_FREE_PORTS, *data)
    with Client(broker.wait_for(READY)["tcp"]) as client:
        kept = client.enqueue("work", {"text": "x" * 5_000})
        while not (disk / "data" / "ballast").exists():
            assert broker.process.poll() is None
        broker.signal(signal.SIGKILL)
    broker.end()
    with (disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError, match="No space"):
        while True:
            rest.write(bytes(4_096))
    broker = start("broker", *ON_FREE_PORTS, *data)
    with Client(broker.wait_for(READY)["tcp"], deadline=0.5) as client:
        assert client.get(kept).state == "pending"
        with pytest.raises(DiskLow):
            client.enqueue("work", {})
        assert client.cancel(kept) == "cancelled"
        (disk / "rest").unlink()
        assert client.enqueue("work", {}, deadline=10).created
    assert broker.stop() == 0
    assert "the ballast of 2MiB is given up for the start" in broker.errors
