"""The load bench, run small: it prints every figure, refuses what is not right, and the ceiling that it measures against is a durable queue."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "load"))

import ceiling
from children import make_payload
from figures import FIGURES, check_each_once

from taskq import serial
from taskq.storage.sqlite import SqliteStore

WAIT_S = 110.0
LOAD = Path(ceiling.__file__).parent
NAMES = {ceiling.ENQUEUED: "ENQUEUED", ceiling.DELIVER: "DELIVER", ceiling.ACKED: "ACKED"}


def bench(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOAD / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_small_run_prints_every_figure_and_all_of_them_are_sane(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    ended = bench("run.py", "--tasks", 1_000, "--rounds", 1, "--pending", 5_000, "--folder", tmp_path, "--json", file)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(file.read_text())
    assert found["figures"].keys() == FIGURES.keys()
    for name, values in found["figures"].items():
        assert f"  {FIGURES[name].title} " in ended.stdout
        for unit, rounds in values.items():
            assert unit in ended.stdout
            assert all(least_of(unit) <= value <= most_of(unit) for value in rounds), (name, unit, rounds)
        assert values.get("p50 ms", [0]) <= values.get("p99 ms", [0])
    assert all(us > 0 for us in found["limits_us"].values())
    assert 0 < found["ratios"]["tasks/s"][0] < 2
    for fact in ("commit=", "durability=fsync", "shards=4", "payload_bytes=150", "cpus=", "python=", "load_average=", "bare data flow, by tasks/s "):
        assert fact in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def least_of(unit: str) -> float:
    return {"tasks/s": 10, "bytes/task": 1, "ms": 10, "p50 ms": 0.01, "p99 ms": 0.01}.get(unit, 0)


def most_of(unit: str) -> float:
    return {"tasks/s": 5_000_000, "bytes/task": 20_000, "ms": 60_000, "p50 ms": 10_000, "p99 ms": 20_000}.get(unit, 100_000)


def test_a_figure_that_does_not_exist_is_refused_with_those_that_do() -> None:
    ended = bench("run.py", "--only", "drain,drane")
    assert ended.returncode == 2
    assert "no such figure: drane; there are one_by_one, " in ended.stderr


def test_the_ceiling_writes_every_payload_to_a_real_file_and_syncs_it(tmp_path: Path) -> None:
    """It compares the size of its journal with what was counted, and with the payloads, before it removes it."""
    ended = bench("ceiling.py", "--tasks", 3_000, "--folder", tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = re.match(r"([\d,]+) tasks/s, (\d+) fdatasync calls", ended.stdout)
    assert found is not None, ended.stdout
    assert int(found[1].replace(",", "")) > 100
    assert int(found[2]) >= 2


async def test_the_ceiling_answers_and_delivers_only_after_fdatasync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    written = 0

    def fdatasync(fd: int) -> None:
        nonlocal written
        real_fdatasync(fd)
        before, written = written, os.fstat(fd).st_size
        events.append("synced" if written > before else "synced nothing")

    real_fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    acked = asyncio.get_running_loop().create_future()

    def receive(wire: ceiling.Wire, kind: int, head: list[Any], payloads: list[memoryview]) -> None:
        events.append(NAMES[kind])
        if kind == ceiling.DELIVER:
            wire.send(ceiling.ACK, head[0], payloads=[ceiling.run(payload) for payload in payloads])
        elif kind == ceiling.ACKED:
            acked.set_result(None)

    broker = ceiling.Broker(ceiling.Journal(tmp_path / "ceiling.log"))
    server = await asyncio.get_running_loop().create_server(lambda: ceiling.Wire(broker.receive), "127.0.0.1", 0)
    wire = await ceiling.connect(server.sockets[0].getsockname()[1], receive)
    payload = serial.encode_arguments(make_payload(150), "noop")
    wire.send(ceiling.WORK)
    wire.send(ceiling.ENQUEUE, 0, os.urandom(16), payloads=[payload])
    await asyncio.wait_for(acked, WAIT_S)
    assert events == ["synced", "ENQUEUED", "DELIVER", "synced", "ACKED"]
    assert broker.tasks == {}
    assert payload in (tmp_path / "ceiling.log").read_bytes()
    wire.transport.close()
    await wire.closed
    server.close()


async def test_a_run_counts_only_if_each_task_that_ran_is_kept_as_completed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    await store.open()
    await store.close()
    check_each_once(store.path, made=0, ran=0, kept_max=10)
    check_each_once(store.path, made=3, ran=3, kept_max=0)
    with pytest.raises(RuntimeError, match="of 1 tasks the workers ran 1, the broker has 0 completed"):
        check_each_once(store.path, made=1, ran=1, kept_max=10)
    with pytest.raises(RuntimeError, match="of 3 tasks the workers ran 4, "):
        check_each_once(store.path, made=3, ran=4, kept_max=0)


def test_a_run_counts_only_if_no_program_complained(tmp_path: Path) -> None:
    (tmp_path / "complains.py").write_text("print('12:00 WARNING taskq: a lease was lost', flush=True)\nimport time; time.sleep(60)")
    (tmp_path / "watches.py").write_text(
        f"import sys; sys.path.insert(0, {str(LOAD)!r})\n"
        "from children import Program\n"
        f"with Program.python({str(tmp_path / 'complains.py')!r}) as program:\n    program.wait_for('lease')\n"
    )
    ended = subprocess.run([sys.executable, str(tmp_path / "watches.py")], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ended.returncode != 0
    assert "WARNING taskq: a lease was lost" in ended.stderr


def test_the_payload_has_the_size_that_was_asked_for() -> None:
    assert len(serial.encode_arguments(make_payload(150), "noop")) == 150
