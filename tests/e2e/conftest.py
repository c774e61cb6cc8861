"""A broker in the test's own loop, and programs that run on each of the loops in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from programs import Start

from taskq import testing
from taskq.node import Node


@pytest.fixture
async def broker() -> AsyncIterator[Node]:
    async with testing.broker() as node:
        yield node


@pytest.fixture(params=["uvloop", "asyncio"])
def start(request: pytest.FixtureRequest, start: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """As everywhere; the broker runs on the loop that `TASKQ_LOOP` names."""
    monkeypatch.setenv("TASKQ_LOOP", request.param)
    return start
