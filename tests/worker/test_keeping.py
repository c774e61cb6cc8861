"""The keeper keeps: whatever ends a runner, closes a stream, sends a signal or refuses a process, the work goes on or the worker ends in order."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskq import serial
from taskq.core import messages as m
from taskq.foreign import CLASS_BYTES_MAX
from taskq.worker.family import children_of, stat_of
from taskq.worker.settings import EXIT_DIED

WAIT_S = 15.0
APP = """
import asyncio, os, signal, subprocess, sys, threading, time
from taskq import App
app = App()
kept = []

@app.task()
async def pid(): return [os.getpid(), os.getppid()]

@app.task()
async def wait(): await asyncio.sleep(60)

@app.task()
async def leave(code: int): os._exit(code)

@app.task()
def leave_thread(): os._exit(0)

@app.task()
async def exit_in_callback():
    asyncio.get_running_loop().call_soon(sys.exit)
    await asyncio.sleep(60)

@app.task()
async def interrupt_in_callback():
    def interrupt(): raise KeyboardInterrupt
    asyncio.get_running_loop().call_later(0.01, interrupt)
    await asyncio.sleep(60)

class Odd(type):
    def __getattribute__(cls, name): raise ValueError("no " + name)

@app.task()
async def odd_exit_in_callback():
    def leave(): raise Odd("N" * 100_000, (SystemExit,), {"__module__": "builtins"})
    asyncio.get_running_loop().call_soon(leave)
    await asyncio.sleep(60)

@app.task()
async def exit_in_background():
    async def background(): sys.exit()
    kept.append(asyncio.create_task(background()))
    await asyncio.sleep(60)

@app.task()
async def exit_in_signal():
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, sys.exit)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.sleep(60)

@app.task()
async def break_the_worker():
    from taskq.worker.workbench import Workbench
    Workbench._wake = lambda bench: 1 / 0
    await asyncio.sleep(60)

@app.task()
async def raise_exit(): sys.exit(0)

@app.task()
def raise_exit_in_thread(): raise KeyboardInterrupt

@app.task()
def orphans(count: int) -> list:
    script = "for i in $(seq %d); do sleep 0.05 & echo $!; done" % count
    return [int(pid) for pid in subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout.split()]

@app.task()
def daemon() -> int:
    script = "setsid sleep 600 >/dev/null 2>&1 & echo $!"
    return int(subprocess.run(["sh", "-c", script], capture_output=True, text=True).stdout)

@app.task()
def child() -> int: return subprocess.Popen(["sleep", "600"]).pid

@app.task()
def shout():
    print("x" * 100_000, flush=True)

