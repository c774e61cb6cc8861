"""The workbench with its three pools, without a broker: what runs, what is reported, and how runs are ended."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import REPORT_S, Harness, value, verdict

from taskq.control import Discard, Retry, Snooze
from taskq.core.messages import DISCARD, RETRY, RETRY_AFTER
from taskq.worker.context import current_task
from taskq.worker.job import CANCELLED, DRAINED, HANDBACK, LOST, Handback, Outcome
from taskq.worker.threads import ThreadPool

APP = "taskq_tests_process_app"


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = Harness(10, APP)
    yield harness
    await harness.bench.close()
    assert not harness.bugs
    harness.page.close()


# ---- what functions may do


async def add(a: int, b: int) -> int:
    return a + b


async def add_slowly(a: int, b: int) -> int:
    await asyncio.sleep(0.01)
    return a + b


def add_in_thread(a: int, b: int) -> list[Any]:
    return [a + b, threading.current_thread() is threading.main_thread()]


def pause() -> None:
    time.sleep(0.001)


async def test_an_async_function_that_does_not_wait_is_run(harness: Harness) -> None:
    assert value(await harness.outcome(add, 1, 2)) == 3


async def test_an_async_function_that_waits_is_run(harness: Harness) -> None:
    assert value(await harness.outcome(add_slowly, 1, 2)) == 3


async def test_a_sync_function_runs_in_a_thread(harness: Harness) -> None:
    assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False]


async def test_a_sync_function_runs_on_the_loop_if_the_worker_says_so(harness: Harness) -> None:
    assert value(await harness.outcome(add_in_thread, 1, 2, pool="async")) == [3, True]


async def test_sync_functions_that_wait_for_each_other_run_at_once() -> None:
    harness = Harness(30)
    meeting = threading.Barrier(30)
    harness.bench.put([harness.job(meeting.wait, REPORT_S) for _ in range(30)])
    assert sorted([value(await harness.report()) for _ in range(30)]) == list(range(30))
    await harness.bench.close()


async def test_short_sync_functions_behind_a_long_one_do_not_wait_for_it(harness: Harness) -> None:
    release = threading.Event()
    for _ in range(50):
        release.clear()
        harness.bench.put([harness.job(release.wait, REPORT_S), *(harness.job(add_in_thread, number, 0) for number in range(5))])
        assert sorted([value(await harness.report())[0] for _ in range(5)]) == [0, 1, 2, 3, 4]
        release.set()
        assert value(await harness.report()) is True
    assert harness.bench.idle


async def test_the_time_that_a_sync_function_waits_in_the_line_is_no_measure_of_its_work() -> None:
    """Else short functions would be fetched a few at a time."""
    worked_s: asyncio.Queue[float] = asyncio.Queue()
    pool = ThreadPool(asyncio.get_running_loop(), lambda job, outcome, work_s: worked_s.put_nowait(work_s))
    job = Harness(1).job(add_in_thread, 1, 2)
    job.begin(time.monotonic() - 100)
    pool.start(job)
    async with asyncio.timeout(REPORT_S):
        assert await worked_s.get() < 50
    pool.close()


async def test_many_jobs_of_all_kinds_are_each_reported_once(harness: Harness) -> None:
    functions = (add, add_slowly, add_in_thread)
    jobs = [harness.job(functions[number % 3], number, 0) for number in range(600)]
    harness.bench.put(jobs)
    reported = [await harness.reports.get() for _ in jobs]
    assert {job.token for job, _ in reported} == {job.token for job in jobs}
    assert harness.reports.empty() and harness.bench.idle


async def test_no_more_run_at_once_than_allowed(harness: Harness) -> None:
    running, most = 0, 0

    async def counted() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    jobs = [harness.job(counted) for _ in range(100)]
    harness.bench.put(jobs)
    for _ in jobs:
        await harness.report()
    assert most == 10


# ---- the first step


async def test_the_first_step_has_a_task_of_asyncio_and_keeps_it(harness: Harness) -> None:
    async def tell() -> bool:
        before = asyncio.current_task()
        await asyncio.sleep(0)
        return before is not None and before is asyncio.current_task()

    assert value(await harness.outcome(tell)) is True


async def test_asyncio_timeout_in_the_first_step_ends_only_its_own_block(harness: Harness) -> None:
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            return "caught"
        return "not caught"

    harness.bench.put([harness.job(impatient), harness.job(add, 1, 1)])
    assert {value(await harness.report()), value(await harness.report())} == {"caught", 2}


async def test_task_groups_and_wait_for_work_in_the_first_step(harness: Harness) -> None:
    async def grouped() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(add_slowly(number, 1)) for number in range(3)]
        return [*(task.result() for task in tasks), await asyncio.wait_for(add_slowly(9, 1), 5)]

    assert value(await harness.outcome(grouped)) == [1, 2, 3, 10]


async def test_a_job_that_keeps_its_task_and_cancels_it_late_harms_no_other(harness: Harness) -> None:
    loop = asyncio.get_running_loop()

    async def leave_a_bomb() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop.call_later(0.005, task.cancel)

    harness.bench.put([harness.job(leave_a_bomb), harness.job(add_slowly, 1, 2)])
    assert [await harness.report(), value(await harness.report())] == [b"\xc0", 3]


async def test_a_job_that_cancels_itself_harms_no_other(harness: Harness) -> None:
    async def cancel_self() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    harness.bench.put([harness.job(cancel_self), harness.job(add_slowly, 1, 2)])
    assert [await harness.report(), value(await harness.report())] == [b"\xc0", 3]


async def test_context_variables_do_not_leak_between_jobs(harness: Harness) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")

    async def soil() -> str:
        before = variable.get()
        variable.set("soiled")
        await asyncio.sleep(0)
        return f"{before}, then {variable.get()}"

    async def soil_at_once() -> str:
        before = variable.get()
        variable.set("soiled")
        return before

    harness.bench.put([harness.job(soil_at_once), harness.job(soil_at_once), harness.job(soil), harness.job(soil)])
    assert [value(await harness.report()) for _ in range(4)] == ["clean", "clean", "clean, then soiled", "clean, then soiled"]


async def test_the_context_is_known_in_async_functions_and_in_threads(harness: Harness) -> None:
    async def tell() -> list[Any]:
        before = current_task()
        await asyncio.sleep(0)
        return [before.id, current_task().id, before.task_type, before.attempt, before.fence, before.cancelled]

    def tell_in_thread() -> list[Any]:
        return [current_task().queue, current_task().deadline is not None]

    assert value(await harness.outcome(tell)) == ["00" * 15 + "01", "00" * 15 + "01", "tell", 1, 1, False]
    assert value(await harness.outcome(tell_in_thread, timeout_ms=5_000)) == ["default", True]
    with pytest.raises(LookupError):
        current_task()


# ---- how attempts end


async def test_exceptions_end_attempts_as_they_say(harness: Harness) -> None:
    async def fails() -> None:
        raise ValueError("no")

    async def retries() -> None:
        raise Retry(after=7)

    def discards() -> None:
        raise Discard("never")

    def snoozes() -> None:
        raise Snooze(9)

    async def exits() -> None:
        raise SystemExit(3)

    plain = verdict(await harness.outcome(fails))
    assert (plain.disposition, plain.error_type) == (RETRY, "ValueError") and "ValueError: no" in plain.error
    assert verdict(await harness.outcome(retries))[:2] == (RETRY_AFTER, 7_000)
    assert verdict(await harness.outcome(discards)).disposition == DISCARD
    assert await harness.outcome(snoozes) == Handback(9_000)
    assert verdict(await harness.outcome(exits)).error_type == "SystemExit"


async def test_a_result_that_cannot_be_sent_is_discarded_with_its_name(harness: Harness) -> None:
    async def gives_set() -> dict[str, Any]:
        return {"found": {1, 2}}

    found = verdict(await harness.outcome(gives_set))
    assert found.disposition == DISCARD and "gives_set" in found.error and "set" in found.error


async def test_arguments_that_do_not_fit_are_discarded(harness: Harness) -> None:
    assert verdict(await harness.outcome(add, 1)).disposition == DISCARD


async def test_an_async_function_is_cancelled_at_its_timeout(harness: Harness) -> None:
    cleaned = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    found = verdict(await harness.outcome(forever, timeout_ms=20))
    assert (found.error_type, found.disposition) == ("TimeoutError", RETRY) and cleaned.is_set()


@pytest.mark.parametrize(("ending", "reported"), [(CANCELLED, HANDBACK), (DRAINED, HANDBACK), (LOST, None)])
async def test_the_slot_of_an_async_function_that_swallows_its_cancellation_is_used_again(
    ending: int, reported: Outcome | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.worker.workbench.GRACE_S", 0.01)
    harness = Harness(1)
    started, release = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    job = harness.job(stubborn)
    harness.bench.put([job])
    await started.wait()
    harness.bench.end(job.token, ending)
    harness.bench.put([harness.job(add, 1, 2)])
    if reported is not None:
        assert await harness.report() == reported
    assert value(await harness.report()) == 3
    release.set()
    await harness.bench.close()


async def test_a_thread_that_does_not_heed_its_cancel_is_over_at_its_timeout() -> None:
    harness = Harness(1)
    started, release = threading.Event(), threading.Event()

    def stubborn() -> None:
        started.set()
        release.wait(REPORT_S)

    job = harness.job(stubborn, timeout_ms=200)
    harness.bench.put([job])
    await asyncio.to_thread(started.wait)
    harness.bench.end(job.token, CANCELLED)
    assert await harness.report() == HANDBACK
    assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False]
    release.set()
    await harness.bench.close()


async def test_a_thread_that_is_too_slow_fails_and_its_slot_is_used_again() -> None:
    harness = Harness(1)
    release = threading.Event()
    noticed = threading.Event()

    def stuck() -> None:
        context = current_task()
        release.wait(10)
        assert context.cancelled
        noticed.set()

    found = verdict(await harness.outcome(stuck, timeout_ms=20))
    assert found.error_type == "TimeoutError"
    assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False]
    release.set()
    assert await asyncio.to_thread(noticed.wait, 5)
    await harness.bench.close()
    assert harness.reports.empty()


async def test_a_cancelled_async_run_is_given_back(harness: Harness) -> None:
    started = asyncio.Event()

    async def forever() -> None:
        started.set()
        await asyncio.sleep(60)

    job = harness.job(forever)
    harness.bench.put([job])
    await started.wait()
    harness.bench.end(job.token, CANCELLED)
    assert await harness.report() == HANDBACK


async def test_a_lost_run_is_ended_and_not_reported(harness: Harness) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def forever() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    job = harness.job(forever)
    harness.bench.put([job])
    await started.wait()
    harness.bench.end(job.token, LOST)
    await ended.wait()
    assert value(await harness.outcome(add, 1, 2)) == 3
    assert harness.bench.idle and harness.reports.empty()


async def test_the_slot_of_a_lost_thread_is_used_again_as_often_as_the_worker_has_slots() -> None:
    harness = Harness(1)
    release, started = threading.Event(), threading.Semaphore(0)

    def stuck() -> None:
        started.release()
        release.wait(10)

    jobs = [harness.job(stuck) for _ in range(2)]
    for job in jobs:
        harness.bench.put([job])
        assert await asyncio.to_thread(started.acquire, timeout=5)
        harness.bench.end(job.token, LOST)
        assert harness.bench.idle == (job is jobs[0]), "there are never more than twice as many threads as slots"
    release.set()
    assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False]
    assert harness.bench._threads.given_up == 0
    await harness.bench.close()
    assert harness.reports.empty()


async def test_a_lost_run_that_swallows_its_cancel_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.worker.workbench.GRACE_S", 0.01)
    harness = Harness(1)
    started, release = asyncio.Event(), asyncio.Event()

    async def deaf() -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await release.wait()

    job = harness.job(deaf)
    harness.bench.put([job])
    await started.wait()
    harness.bench.end(job.token, LOST)
    assert value(await harness.outcome(add, 1, 2)) == 3
    release.set()
    await harness.bench.close()
    assert harness.reports.empty()


class TestThreadLimit:
    """The system gives no more threads than `most`."""

    @pytest.fixture
    def most(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        left, start = [2], threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("taskq-task"):
                if not left[0]:
                    raise RuntimeError("can't start new thread")
                left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        return left

    async def test_there_are_fewer_slots_then_and_the_work_goes_on(self, most: list[int], caplog: pytest.LogCaptureFixture) -> None:
        harness = Harness(10)
        harness.bench.put([harness.job(pause) for _ in range(50)])
        assert [await harness.report() for _ in range(50)] == [b"\xc0"] * 50
        assert harness.bench._concurrency == 2 and not harness.bugs
        assert caplog.text.count("no more than 2 threads can be started") == 1
        await harness.bench.close()

    async def test_without_any_it_is_tried_again(self, most: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("taskq.worker.threads.RECRUIT_S", 0.01)
        most[0] = 0
        harness = Harness(10)
        harness.bench.put([harness.job(pause) for _ in range(5)])
        for _ in range(3):
            await asyncio.sleep(0.01)
        assert len(harness.bench) == 5
        most[0] = 1
        assert [await harness.report() for _ in range(5)] == [b"\xc0"] * 5
        await harness.bench.close()

    async def test_what_waits_for_a_thread_and_is_given_up_never_runs(self, most: list[int]) -> None:
        most[0] = 1
        harness = Harness(2)
        release, started, ran = threading.Event(), threading.Event(), []

        def blocks() -> None:
            started.set()
            release.wait(REPORT_S)

        harness.bench.put([harness.job(blocks), harness.job(lambda: ran.append(1), timeout_ms=10)])
        await asyncio.to_thread(started.wait)
        assert verdict(await harness.report()).error_type == "TimeoutError"
        release.set()
        assert await harness.report() == b"\xc0"
        assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False] and not ran
        assert harness.bench._threads.given_up == 0
        await harness.bench.close()


async def test_the_result_of_a_cancelled_thread_counts(harness: Harness) -> None:
    started = threading.Event()

    def cooperative() -> str:
        started.set()
        while not current_task().cancelled:
            time.sleep(0.001)
        return "stopped early"

    job = harness.job(cooperative)
    harness.bench.put([job])
    await asyncio.to_thread(started.wait)
    harness.bench.end(job.token, CANCELLED)
    assert value(await harness.report()) == "stopped early"


async def test_when_the_drain_time_is_over_everything_is_given_back(harness: Harness) -> None:
    release = threading.Event()
    started = asyncio.Semaphore(0)

    def stuck() -> None:
        release.wait(10)

    async def forever() -> None:
        started.release()
        await asyncio.sleep(60)

    jobs = [harness.job(stuck), *(harness.job(forever) for _ in range(20))]
    harness.bench.put(jobs)
    for _ in range(9):
        await started.acquire()
    harness.bench.hand_back_all()
    assert [await harness.report() for _ in jobs] == [HANDBACK] * len(jobs)
    release.set()


# ---- processes


@pytest.fixture
def process_app(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """A module that children import, and its functions."""
    source = """
