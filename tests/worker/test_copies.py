"""What tasks fork and start, in every pool: it has the signals of any program and none of the worker's files, never speaks for the worker, and ends
with its task or with the runner."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from taskq import AsyncClient, TaskFailed, testing
from taskq.worker.family import stat_of

RESULT_S = 30.0
POOLS = ("async", "thread", "process")
APP = '''
import asyncio, multiprocessing, os, resource, signal, socket, subprocess, sys, threading, time
from pathlib import Path
from taskq import App, current_task
app = App()
kept = []

def common(name, function):
    """The same function as a task of each pool."""
    async def on_loop(*args, **kwargs): return function(*args, **kwargs)
    on_loop.__signature__ = __import__("inspect").signature(function)
    app.task(name=name + "_async")(on_loop)
    for pool in ("thread", "process"):
        def run(*args, **kwargs): return function(*args, **kwargs)
        run.__signature__ = on_loop.__signature__
        app.task(name=name + "_" + pool, pool=pool)(run)

def fork(how: str):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how == "raise": raise ValueError("in the copy")
    if how == "exit": sys.exit(7)
    if how == "text": sys.exit("said by the copy")
    if how == "interrupt": raise KeyboardInterrupt
    if how == "_exit": os._exit(8)
    if how == "fork":
        if os.fork(): os.wait()
    return "of the copy"
common("fork", fork)

def fork_and_leave(path: str):
    """The copy outlives the task."""
    if os.fork() == 0:
        while not Path(path).exists(): time.sleep(0.01)
        return "of the copy"
    return "mine"
common("fork_and_leave", fork_and_leave)

@app.task()
async def fork_and_wait():
    pid = os.fork()
    if pid == 0: await asyncio.sleep(0.01)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else "of the copy"

@app.task()
async def fork_after_waiting(how: str):
    await asyncio.sleep(0.01)
    return fork(how)

@app.task()
async def fork_in_callback():
    ended = asyncio.get_running_loop().create_future()
    def callback():
        pid = os.fork()
        if pid: ended.set_result(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    asyncio.get_running_loop().call_soon(callback)
    return await ended

@app.task()
async def fork_in_background():
    async def background():
        return fork("return")
    return await asyncio.create_task(background())

def identity(number: int): return [number, current_task().id]
common("identity", identity)

@app.task()
async def slow_identity(number: int):
    for _ in range(20): await asyncio.sleep(0.01)
    return [number, current_task().id]

def target(queue): queue.put(os.getpid())
def double(number): return 2 * number
def forever(): time.sleep(600)

def pool_of_processes(method: str):
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        return pool.map(double, [1, 2, 3])
common("pool", pool_of_processes)

def terminate(method: str):
    process = multiprocessing.get_context(method).Process(target=forever)
    process.start()
    process.terminate()
    process.join(10)
    return process.exitcode
common("terminate", terminate)

def signalled(number: int):
    """How a fork ends that is sent this signal as soon as it is there, and how a program does."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    os.kill(pid, number)
    program = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    program.stdout.readline()
    program.send_signal(number)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), program.wait(10)]
common("signalled", signalled)

LOOK = """import os, sys
for fd in sorted(map(int, os.listdir('/proc/self/fd'))):
    try: print(os.readlink('/proc/self/fd/%d' % fd))
    except OSError: pass
"""

def files():
    """What the worker's process has, what a fork of it has, and what programs have that inherit all they can."""
    def links():
        return sorted(os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link))
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, "\\n".join(links()).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as forked: of_fork = forked.read().splitlines()
    os.wait()
    of_program = subprocess.run([sys.executable, "-c", LOOK], close_fds=False, capture_output=True, text=True).stdout.splitlines()
    out = Path(f"{current_task().id}.spawned")
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(out), os.O_CREAT | os.O_WRONLY, 0o600)]
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", LOOK], os.environ, file_actions=actions)
    os.waitpid(pid, 0)
    return [links(), of_fork, of_program, out.read_text().splitlines()]
common("files", files)

@app.task(pool="process", timeout=1.0, max_attempts=1)
def sleeps(kind: str, path: str):
    Path(path + ".new").write_text("\\n".join(map(str, start(kind))))
    os.rename(path + ".new", path)
    subprocess.run(["sleep", "14"])

@app.task(pool="process", max_attempts=1)
def sleeps_long(kind: str, path: str):
    Path(path + ".new").write_text("\\n".join(map(str, start(kind))))
    os.rename(path + ".new", path)
    subprocess.run(["sleep", "14"])