@app.task()
def streams() -> list: return [os.readlink("/proc/self/fd/%d" % fd) for fd in range(3)]
"""


@pytest.fixture
def app_source() -> tuple[str, str]:
    return "keeping_app", APP


async def true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def answer(broker: Any, task: str, *arguments: Any) -> Any:
    broker.deliver((task, list(arguments)))
    return serial.decode((await broker.expect(m.Ack)).payloads[0], m.MSGPACK)


async def new_runner(broker: Any) -> int:
    """Wait for a runner that takes work; its pid."""
    await broker.expect(m.Credit)
    broker.delivered = 0
    found: int = (await answer(broker, "pid"))[0]
    return found


DEATHS = [
    ("leave", [0], "exit code 0"),
    ("leave", [3], "exit code 3"),
    ("leave_thread", [], "exit code 0"),
    ("exit_in_callback", [], "exit code 1: SystemExit was raised in a callback or a background task of the event loop"),
    ("interrupt_in_callback", [], "exit code 1: KeyboardInterrupt was raised in a callback or a background task of the event loop"),
    ("odd_exit_in_callback", [], f"exit code 1: {'N' * CLASS_BYTES_MAX} was raised in a callback or a background task of the event loop"),
    ("exit_in_background", [], "exit code 1: SystemExit was raised in a callback or a background task of the event loop"),
    ("exit_in_signal", [], "exit code 1: SystemExit was raised in a callback or a background task of the event loop"),
]


async def test_every_end_that_is_not_in_order_is_a_death_whatever_its_code(broker: Any, worker: Any) -> None:
    (worker.directory / "sitecustomize.py").write_text(
        "import sys\nif sys.argv[0] == '-c':\n    from taskq.worker import keeper\n    keeper.RESTART_MAX_S = 0.1\n"
    )
    await worker.start(broker.url)
    runner = await new_runner(broker)
    for task, arguments, cause in DEATHS:
        session = broker.worker.session
        broker.deliver((task, arguments))
        died = await broker.expect(m.Died, "keeper")
        assert (died.session, died.cause) == (session, cause)
        runner, before = await new_runner(broker), runner
        assert runner != before
    code, errors = await worker.stop()
    assert code == 0, errors
    assert errors.count("the runner ends") == 5


async def test_what_a_task_breaks_in_the_worker_is_a_death_and_nothing_is_given_back_uncharged(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    await new_runner(broker)
    broker.deliver(("break_the_worker", []), ("pid", []))
    died = await broker.expect(m.Died, "keeper")
    assert died.cause == "exit code 70: ZeroDivisionError was raised in the worker itself"
    assert not [frame for role, frame in broker.seen if role == "worker" and isinstance(frame.message, (m.Release, m.Bye))]


async def test_an_exit_that_a_function_raises_is_its_own_failure(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner = await new_runner(broker)
    broker.deliver(("raise_exit", []))
    assert (await broker.expect(m.Fail)).error_types == ["SystemExit"]
    broker.deliver(("raise_exit_in_thread", []))
    assert (await broker.expect(m.Fail)).error_types == ["KeyboardInterrupt"]
    assert (await answer(broker, "pid"))[0] == runner


async def test_a_runner_that_dies_while_the_worker_stops_is_charged_and_said(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner = await new_runner(broker)
    broker.deliver(("wait", []))
    await broker.expect(m.Heartbeat)
    worker.process.send_signal(signal.SIGTERM)
    await broker.expect(m.Consume)
    os.kill(runner, signal.SIGKILL)
    assert (await broker.expect(m.Died, "keeper")).cause == "SIGKILL"
    assert (await worker.end())[0] == EXIT_DIED


@pytest.mark.parametrize(("number", "waits"), [(signal.SIGHUP, True), (signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGQUIT, False)])
async def test_a_signal_to_every_process_of_the_worker_stops_it_in_order(broker: Any, worker: Any, number: signal.Signals, waits: bool) -> None:
    """As a terminal sends it that is closed, or a service manager to a control group.  It counts once, so it drains."""
    await worker.start(broker.url, drain_s=30.0)
    runner = await new_runner(broker)
    (token,) = broker.deliver(("wait", []))
    await broker.expect(m.Heartbeat)
    for pid in (runner, worker.process.pid):
        os.kill(pid, number)
    await broker.expect(m.Consume)
    if waits:
        for _ in range(3):
            assert token in (await broker.expect(m.Heartbeat)).tokens
        worker.process.send_signal(signal.SIGTERM if number is not signal.SIGHUP else signal.SIGQUIT)
    code, errors = await worker.end()
    assert code == 0, errors
    assert (await broker.expect(m.Release)).tokens == token


async def test_the_keeper_reaps_orphans_and_ends_what_tasks_have_left(broker: Any, worker: Any) -> None:
    await worker.start(broker.url)
    runner = await new_runner(broker)
    dead = await answer(broker, "orphans", 8)
    assert len(dead) == 8
    await true(lambda: children_of(worker.process.pid) == {runner})
    left = [await answer(broker, "daemon"), await answer(broker, "child")]
    assert all(stat_of(pid) for pid in left)
    os.kill(runner, signal.SIGKILL)
    await broker.expect(m.Died, "keeper")
    await new_runner(broker)
    assert not any(stat_of(pid) for pid in left)
    left = [await answer(broker, "daemon"), await answer(broker, "child")]
    code, errors = await worker.stop()
    assert code == 0, errors
    assert not any(stat_of(pid) for pid in left)


async def test_what_was_there_before_the_keeper_is_left_alone(broker: Any, worker: Any) -> None:
    """Like a helper that the script of a container has started before it became the worker."""
    import_first = (
        "import subprocess, sys\nif sys.argv[0] == '-c': print(subprocess.Popen(['sleep', '600']).pid, file=open('helper', 'w'), flush=True)\n"
    )
    (worker.directory / "sitecustomize.py").write_text(import_first)
    await worker.start(broker.url)
    runner = await new_runner(broker)
    helper = int((worker.directory / "helper").read_text())
    os.kill(runner, signal.SIGKILL)
    await new_runner(broker)
    assert stat_of(helper)[0] == "S"
    os.kill(helper, signal.SIGKILL)
    await true(lambda: not stat_of(helper))
    assert (await worker.stop())[0] == 0


NO_PROCESS = """
import sys
if sys.argv[0] == '-c':
    import errno, os, threading
    from pathlib import Path
    from taskq.worker import family, keeper
    keeper.RESTART_MAX_S = 0.1
    popen = family.subprocess.Popen
    def refuse(*args, **kwargs):
        if not Path('room').exists(): raise BlockingIOError(errno.EAGAIN, 'Resource temporarily unavailable')
        return popen(*args, **kwargs)
    family.subprocess.Popen = refuse
    start = threading.Thread.start
    def no_thread(self):
        if not Path('room').exists(): raise RuntimeError("can't start new thread")
        start(self)
    threading.Thread.start = no_thread
