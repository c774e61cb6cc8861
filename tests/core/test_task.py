"""A task moves by the table and by nothing else; its history and its payload stay small."""

from __future__ import annotations

import itertools

import pytest

from taskq.core.task import (
    COMPLETED,
    FINAL,
    HISTORY_MAX,
    NEXT,
    PENDING,
    RETRYING,
    RUNNING,
    SCHEDULED,
    STATES,
    InvariantError,
    Options,
    Task,
    describe,
    parked,
)


def task_in(state: int) -> Task:
    return Task(bytes(16), 1, "email", Options("send_email"), b"body", state, 1_000)


@pytest.mark.parametrize(("before", "after"), [*itertools.product(range(len(STATES)), repeat=2)])
def test_a_task_moves_only_along_the_table(before: int, after: int) -> None:
    task = task_in(before)
    if after in NEXT[before]:
        task.move(after)
        assert task.state == after
    else:
        with pytest.raises(InvariantError, match=f"{STATES[before]} → {STATES[after]} is not a transition"):
            task.move(after)
        assert task.state == before


def test_every_state_has_a_row_and_completed_is_the_end() -> None:
    assert set(NEXT) == set(range(len(STATES)))
    assert NEXT[COMPLETED] == frozenset()
    assert all(NEXT[state] <= {PENDING} for state in FINAL)


def test_only_the_newest_twenty_attempts_are_kept() -> None:
    task = task_in(RUNNING)
    for ended_ms in range(HISTORY_MAX + 5):
        task.close_attempt(ended_ms, "failed")
    assert [attempt.ended_ms for attempt in task.history] == list(range(5, HISTORY_MAX + 5))


def test_the_end_of_an_attempt_drops_the_lease_and_remembers_its_token() -> None:
    task = task_in(RUNNING)
    task.token, task.session, task.delivery, task.worker = 7, b"s" * 16, 3, "w1"
    task.close_attempt(2_000, "failed", "ValueError", "boom")
    assert (task.token, task.session, task.delivery, task.last_token) == (0, b"", 0, 7)
    assert (task.history[0].worker, task.history[0].outcome, task.history[0].error) == ("w1", "failed", "boom")


def test_a_small_payload_is_copied_when_it_is_parked_and_a_large_one_is_not() -> None:
    chunk = memoryview(bytes(200_000))
    assert type(parked(chunk[:1_000])) is bytes
    large = parked(chunk[: 64 << 10])
    assert type(large) is memoryview
    assert large.obj is chunk.obj
    body = b"small"
    assert parked(body) is body


def test_a_task_is_described_in_words() -> None:
    task = task_in(RETRYING)
    task.due_ms, task.worker = 5_000, "w1"
    info = describe(task)
    assert (info["state"], info["due_ms"], info["worker"], info["attempts"]) == ("retrying", 5_000, "", [])
    task.state = RUNNING
    assert describe(task)["due_ms"] == 0
    assert [(attempt["number"], attempt["outcome"]) for attempt in describe(task)["attempts"]] == [(1, "running")]


def test_a_success_stands_as_the_last_attempt() -> None:
    task = task_in(RUNNING)
    task.close_attempt(2_000, "failed")
    task.state, task.attempts, task.started_ms, task.finished_ms = COMPLETED, 2, 3_000, 4_000
    shown = describe(task)["attempts"]
    assert [(each["number"], each["outcome"], each["ended_ms"]) for each in shown] == [(1, "failed", 2_000), (2, "completed", 4_000)]


def test_a_scheduled_task_says_when_it_is_due() -> None:
    task = task_in(SCHEDULED)
    task.due_ms = 9_000
    assert describe(task)["due_ms"] == 9_000
