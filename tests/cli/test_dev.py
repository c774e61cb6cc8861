"""`taskq dev`: broker, HTTP and worker with one command, that follow the code and end together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from programs import ON_FREE_PORTS, Program, Run, Start

from taskq import Client
from taskq.cli.dev import guess_module

APP = """
from taskq import App
app = App()

@app.task
async def version() -> int:
    return {}
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def dev(start: Start, tmp_path: Path) -> Program:
    (tmp_path / "tasks.py").write_text(APP.format(1))
    return start("main", "dev", *ON_FREE_PORTS)


def test_tasks_run_at_once_and_again_after_a_change_of_the_code(dev: Program, tmp_path: Path) -> None:
    url = dev.wait_for(r"TASKQ_URL=(\S+)")[1]
    with Client(url) as client:
        assert client.result(client.enqueue("version"), 20) == 1
        (tmp_path / "tasks.py").write_text(APP.format(22))
        dev.wait_for("has changed", "stderr")
        while client.result(client.enqueue("version"), 20) != 22:
            pass
    started = children(dev.process.pid)
    dev.signal(signal.SIGINT)
    assert dev.end() == 0
    assert len(started) == 2 and not any(map(alive, started))


@pytest.mark.parametrize("which", [0, 1])
def test_when_one_dies_the_other_is_stopped_and_it_ends_with_an_error(dev: Program, which: int) -> None:
    dev.wait_for("Ctrl-C stops all")
    started = children(dev.process.pid)
    os.kill(started[which], signal.SIGKILL)
    assert dev.end() != 0
    assert not any(map(alive, started))


def test_children_do_not_outlive_it(dev: Program) -> None:
    dev.wait_for("Ctrl-C stops all")
    started = children(dev.process.pid)
    dev.signal(signal.SIGKILL)
    dev.end()
    while any(map(alive, started)):
        pass


def test_a_broker_that_cannot_start_ends_it_with_the_reason(run: Run) -> None:
    done = run("main", "dev", "--listen", "7000")
    assert done.returncode == 78
    assert "taskq-broker: listen (flag --listen)" in done.stderr and "Traceback" not in done.stderr


def test_the_module_is_tasks_or_app_of_the_working_directory(tmp_path: Path) -> None:
    assert guess_module(tmp_path) is None
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    assert guess_module(tmp_path) == "app"
    (tmp_path / "tasks.py").touch()
    assert guess_module(tmp_path) == "tasks"