import os, signal, time
from taskq.control import Snooze
from taskq.worker.context import current_task
from taskq.worker.registry import TaskDefinition

def pid(): return [os.getpid(), current_task().task_type, current_task().attempt]
def die(): os.kill(os.getpid(), signal.SIGKILL)
def leave(): os._exit(7)
def sleep(): time.sleep(60)
def snooze(): raise Snooze(5)
def fail(): raise KeyError("x")
def large(): return b"x" * (100 << 20)
def circle():
    kept = [b"x" * (100 << 20)]
    kept.append(kept)

class app:
    tasks = None
class _App: pass
app = _App()
app.tasks = {f.__name__: TaskDefinition(f.__name__, f, pool="process") for f in (pid, die, leave, sleep, snooze, fail, large, circle)}
"""
    (tmp_path / f"{APP}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return {name: namespace[name] for name in ("pid", "die", "leave", "sleep", "snooze", "fail", "large", "circle")}


async def test_process_tasks_run_in_children_that_are_used_again(harness: Harness, process_app: dict[str, Any]) -> None:
    first = value(await harness.outcome(process_app["pid"], pool="process"))
    again = value(await harness.outcome(process_app["pid"], pool="process"))
    assert first == again and first[0] != os.getpid() and first[1:] == ["pid", 1]
    assert await harness.outcome(process_app["snooze"], pool="process") == Handback(5_000)
    assert verdict(await harness.outcome(process_app["fail"], pool="process")).error_type == "KeyError"


async def test_a_task_factory_that_a_task_sets_makes_no_task_of_the_worker(harness: Harness, process_app: dict[str, Any]) -> None:
    def refuse(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        coroutine.close()
        raise RuntimeError("no more tasks")

    async def spoil() -> None:
        asyncio.get_running_loop().set_task_factory(refuse)

    try:
        assert value(await harness.outcome(spoil)) is None
        assert value(await harness.outcome(add_slowly, 1, 2)) == 3
        assert value(await harness.outcome(add_in_thread, 1, 2)) == [3, False]
        assert value(await harness.outcome(process_app["pid"], pool="process"))[1] == "pid"
        assert "exit code 7" in verdict(await harness.outcome(process_app["leave"], pool="process")).error
    finally:
        asyncio.get_running_loop().set_task_factory(None)


async def test_a_crash_fails_the_task_that_caused_it_with_its_cause(harness: Harness, process_app: dict[str, Any]) -> None:
    harness.bench.put([harness.job(process_app["sleep"], pool="process"), harness.job(process_app["die"], pool="process")])
    found = verdict(await harness.report())
    assert (found.error_type, found.disposition) == ("WorkerCrash", RETRY) and "SIGKILL" in found.error
    assert "exit code 7" in verdict(await harness.outcome(process_app["leave"], pool="process")).error
    assert len(harness.bench) == 1


async def test_a_process_is_killed_at_its_timeout_and_on_cancel(harness: Harness, process_app: dict[str, Any]) -> None:
    assert verdict(await harness.outcome(process_app["sleep"], pool="process", timeout_ms=50)).error_type == "TimeoutError"
    job = harness.job(process_app["sleep"], pool="process")
    harness.bench.put([job, harness.job(process_app["pid"], pool="process")])
    value(await harness.report())
    harness.bench.end(job.token, CANCELLED)
    assert await harness.report() == HANDBACK


@pytest.mark.parametrize("name", ["large", "circle"])
async def test_a_child_that_waits_keeps_nothing_of_the_task_before(harness: Harness, process_app: dict[str, Any], name: str) -> None:
    pid = value(await harness.outcome(process_app["pid"], pool="process"))[0]
    before = _resident_bytes(pid)
    assert isinstance(await harness.outcome(process_app[name], pool="process"), bytes)
    async with asyncio.timeout(REPORT_S):
        while _resident_bytes(pid) > before + (50 << 20):
            await asyncio.sleep(0.01)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_process_task_that_waits_for_a_child_can_be_given_back(harness: Harness, process_app: dict[str, Any]) -> None:
    jobs = [harness.job(process_app["sleep"], pool="process") for _ in range(6)]
    harness.bench.put(jobs)
    await asyncio.sleep(0)
    for job in jobs:
        harness.bench.end(job.token, DRAINED)
    assert [await harness.report() for _ in jobs] == [HANDBACK] * len(jobs)


# ---- measures


async def test_short_tasks_are_fetched_ahead_and_long_ones_are_not(harness: Harness) -> None:
    harness.bench.put([harness.job(add, 1, 2) for _ in range(200)])
    for _ in range(200):
        await harness.report()
    assert harness.bench.room > 200
    harness.bench._work_s = 1.0
    assert harness.bench.room == 10


async def test_what_was_fetched_ahead_is_given_back_when_long_tasks_take_all_slots(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Semaphore(0)

    async def forever() -> None:
        started.release()
        await asyncio.sleep(60)

    harness.bench.put([harness.job(forever) for _ in range(13)])
    for _ in range(10):
        await started.acquire()
    harness.bench.relieve()
    assert harness.reports.empty()
    monkeypatch.setattr("taskq.worker.workbench.PATIENCE_S", 0.0)
    harness.bench.relieve()
    assert [await harness.report() for _ in range(3)] == [HANDBACK] * 3
    harness.bench.hand_back_all()
    assert [await harness.report() for _ in range(10)] == [HANDBACK] * 10


async def test_the_page_carries_the_hard_deadline_while_a_step_runs(harness: Harness) -> None:
    async def look() -> list[bool]:
        before = harness.page.cells[1] > 0
        await asyncio.sleep(0)
        return [before, harness.page.cells[1] > 0]

    assert value(await harness.outcome(look, timeout_ms=1_000)) == [True, True]
    assert harness.page.cells[1] == 0
    assert not harness.page.overdue(time.monotonic_ns())
