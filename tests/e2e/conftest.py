"""A broker in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from taskq import testing
from taskq.node import Node


@pytest.fixture
async def broker() -> AsyncIterator[Node]:
    async with testing.broker() as node:
        yield node
