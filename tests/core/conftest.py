from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_world import World

from taskq.core import line, queue


@pytest.fixture
def world() -> Iterator[World]:
    """A broker with one shard, whose own invariants hold to the end."""
    world = World()
    yield world
    world.check()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same with a hot window of two tasks a line, and loads of four."""
    monkeypatch.setattr(queue, "LOAD_TASKS", 4)
    monkeypatch.setattr(line, "LINE_HOT_MIN", 2)
    world = World(budget_bytes=0)
    yield world
    world.check()