@app.task(pool="process", max_attempts=1)
def dies(kind: str, path: str):
    Path(path).write_text("\\n".join(map(str, start(kind))))
    os._exit(5)

def start(kind):
    """The pids of something that goes on for long."""
    if kind == "shell": return [subprocess.Popen(["sh", "-c", "sleep 14; sleep 14"]).pid]
    if kind == "session": return [subprocess.Popen(["sleep", "14"], start_new_session=True).pid]
    if kind == "stubborn": return [subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 14; sleep 14"]).pid]
    process = multiprocessing.get_context(kind).Process(target=forever)
    process.start()
    return [process.pid]

@app.task()
def spoil(directory: str):
    os.makedirs(directory)
    os.chdir(directory)
    os.rmdir(directory)
    os.environ["PYTHONPATH"] = "/nowhere"
    os.environ["SPOILT"] = "yes"
    os.environ["LC_ALL"] = "C"
    os.umask(0o777)
    sys.executable = "/nowhere"
    socket.setdefaulttimeout(0.01)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))

@app.task()
async def spoil_loop():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

@app.task(pool="process")
def template():
    umask = os.umask(0)
    os.umask(umask)
    ignored = [number for number in (signal.SIGUSR1, signal.SIGUSR2) if signal.getsignal(number) is signal.SIG_IGN]
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    spoilt = [os.environ.get(name) for name in ("SPOILT", "LC_ALL", "PYTHONPATH")]
    return [os.getcwd(), spoilt, umask, blocked, ignored, resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.getpid()]

@app.task(pool="process", max_attempts=1)
def end_process(): os._exit(0)

@app.task(pool="process", max_attempts=1)
def forge():
    """Answer for another task on the pipe."""
    import msgpack
    from taskq.worker.child import RESULT, pack
    for link in Path("/proc/self/fd").iterdir():
        if os.path.lexists(link) and os.readlink(link).startswith("socket:"):
            with socket.socket(fileno=os.dup(int(link.name))) as pipe:
                pipe.sendall(pack([RESULT, bytes(16), bytes(8), msgpack.packb("forged")]))
    time.sleep(60)