"""


async def test_a_runner_that_cannot_be_started_is_tried_again_and_so_is_a_connection(broker: Any, worker: Any) -> None:
    (worker.directory / "sitecustomize.py").write_text(NO_PROCESS)
    await worker.start(broker.url.replace("127.0.0.1", "localhost"))
    async with asyncio.timeout(WAIT_S):
        said = b""
        while b"the runner is started again" not in said:
            said = await worker.process.stderr.readline()
    (worker.directory / "room").touch()
    await new_runner(broker)
    broker.rewind()
    await broker.expect(m.Keepalive, "keeper")
    code, errors = await worker.stop()
    assert code == 0, errors


COMMAND = "from taskq.cli import worker; worker(prog_name='taskq-worker')"


async def started(broker: Any, worker: Any, redirections: str, **popen: Any) -> asyncio.subprocess.Process:
    """A `taskq-worker` whose streams the shell has set up so."""
    script = f'exec "$@" {redirections}'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", COMMAND, "--connect", broker.url, "--app", worker.app]
    path = os.pathsep.join([str(worker.directory), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    worker.process = await asyncio.create_subprocess_exec(*command, cwd=worker.directory, env={**os.environ, "PYTHONPATH": path}, **popen)
    return worker.process


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", ">&- 2>errors", "<&-"])
async def test_a_worker_without_standard_streams_works_and_gives_their_numbers_to_nothing_else(broker: Any, worker: Any, redirections: str) -> None:
    await started(broker, worker, redirections)
    await new_runner(broker)
    for target in await answer(broker, "streams"):
        assert "socket" not in target and "memfd" not in target and "anon_inode" not in target
    assert (await worker.stop())[0] == 0


async def test_nobody_reads_what_a_worker_says(broker: Any, worker: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    await started(broker, worker, "", stdout=writer, stderr=writer)
    os.close(writer)
    await new_runner(broker)
    broker.deliver(("shout", []))
    assert (await broker.expect(m.Fail)).error_types == ["BrokenPipeError"]
    assert await answer(broker, "pid")
    worker.process.send_signal(signal.SIGHUP)
    assert (await worker.end())[0] == 0


async def test_a_worker_under_nohup_goes_on_when_its_terminal_is_closed(broker: Any, worker: Any) -> None:
    await started(broker, worker, "2>&1", stdout=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    runner = await new_runner(broker)
    worker.process.send_signal(signal.SIGHUP)
    assert (await answer(broker, "pid"))[0] == runner
    assert Path(f"/proc/{worker.process.pid}").exists()
    assert (await worker.stop())[0] == 0
