"""The keeper with a real runner process: renewal, death, hard timeouts, signals, import errors, reload.  The broker is the scripted one."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from taskq import serial
from taskq.core import messages as m
from taskq.worker.keeper import runs
from taskq.worker.settings import EXIT_BUG, EXIT_FATAL

APP = """
import asyncio, os, signal, time
from taskq import App
app = App()

@app.task()
async def pid(): return [os.getpid(), os.getppid()]

@app.task()
async def hold_gil(seconds: float):
    end = time.monotonic() + seconds
    while time.monotonic() < end: pass
    return "held"

@app.task()
async def wait(): await asyncio.sleep(60)

@app.task()
async def die(): os.kill(os.getpid(), signal.SIGKILL)

@app.task()
async def leave(): os._exit(3)
"""


@pytest.fixture
def app_source() -> tuple[str, str]:
    return "keeper_app", APP


async def pids(broker: Any) -> list[int]:
    """Of the runner and its keeper."""
    await broker.expect(m.Credit)
    broker.deliver(("pid", []))
    found: list[int] = serial.decode((await broker.expect(m.Ack)).payloads[0], m.MSGPACK)
    return found


async def test_a_worker_works_renews_its_leases_and_stops_when_told(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner, keeper = await pids(broker)
    assert keeper == worker.process.pid != runner
    renewed = await broker.expect(m.Keepalive, "keeper")
    assert (renewed.session, renewed.received) == (broker.worker.session, 1)
    code, errors = await worker.stop()
    assert code == 0, errors
    broker.rewind()
    await broker.expect(m.Bye)


async def test_a_task_that_holds_the_gil_is_renewed(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    await pids(broker)
    broker.deliver(("hold_gil", [1.5]))
    while (await broker.expect(m.Keepalive, "keeper")).received != 2:
        pass
    for _ in range(3):
        assert (await broker.expect(m.Keepalive, "keeper")).received == 2
    assert not any(type(frame.message) is m.Ack for _, frame in broker.seen[broker._read :])
    await broker.expect(m.Ack)


async def test_a_stopped_runner_is_not_renewed(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner, _ = await pids(broker)
    await broker.expect(m.Keepalive, "keeper")
    assert runs(runner)
    os.kill(runner, signal.SIGSTOP)
    try:
        while runs(runner):
            await asyncio.sleep(0)
        seen = len(broker.seen)
        await asyncio.sleep(0.7)
        late = [frame for role, frame in broker.seen[seen:] if type(frame.message) is m.Keepalive]
        assert len(late) <= 1
    finally:
        os.kill(runner, signal.SIGCONT)
    await broker.expect(m.Keepalive, "keeper")


@pytest.mark.parametrize(("task", "cause"), [("die", "SIGKILL"), ("leave", "exit code 3")])
async def test_the_death_of_a_runner_is_told_with_its_cause_and_it_is_started_again(broker: Any, worker: Any, task: str, cause: str) -> None:
    await worker.start(broker.url)
    runner, _ = await pids(broker)
    await broker.expect(m.Keepalive, "keeper")
    session = broker.worker.session
    broker.deliver((task, []))
    died = await broker.expect(m.Died, "keeper")
    assert (died.session, died.cause) == (session, cause)
    broker.delivered = 0
    again, _ = await pids(broker)
    assert again != runner
    assert (await worker.stop())[0] == 0


@pytest.mark.parametrize("broken", ["Keeper._keepalive", "Page.overdue"])
async def test_a_bug_in_the_keeper_ends_the_worker_loudly_and_gives_its_tasks_back(broker: Any, worker: Any, broken: str) -> None:
    (worker.directory / "sitecustomize.py").write_text(
        "import sys\nif sys.argv[0] == '-c':\n    from taskq.worker.keeper import Keeper\n    from taskq.worker.page import Page\n"
        "    def fail(self, _):\n        if not isinstance(self, Page) or self.received: raise ZeroDivisionError\n        return False\n"
        f"    {broken} = fail\n"
    )
    await worker.start(broker.url)
    await broker.expect(m.Hello, "keeper")
    await broker.expect(m.Credit)
    broker.deliver(("wait", []))
    code, errors = await worker.end()
    assert code == EXIT_BUG
    assert "bug in the keeper, the worker ends" in errors and "ZeroDivisionError" in errors
    assert (await broker.expect(m.Died, "keeper")).cause == ""


PULSE = "from taskq.worker.workbench import Workbench\ndef fail(bench): 1 // (not len(bench))\nWorkbench.relieve = fail\n"
POOL = "from taskq.worker.process import Child\nasync def fail(child): raise ZeroDivisionError\nChild.cause = fail\n"
ENDS_ITS_PROCESS = "@app.task(pool='process')\ndef end(): os._exit(3)\n"


@pytest.mark.parametrize(("bug", "task"), [(PULSE, "wait"), (POOL, "end")], ids=["pulse", "pool"])
async def test_a_bug_in_the_pulse_or_in_a_pool_ends_the_runner(broker: Any, worker: Any, bug: str, task: str) -> None:
    (worker.directory / "keeper_app.py").write_text(f"{APP}\n{ENDS_ITS_PROCESS}\n{bug}")
    await worker.start(broker.url)
    await broker.expect(m.Keepalive, "keeper")
    broker.deliver((task, []))
    assert (await broker.expect(m.Died, "keeper")).cause == f"exit code {EXIT_BUG}: ZeroDivisionError was raised in the worker itself"
    _, errors = await worker.stop()
    assert "bug in the worker, the runner ends" in errors and "ZeroDivisionError" in errors


async def test_a_task_for_which_no_process_can_be_made_is_given_back(broker: Any, worker: Any) -> None:
    full = "class socket:\n    def socketpair(): raise OSError(24, 'Too many open files')\n"
    patch = "import taskq.worker.process as process\nprocess.socket = socket\n"
    (worker.directory / "keeper_app.py").write_text(f"{APP}\n{ENDS_ITS_PROCESS}\n{full}{patch}")
    await worker.start(broker.url)
    await broker.expect(m.Keepalive, "keeper")
    broker.deliver(("end", []))
    assert (await broker.expect(m.Release)).delays_ms[0] > 0
    code, errors = await worker.stop()
    assert code == 0 and errors.count("no further process can be started: [Errno 24] Too many open files; 0 of") == 1


async def test_a_task_that_holds_the_loop_beyond_its_timeout_and_the_grace_is_ended(broker: Any, worker: Any) -> None:
    app = APP + "\nimport taskq.worker.workbench\ntaskq.worker.workbench.GRACE_S = 0.3\n"
    (worker.directory / "keeper_app.py").write_text(app)
    await worker.start(broker.url)
    await pids(broker)
    await broker.expect(m.Keepalive, "keeper")
    broker.deliver(("hold_gil", [60]), timeout_ms=100)
    assert (await broker.expect(m.Died, "keeper")).cause == "SIGKILL: a task held the worker beyond its timeout"


async def test_a_runner_that_cannot_stop_is_killed_and_its_tasks_are_not_charged(broker: Any, worker: Any) -> None:
    await worker.start(broker.url, drain_s=0.1)
    await pids(broker)
    await broker.expect(m.Keepalive, "keeper")
    broker.deliver(("hold_gil", [60]))
    while (await broker.expect(m.Keepalive, "keeper")).received != 2:
        pass
    code, errors = await worker.stop()
    assert code == 0, errors
    assert (await broker.expect(m.Died, "keeper")).cause == ""


async def test_the_runner_dies_with_its_keeper(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner, _ = await pids(broker)
    worker.process.kill()
    async with asyncio.timeout(10):
        while runs(runner):
            await asyncio.sleep(0.01)


async def test_a_second_signal_hands_everything_back_at_once(broker: Any, worker: Any) -> None:
    await worker.start(broker.url, drain_s=60.0)
    await pids(broker)
    (token,) = broker.deliver(("wait", []))
    await broker.expect(m.Heartbeat)
    worker.process.send_signal(signal.SIGTERM)
    await broker.expect(m.Consume)
    code, errors = await worker.stop()
    assert code == 0, errors
    assert (await broker.expect(m.Release)).tokens == token


async def test_a_signal_to_the_runner_itself_drains_it_and_ends_the_worker(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner, _ = await pids(broker)
    os.kill(runner, signal.SIGTERM)
    await broker.expect(m.Bye)
    assert (await worker.end())[0] == 0


async def test_an_app_that_cannot_be_imported_ends_the_worker_with_the_error(broker: Any, worker: Any) -> None:
    (worker.directory / "keeper_app.py").write_text("import no_such_module_at_all\n")
    await worker.start(broker.url)
    code, errors = await worker.end()
    assert code == EXIT_FATAL
    assert "keeper_app" in errors and "No module named 'no_such_module_at_all'" in errors


async def test_a_module_without_an_app_ends_the_worker(broker: Any, worker: Any) -> None:
    (worker.directory / "keeper_app.py").write_text("x = 1\n")
    await worker.start(broker.url)
    code, errors = await worker.end()
    assert code == EXIT_FATAL and "has no App" in errors


async def test_a_worker_without_an_app_connects_and_takes_nothing(broker: Any, worker: Any) -> None:
    await worker.start(broker.url, app=None)
    assert (await broker.expect(m.Consume)).task_types == []
    assert (await worker.stop())[0] == 0


async def test_code_that_changes_restarts_the_runner(broker: Any, worker: Any) -> None:
    await worker.start(broker.url, reload=True)
    runner, _ = await pids(broker)
    await broker.expect(m.Keepalive, "keeper")
    (worker.directory / "keeper_app.py").write_text("1 / 0\n")
    await broker.expect(m.Bye)
    (worker.directory / "keeper_app.py").write_text(APP)
    broker.delivered = 0
    again, _ = await pids(broker)
    assert again != runner
    assert (await worker.stop())[0] == 0
