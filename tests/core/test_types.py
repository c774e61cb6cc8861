"""Task types: what workers declare of them, who is told, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from small_world import Worker, World

from taskq.core import messages as m
from taskq.core import types
from taskq.core.access import Grant, scope_of
from taskq.core.session import inspected
from taskq.core.types import TaskType


def told(world: World, scopes: str = "") -> list[dict[str, Any]]:
    grant = Grant("who", tuple(scope_of(text) for text in scopes.split())) if scopes else None
    answer = inspected(world.house, "types", world.now_ms, grant)
    assert type(answer) is m.Inspected
    return answer.rows


def test_what_a_worker_declares_is_shown(world: World) -> None:
    worker = Worker(world, "w1")
    answer = worker.ask(m.Declare(["send", "report"], ["email", "slow"], [0], [3, 5], [1_000], [[1_000, 2.0, 60_000]]))
    assert type(answer) is m.Ok
    assert [TaskType.load(row) for row in told(world)] == [
        TaskType("send", "email", 0, 3, 1_000, (1_000, 2.0, 60_000), "w1", world.now_ms),
        TaskType("report", "slow", 0, 5, 1_000, (1_000, 2.0, 60_000), "w1", world.now_ms),
    ]


def test_the_last_declaration_counts_and_the_same_again_is_no_news(world: World) -> None:
    kept: list[int] = []
    world.house.keep_types = lambda: kept.append(1)
    first, second = Worker(world, "w1"), Worker(world, "w2")
    first.ask(m.Declare(["send"], ["email"]))
    second.ask(m.Declare(["send"], ["email"]))
    assert kept == [1] and told(world)[0]["worker"] == "w1"
    second.ask(m.Declare(["send"], ["bulk"]))
    assert kept == [1, 1] and (told(world)[0]["queue"], told(world)[0]["worker"]) == ("bulk", "w2")


@pytest.mark.parametrize(
    ("field", "declare"),
    [
        ("task_types", m.Declare(["no name"])),
        ("task_types", m.Declare([f"t{number}" for number in range(1_001)])),
        ("queues", m.Declare(["t"], ["no queue"])),
        ("priorities", m.Declare(["t"], ["q"], [10])),
        ("max_attempts", m.Declare(["t"], ["q"], [5], [0])),
        ("timeouts_ms", m.Declare(["t"], ["q"], [5], [1], [1 << 62])),
        ("retries", m.Declare(["t"], ["q"], [5], [1], [0], [[2, 1.0, 1]])),
        ("queues", m.Declare(["t", "u", "v"], ["q", "r"])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_declaration_that_is_not_valid_changes_nothing(world: World, field: str, declare: m.Declare) -> None:
    answer = Worker(world, "w1").ask(declare)
    assert (answer.code, answer.field) == ("BAD_REQUEST", field)
    assert told(world) == []


def test_there_is_a_bound_on_declared_types(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "TYPES_MAX", 3)
    worker = Worker(world, "w1")
    worker.ask(m.Declare(["a", "b", "c"]))
    assert worker.ask(m.Declare(["d"])).field == "task_types"
    assert type(worker.ask(m.Declare(["a"], ["other"]))) is m.Ok


def test_types_are_shown_to_whoever_has_a_scope_for_their_queue(world: World) -> None:
    Worker(world, "w1").ask(m.Declare(["send", "report"], ["email", "slow"]))
    assert [row["name"] for row in told(world, "produce:email")] == ["send"]
    assert [row["name"] for row in told(world, "read:s*")] == ["report"]
    assert [row["name"] for row in told(world, "admin")] == ["send", "report"]
