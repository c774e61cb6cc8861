"""Whatever an exception or a result is like, its attempt ends and its slot is free: each case of `tests/hostile.py` in each pool."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hostile
import pytest
from harness import Harness, value, verdict

from taskq.core.messages import DISCARD, RETRY
from taskq.foreign import CLASS_BYTES_MAX
from taskq.worker.failure import ERROR_BYTES_MAX
from taskq.worker.job import Outcome

CASES_S = 60.0


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch, quiet: None) -> AsyncIterator[Harness]:
    here = Path(__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))
    harness = Harness(2, "hostile")
    yield harness
    await harness.bench.close()
    assert not harness.bugs and harness.bench.idle
    harness.page.close()


def first_step(function: Callable[[], Any]) -> Callable[[], Any]:
    async def task() -> Any:
        return function()

    return task


def later_step(function: Callable[[], Any]) -> Callable[[], Any]:
    async def task() -> Any:
        await asyncio.sleep(0)
        return function()

    return task


POOLS: dict[str, tuple[Callable[[Callable[[], Any]], Callable[[], Any]], str]] = {
    "async, at once": (first_step, "async"),
    "async, after a wait": (later_step, "async"),
    "async, a plain function": (lambda function: function, "async"),
    "thread": (lambda function: function, "thread"),
    "process": (lambda function: function, "process"),
}


@pytest.fixture(params=POOLS)
async def outcomes(request: pytest.FixtureRequest, harness: Harness) -> dict[str, Outcome]:
    """What every case ended with in this pool; all of them share two slots with each other."""
    wrap, pool = POOLS[request.param]
    jobs = {}
    for name, function in hostile.ALL.items():
        task = wrap(function)
        task.__name__ = name
        job = harness.job(task, pool=pool)
        jobs[job.token] = name
        harness.bench.put([job])
    found: dict[str, Outcome] = {}
    async with asyncio.timeout(CASES_S):
        while len(found) < len(jobs):
            job, outcome = await harness.reports.get()
            assert jobs[job.token] not in found
            found[jobs[job.token]] = outcome
    return found


async def test_whatever_a_task_does_its_attempt_ends_and_says_why(outcomes: dict[str, Outcome], harness: Harness) -> None:
    for name, (_, error_type) in hostile.RAISED.items():
        ended = verdict(outcomes[f"raises_{name}"])
        assert re.search(error_type, ended.error_type) and ended.error, (name, ended)
        assert len(ended.error.encode()) <= ERROR_BYTES_MAX and len(ended.error_type.encode()) <= CLASS_BYTES_MAX, name
        assert ended.disposition == (DISCARD if name == "bare_discard" else RETRY), name
    for name, (_, words) in hostile.RETURNED.items():
        ended = verdict(outcomes[f"returns_{name}"])
        assert ended.disposition == DISCARD and re.search(words, ended.error), (name, ended)
    for name, (_, arrives) in hostile.ARRIVES.items():
        assert value(outcomes[f"returns_{name}"]) == arrives, name
    assert harness.bench.idle and value(await harness.outcome(lambda: 3, pool="thread")) == 3