'''


@pytest.fixture
def app_source() -> tuple[str, str]:
    return "copies_app", APP


@pytest.fixture
async def client(worker: Any) -> AsyncIterator[AsyncClient]:
    """Of a broker that has a worker."""
    async with testing.broker() as node, AsyncClient(node.tcp) as client:
        await worker.start(node.tcp, concurrency=20)
        yield client
        code, errors = await worker.stop() if worker.process.returncode is None else (0, "")
        assert code == 0, errors
        assert "the runner died" not in errors and "bug in" not in errors, errors


async def run(client: AsyncClient, name: str, *arguments: Any) -> Any:
    handle = await client.enqueue(name, list(arguments), max_attempts=1)
    return await handle.result(timeout=RESULT_S)


async def true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(RESULT_S):
        while not condition():
            await asyncio.sleep(0.01)


ENDS = {"return": 0, "raise": 1, "exit": 7, "text": 1, "interrupt": 1, "_exit": 8, "fork": 0}


async def test_a_copy_ends_like_a_program_and_speaks_for_nobody(client: AsyncClient, tmp_path: Path) -> None:
    """While others work: each of them gets its own result."""
    others = [await client.enqueue(f"identity_{pool}", [n]) for n in range(20) for pool in POOLS]
    others += [await client.enqueue("slow_identity", [n]) for n in range(20)]
    forks = {(pool, how): await client.enqueue(f"fork_{pool}", [how], max_attempts=1) for pool in POOLS for how in ENDS}
    forks |= {("later", how): await client.enqueue("fork_after_waiting", [how], max_attempts=1) for how in ENDS}
    left = [await client.enqueue(f"fork_and_leave_{pool}", [str(tmp_path / "go")], max_attempts=1) for pool in POOLS]
    others += [await client.enqueue(f"identity_{pool}", [n]) for n in range(20) for pool in POOLS]
    for (pool, how), handle in forks.items():
        assert await handle.result(timeout=RESULT_S) == ENDS[how], (pool, how)
    for handle in left:
        assert await handle.result(timeout=RESULT_S) == "mine"
    (tmp_path / "go").touch()
    for name, code in (("fork_and_wait", 1), ("fork_in_callback", 0), ("fork_in_background", 0)):
        assert await run(client, name) == code, name
    for handle in others:
        assert (await handle.result(timeout=RESULT_S))[1] == handle.id


async def test_multiprocessing_works_in_every_pool_and_by_every_method(client: AsyncClient) -> None:
    handles = [
        (await client.enqueue(f"pool_{pool}", [method], max_attempts=1), await client.enqueue(f"terminate_{pool}", [method], max_attempts=1))
        for pool in POOLS
        for method in ("fork", "spawn", "forkserver")
    ]
    for mapped, terminated in handles:
        assert await mapped.result(timeout=RESULT_S) == [2, 4, 6]
        assert await terminated.result(timeout=RESULT_S) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
async def test_what_tasks_start_has_the_signals_of_any_program(client: AsyncClient, number: signal.Signals) -> None:
    """An interrupt is an exception in a fork of Python, once it is there."""
    for pool in POOLS:
        of_fork, of_program = await run(client, f"signalled_{pool}", number)
        assert of_program == -number and of_fork in ((-number, 1) if number == signal.SIGINT else (-number,)), pool


async def test_what_tasks_start_has_none_of_the_workers_files(client: AsyncClient) -> None:
    for pool in POOLS:
        ours, of_fork, of_program, of_spawned = await run(client, f"files_{pool}")
        sockets = {link for link in ours if link.startswith(("socket:", "/memfd"))}
        assert sockets, ours
        if pool == "process":
            assert not sockets & {*of_fork, *of_program, *of_spawned}
        else:
            assert not sockets & {*of_program, *of_spawned}
            shared = sockets & set(of_fork)
            assert len(shared) <= 2, shared  # the pair with which a loop wakes itself


KINDS = ("shell", "session", "stubborn", "fork", "spawn", "forkserver")


async def test_a_timeout_ends_all_that_a_process_task_has_started_and_frees_its_slot(client: AsyncClient, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    for kind in KINDS:
        path, began_s = tmp_path / kind, loop.time()
        handle = await client.enqueue("sleeps", [kind, str(path)], max_attempts=1)
        with pytest.raises(TaskFailed):
            await handle.result(timeout=RESULT_S)
        assert loop.time() - began_s < 10, kind
        assert (await handle.info()).fields["attempts"][-1]["error_type"] == "TimeoutError"
        await true(lambda path=path: not any(stat_of(int(pid)) for pid in path.read_text().split()))  # type: ignore[misc]
    path = tmp_path / "cancelled"
    handle = await client.enqueue("sleeps_long", ["session", str(path)])
    await true(path.exists)
    await handle.cancel()
    assert (await client.wait(handle, timeout=RESULT_S)).state == "cancelled"
    await true(lambda: not any(stat_of(int(pid)) for pid in path.read_text().split()))
    path = tmp_path / "died"
    handle = await client.enqueue("dies", ["shell", str(path)], max_attempts=1)
    with pytest.raises(TaskFailed):
        await handle.result(timeout=RESULT_S)
    assert "exit code 5" in (await handle.info()).fields["attempts"][-1]["error"]
    await true(lambda: not any(stat_of(int(pid)) for pid in path.read_text().split()))


async def test_a_drain_ends_all_that_a_process_task_has_started(worker: Any, tmp_path: Path) -> None:
    async with testing.broker() as node, AsyncClient(node.tcp) as client:
        await worker.start(node.tcp, drain_s=0.2)
        paths = [tmp_path / "shell", tmp_path / "session"]
        for path in paths:
            await client.enqueue("sleeps_long", [path.name, str(path)])
            await true(path.exists)
        code, errors = await worker.stop()
        assert code == 0 and "is killed; its tasks are given back" not in errors, errors
        assert not any(stat_of(int(pid)) for path in paths for pid in path.read_text().split())


async def test_children_begin_with_what_the_worker_began_with_whatever_tasks_have_changed(client: AsyncClient, tmp_path: Path) -> None:
    before = await run(client, "template")
    await run(client, "spoil", str(tmp_path / "a" / "b"))
    await run(client, "spoil_loop")
    for _ in range(2):
        with pytest.raises(TaskFailed):
            await run(client, "end_process")
    while (after := await run(client, "template"))[-1] == before[-1]:
        with pytest.raises(TaskFailed):
            await run(client, "end_process")
    assert after[:-1] == before[:-1]
    assert before[0] == str(tmp_path) and before[1][0] is None


async def test_an_answer_for_another_task_is_not_believed(client: AsyncClient) -> None:
    others = [await client.enqueue("identity_process", [n]) for n in range(10)]
    forged = await client.enqueue("forge", [], max_attempts=1)
    with pytest.raises(TaskFailed):
        await forged.result(timeout=RESULT_S)
    assert (await forged.info()).fields["attempts"][-1]["error_type"] == "WorkerCrash"
    for handle in others:
        assert (await handle.result(timeout=RESULT_S))[1] == handle.id
