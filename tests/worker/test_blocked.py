"""A task that holds the event loop is named with its line, soon, and not more often than is useful."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

import pytest

from taskq import App, testing
from taskq.worker import stall

WAIT_S = 30
HELD_S = 1.0


class Blocking:
    def __init__(self) -> None:
        self.app = app = App("localhost:1", deadline=10)

        @app.task
        async def sleeps_at_once() -> None:
            time.sleep(HELD_S)  # the line at once

        @app.task(timeout=60)
        async def sleeps_later() -> None:
            await asyncio.sleep(0)
            _in_a_library()

        @app.task
        async def holds(seconds: float) -> None:
            time.sleep(seconds)

        @app.task
        async def waits() -> None:
            await asyncio.sleep(HELD_S)

        @app.task
        def in_a_thread() -> None:
            time.sleep(HELD_S)

        self.holds = holds
        self.sleeps_at_once, self.sleeps_later, self.waits, self.in_a_thread = sleeps_at_once, sleeps_later, waits, in_a_thread


def _in_a_library() -> None:
    threading.Event().wait(HELD_S)  # the line later


@pytest.fixture
async def blocking(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Blocking]:
    caplog.set_level(logging.WARNING, "taskq.worker")
    blocking = Blocking()
    async with testing.broker(blocking.app) as node, testing.worker(blocking.app, node):
        yield blocking


def named(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "held the event loop" in record.getMessage()]


async def test_the_task_its_line_and_the_remedy_are_named_while_it_still_holds_the_loop(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    handle = await blocking.sleeps_at_once.enqueue()
    await handle.result(WAIT_S)
    over = time.time()
    [line] = named(caplog)
    assert handle.id in line and "(sleeps_at_once, attempt 1)" in line
    assert "test_blocked.py:" in line and "time.sleep(HELD_S)  # the line at once" in line and "asyncio.to_thread" in line
    [record] = [record for record in caplog.records if record.getMessage() == line]
    assert record.created < over - HELD_S / 2, "it is said at once, not afterwards"


async def test_in_a_later_step_the_own_line_is_named_and_not_that_of_the_library(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    await (await blocking.sleeps_later.enqueue()).result(WAIT_S)
    [line] = named(caplog)
    assert "(sleeps_later" in line and "in _in_a_library: threading.Event().wait(HELD_S)  # the line later" in line


async def test_the_same_task_type_is_named_once_in_a_minute(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    for handle in [await blocking.sleeps_at_once.enqueue() for _ in range(2)]:
        await handle.result(WAIT_S)
    assert len(named(caplog)) == 1


async def test_who_waits_with_await_or_in_a_thread_is_not_blamed(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    for handle in [await blocking.waits.enqueue(), await blocking.in_a_thread.enqueue()]:
        await handle.result(WAIT_S)
    assert named(caplog) == []


async def test_a_worker_that_stood_still_says_which_task_held_it(
    blocking: Blocking, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall, "STALL_S", 2.0)
    await (await blocking.holds.enqueue(3.5)).result(WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while not (still := [record.getMessage() for record in caplog.records if "stood still" in record.getMessage()]):
            await asyncio.sleep(0.01)
    assert "(holds, attempt 1) held the loop at" in still[0] and "time.sleep(seconds)" in still[0]
