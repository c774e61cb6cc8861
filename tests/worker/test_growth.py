"""The runner does not grow by what its tasks had: measured on the process itself, with a collector that never runs by itself."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import pytest

from taskq.core import messages as m
from taskq.worker.growth import STEP_BYTES, Growth, resident_meter
from taskq.worker.page import Page
from taskq.worker.registry import TaskDefinition
from taskq.worker.runner import Runner
from taskq.worker.settings import WorkerConfig

MIB = 1 << 20
LOCAL_BYTES = 10 * MIB
TASKS = 60
GROWTH_BYTES_MAX = 100 * MIB
ENDED_S = 60.0


def load() -> bytes:
    return b"x" * LOCAL_BYTES


async def fails() -> None:
    load_ = load()
    await asyncio.sleep(0)
    raise ValueError(len(load_))


async def handles_an_error_of_a_child() -> None:
    load_ = load()
    try:
        await asyncio.wait_for(fails(), 60)
    except ValueError:
        del load_


async def passes_on_the_error_of_a_group() -> None:
    _ = load()
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())


async def keeps_an_error() -> None:
    kept = []
    try:
        await fails()
    except ValueError as error:
        kept.append(error)


async def raises_what_it_kept() -> None:
    kept = None
    try:
        await fails()
    except ValueError as error:
        kept = error
    raise kept or LookupError


async def sleeps() -> None:
    _ = load()
    await asyncio.sleep(60)


async def cleans_up() -> None:
    try:
        await sleeps()
    finally:
        await asyncio.sleep(0)


def fails_in_a_thread() -> None:
    kept = None
    load_ = load()
    try:
        raise ValueError(len(load_))
    except ValueError as error:
        kept = error
    raise kept or LookupError


def sleeps_in_a_thread() -> None:
    _ = load()
    time.sleep(0.03)


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    fails,
    handles_an_error_of_a_child,
    passes_on_the_error_of_a_group,
    keeps_an_error,
    raises_what_it_kept,
    sleeps,
    cleans_up,
    fails_in_a_thread,
    sleeps_in_a_thread,
)


@attrs.frozen
class Functions:
    tasks: dict[str, TaskDefinition] = attrs.field(factory=lambda: {each.__name__: TaskDefinition(each.__name__, each) for each in FUNCTIONS})


@pytest.fixture
def no_collector() -> Iterator[None]:
    """As in a runner, what was there before is no garbage: to look through all that other tests have left takes seconds each time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
async def runner(broker: Any, no_collector: None, quiet: None) -> AsyncIterator[Runner]:
    page = Page()
    runner = Runner(WorkerConfig(broker.url, concurrency=2, drain_s=5.0), Functions(), page, lambda told: None)
    running = asyncio.create_task(runner.run())
    await broker.expect(m.Credit)
    yield runner
    runner.stop(1)
    assert await running == 0
    page.close()


@pytest.mark.parametrize(
    ("function", "timeout_ms", "cancels"),
    [
        *((function.__name__, 0, False) for function in FUNCTIONS if "sleeps" not in function.__name__ and function is not cleans_up),
        *((function.__name__, 10, False) for function in (sleeps, cleans_up, sleeps_in_a_thread)),
        *((function.__name__, 0, True) for function in (sleeps, cleans_up)),
    ],
)
async def test_what_tasks_had_is_gone_when_they_have_ended(broker: Any, runner: Runner, function: str, timeout_ms: int, cancels: bool) -> None:
    resident = resident_meter()
    before = resident()
    async with asyncio.timeout(ENDED_S):
        for _ in range(TASKS // 2):
            tokens = broker.deliver((function, []), (function, []), timeout_ms=timeout_ms)
            if cancels:
                await asyncio.sleep(0.01)
                broker.worker.send(m.Revoke(b"".join(tokens)))
            while broker.leases:
                broker._news.clear()
                await broker._news.wait()
    assert resident() - before < GROWTH_BYTES_MAX


class Memory:
    """A process: what lives, and garbage by generation."""

    def __init__(self) -> None:
        self.lives = 100 * MIB
        self.garbage = {0: 0, 2: 0}
        self.collections: list[int] = []
        self.growth = Growth(self.size, self.collect)

    def size(self) -> int:
        return self.lives + sum(self.garbage.values())

    def collect(self, generation: int) -> None:
        self.collections.append(generation)
        for each in self.garbage:
            if each <= generation:
                self.garbage[each] = 0


def test_young_garbage_is_collected_without_looking_at_all_that_lives() -> None:
    memory = Memory()
    for _ in range(1_000):
        memory.garbage[0] += 10 * MIB
        memory.growth.check()
        assert memory.size() < 100 * MIB + STEP_BYTES
    assert set(memory.collections) == {0}


def test_old_garbage_does_not_add_up() -> None:
    memory = Memory()
    for _ in range(1_000):
        memory.garbage[0] += 3 * MIB
        memory.garbage[2] += 2 * MIB
        memory.growth.check()
        assert memory.size() < 100 * MIB + 2 * STEP_BYTES


def test_what_grows_because_it_is_needed_is_looked_at_less_and_less_often() -> None:
    memory = Memory()
    for _ in range(4_000):
        memory.lives += MIB
        memory.growth.check()
    assert memory.collections.count(2) < 25


def test_a_process_that_has_shrunk_is_measured_from_there() -> None:
    memory = Memory()
    memory.lives = 10 * MIB
    memory.growth.check()
    memory.garbage[0] = STEP_BYTES
    memory.growth.check()
    assert memory.size() == 10 * MIB
