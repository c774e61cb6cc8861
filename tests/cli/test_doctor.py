"""`taskq doctor` finds what is wrong, one thing at a time, and says what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import ON_FREE_PORTS, READY, Run, Start

from taskq.cli.doctor import CHECKS, Patient, check_disk, file_system

Examine = Any


@pytest.fixture
def tcp(start: Start) -> str:
    return start("broker", *ON_FREE_PORTS).wait_for(READY)["tcp"]


def examine(run: Run, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    done = run("main", "doctor", "--json", *arguments)
    assert (done.returncode, done.stderr) == (code, "")
    findings: dict[str, dict[str, str]] = json.loads(done.stdout)
    assert list(findings) == list(CHECKS)
    return findings


def test_a_healthy_broker_is_told_so_row_by_row(run: Run, tcp: str) -> None:
    findings = examine(run, "--broker", tcp)
    assert findings["broker"]["found"].startswith("taskq ") and "durability fsync" in findings["broker"]["found"]
    for name in ("broker", "versions", "data folder", "clock", "store"):
        assert findings[name]["status"] == "ok", findings[name]
    assert "fdatasync of 4KiB takes" in findings["sync"]["found"]
    shown = run("main", "--broker", tcp, "doctor")
    assert shown.returncode == 0 and len([line for line in shown.stdout.splitlines() if line[:1] != " "]) == len(CHECKS)


def test_no_broker_and_no_folder_are_worth_a_look_and_no_failure(run: Run) -> None:
    findings = examine(run, "--broker", "127.0.0.1:1", "--data", "nowhere")
    assert findings["broker"]["status"] == findings["data folder"]["status"] == findings["store"]["status"] == "look"
    assert "--broker" in findings["broker"]["advice"] and "--data" in findings["data folder"]["advice"]


def test_a_file_that_others_can_read_is_wrong(run: Run, tcp: str, tmp_path: Path) -> None:
    (tmp_path / "taskq-data" / "secret.key").chmod(0o644)
    finding = examine(run, "--broker", tcp, code=1)["data folder"]
    assert finding["status"] == "wrong" and "secret.key has mode 0644" in finding["found"] and "chmod -R go=" in finding["advice"]


def test_a_symbolic_link_in_the_folder_is_wrong(run: Run, tcp: str, tmp_path: Path) -> None:
    (tmp_path / "taskq-data" / "old.log").symlink_to("/etc/hostname")
    assert "old.log is a symbolic link" in examine(run, "--broker", tcp, code=1)["data folder"]["found"]


def test_another_folder_than_the_brokers_is_noticed(run: Run, tcp: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    finding = examine(run, "--broker", tcp, "--data", "other")["broker"]
    assert finding["status"] == "look" and str(tmp_path / "taskq-data") in finding["advice"]


def test_a_damaged_store_is_wrong(start: Start, run: Run, tmp_path: Path) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    broker.wait_for(READY)
    broker.stop()
    store = tmp_path / "taskq-data" / "store.sqlite"
    data = bytearray(store.read_bytes())
    data[4_096:4_200] = b"\xff" * 104
    store.write_bytes(data)
    start("broker", *ON_FREE_PORTS, "--data", "elsewhere").wait_for(READY)  # so that there is one that answers
    finding = examine(run, code=1)["store"]
    assert finding["status"] == "wrong" and "store.sqlite" in finding["found"] and "backup" in finding["advice"]


def test_a_clock_that_was_set_back_is_noticed(run: Run, tcp: str, tmp_path: Path) -> None:
    subprocess.run(["touch", "--date", "+2 hours", tmp_path / "taskq-data" / "secret.key"], check=True)
    finding = examine(run, "--broker", tcp)["clock"]
    assert finding["status"] == "look" and "later than that" in finding["found"]


# ---- a file system of its own, which only root can mount -------------------------------------------------------------------------------


@pytest.fixture
def memory_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_folder_in_memory_is_worth_a_look(memory_disk: Path) -> None:
    assert file_system(memory_disk / "data") == "tmpfs"
    finding = check_disk(Patient(memory_disk / "data", None, ""))
    assert finding.status == "look" and "does not survive a restart" in finding.advice


def test_a_disk_that_is_nearly_full_is_wrong(memory_disk: Path) -> None:
    (memory_disk / "ballast").write_bytes(bytes(15 << 20))
    finding = check_disk(Patient(memory_disk / "data", None, ""))
    assert finding.status == "wrong" and "free some space" in finding.advice
