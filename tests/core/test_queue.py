"""The ready lines of a queue: hot head, cold tail, and the order in which tasks leave."""

from __future__ import annotations

import random
from time import process_time

import pytest

from taskq.core import line as line_module
from taskq.core import queue as queue_module
from taskq.core.line import BATCH_BYTES, BEYOND_BYTES, LINE_HOT_BYTES, LINE_HOT_MIN, TASK_BYTES, Budget, Line
from taskq.core.queue import Queue
from taskq.core.task import CANCELLED, PENDING, RUNNING, Options, Task

BOTH = frozenset({"a", "b"})


def task_at(position: int, task_type: str = "a", priority: int = 5, payload: bytes = b"") -> Task:
    return Task(position.to_bytes(16, "big"), position, "q", Options(task_type, priority=priority), payload, PENDING, 0, position=position)


def filled(*tasks: Task, bytes_max: int = 1 << 30) -> Queue:
    queue = Queue("q", Budget(bytes_max))
    for task in tasks:
        queue.extend([task])
    return queue


def taken(queue: Queue, count: int, types: frozenset[str] = BOTH) -> list[int]:
    """Pick and grant."""
    positions: list[int] = []
    while len(positions) < count and (tasks := queue.picker(types).pick(count - len(positions))):
        for task in tasks:
            queue.move(task, RUNNING)
            positions.append(task.position)
    return positions


def test_a_line_is_first_in_first_out() -> None:
    queue = filled(*(task_at(position) for position in range(1, 6)))
    assert taken(queue, 3) == [1, 2, 3]
    assert taken(queue, 3) == [4, 5]


def test_priority_goes_before_age() -> None:
    queue = filled(task_at(1, priority=9), task_at(2, priority=0), task_at(3))
    assert taken(queue, 3) == [2, 3, 1]


def test_types_of_one_priority_leave_by_age_over_all_types() -> None:
    queue = filled(task_at(1, "a"), task_at(2, "b"), task_at(3, "b"), task_at(4, "a"))
    assert taken(queue, 4) == [1, 2, 3, 4]


def test_types_that_the_consumer_does_not_run_are_passed_over() -> None:
    queue = filled(task_at(1, "a"), task_at(2, "b"))
    assert taken(queue, 5, frozenset({"b"})) == [2]


def test_a_task_given_back_goes_to_its_old_place() -> None:
    tasks = [task_at(position) for position in range(1, 6)]
    queue = filled(*tasks)
    taken(queue, 4)
    for at in (3, 1):
        queue.move(tasks[at], PENDING)
    assert taken(queue, 5) == [2, 4, 5]


def test_a_task_cancelled_in_the_middle_never_leaves_the_line() -> None:
    tasks = [task_at(position) for position in range(1, 5)]
    queue = filled(*tasks)
    queue.move(tasks[1], CANCELLED)
    queue.move(tasks[0], CANCELLED)
    assert taken(queue, 4) == [3, 4]


def test_no_more_payload_is_taken_at_once_than_a_batch_may_have() -> None:
    half = bytes(BATCH_BYTES // 2)
    line = filled(*(task_at(position, payload=half) for position in range(1, 5))).line(5, "a")
    assert [task.position for task in line.peek(4)] == [1, 2]
    huge = filled(task_at(1, payload=bytes(BATCH_BYTES * 2))).line(5, "a")
    assert len(huge.peek(4)) == 1


def test_the_budget_counts_what_is_hot() -> None:
    queue = filled(task_at(1, payload=b"12345"), task_at(2))
    assert queue.budget.bytes_used == 2 * TASK_BYTES + 5
    taken(queue, 2)
    assert queue.budget.bytes_used == 0


def test_a_line_may_always_hold_its_minimum_and_then_goes_cold() -> None:
    queue = filled(*(task_at(position) for position in range(1, LINE_HOT_MIN + 11)), bytes_max=0)
    line = queue.line(5, "a")
    assert (line.hot, line.cold) == (LINE_HOT_MIN, 10)


@pytest.mark.parametrize(("payload", "hot"), [(100_000, 11), (LINE_HOT_BYTES // 2 - TASK_BYTES, 2), (LINE_HOT_BYTES, 1), (10 * LINE_HOT_BYTES, 1)])
def test_beyond_the_budget_a_line_holds_few_bytes(payload: int, hot: int) -> None:
    queue = filled(*(task_at(position, payload=bytes(payload)) for position in range(1, 20)), bytes_max=0)
    assert queue.line(5, "a").hot == hot


def test_all_lines_together_hold_little_beyond_the_budget() -> None:
    queue = filled(bytes_max=0)
    for n in range(1_000):
        queue.extend([task_at(n + 1, f"type-{n}", payload=bytes(LINE_HOT_BYTES))])
    assert BEYOND_BYTES <= queue.budget.bytes_used <= BEYOND_BYTES + LINE_HOT_BYTES + TASK_BYTES
    assert sum(line.cold for line in queue.lines.values()) > 900


def test_where_memory_is_short_whatever_comes_goes_cold_and_a_line_is_filled_when_it_is_empty() -> None:
    queue = filled(task_at(1), bytes_max=1 << 30)
    queue.budget.tight = True
    queue.extend([task_at(2), task_at(3)])
    line = queue.line(5, "a")
    assert (line.hot, line.cold) == (1, 2) and queue.low() == []
    assert taken(queue, 9) == [1]
    assert [each for each, _ in queue.low()] == [line]


def test_a_line_that_is_spilled_keeps_its_first_task_and_its_order() -> None:
    tasks = [task_at(position, payload=b"x" * 10) for position in range(1, 6)]
    queue = filled(*tasks)
    line = queue.line(5, "a")
    line.remove(tasks[0])
    gone = queue.spill(line)
    assert (line.hot, line.waiting, line.passed, gone) == (1, 4, 2, tasks[2:])
    assert queue.budget.bytes_used == line.hot_bytes == TASK_BYTES + 10
    assert taken(queue, 9) == [2]
    assert queue.low()[0][0] is line


def test_a_line_that_is_being_filled_is_not_spilled() -> None:
    queue = filled(task_at(1), task_at(2))
    line = queue.line(5, "a")
    line.loading = True
    assert line.spill() == [] and line.hot == 2


@pytest.fixture
def narrow_queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """One line with two hot tasks (1, 2) and two cold ones (3, 4)."""
    monkeypatch.setattr(line_module, "LINE_HOT_MIN", 2)
    return filled(*(task_at(position) for position in range(1, 5)), bytes_max=0)


@pytest.fixture
def narrow_line(narrow_queue: Queue) -> Line:
    return narrow_queue.line(5, "a")


def test_an_arrival_goes_cold_while_the_tail_is_not_empty(narrow_line: Line) -> None:
    narrow_line.remove(narrow_line.tasks[0])
    late = task_at(5)
    narrow_line.add(late)
    assert not late.hot
    assert narrow_line.cold == 3


def test_nothing_overtakes_a_cold_head(narrow_queue: Queue) -> None:
    queue = narrow_queue
    queue.extend([task_at(9, "b")])
    assert taken(queue, 9) == [1, 2]
    assert taken(queue, 9, frozenset({"b"})) == [9]


def test_a_line_that_runs_low_is_asked_for_once(narrow_queue: Queue, narrow_line: Line) -> None:
    queue = narrow_queue
    assert queue.low() == []
    narrow_line.remove(narrow_line.tasks[0])
    assert queue.low() == [(narrow_line, 2)]
    narrow_line.loading = True
    assert queue.low() == []


def test_a_line_is_filled_far_ahead_while_there_is_room_but_not_with_more_bytes_than_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "LOAD_TASKS", 50)
    queue = Queue("q", Budget(1_000_000))
    queue.restore(5, "a", 1_000)
    queue.bytes = 1_000
    line = queue.line(5, "a")
    assert queue.low() == [(line, 50)]
    queue.bytes = 1_000 * (1 << 20)
    assert queue.low() == [(line, 15)]
    queue.bytes = 1_000 * (64 << 20)
    assert queue.low() == [(line, 1)]


def test_the_tasks_of_many_lost_workers_come_back_in_no_time() -> None:
    tasks = [task_at(position) for position in range(1, 20_001)]
    queue = filled(*tasks)
    assert len(taken(queue, len(tasks))) == len(tasks)
    random.Random(1).shuffle(tasks)
    began = process_time()
    for task in tasks:
        queue.move(task, PENDING)
    assert process_time() - began < 2
    assert taken(queue, len(tasks)) == list(range(1, 20_001))


def test_many_types_cost_no_more_than_one() -> None:
    queue = filled(*(task_at(position, f"type-{position}") for position in range(1, 10_001)))
    types = frozenset(f"type-{position}" for position in range(1, 10_001))
    taken(queue, 1, types)
    began = process_time()
    assert taken(queue, 10_000, types) == list(range(2, 10_001))
    assert process_time() - began < 1


def test_a_picker_goes_by_priority_and_position_whatever_comes_and_goes() -> None:
    rng = random.Random(12)
    names = [f"type-{number}" for number in range(8)]
    types = [frozenset(rng.sample(names, rng.randint(1, 8))) for _ in range(4)]
    queue, pending, running = Queue("q", Budget(1 << 30)), {}, []
    for position in range(1, 2_000):
        if rng.random() < 0.6:
            task = task_at(position, rng.choice(names), rng.choice([0, 5, 9]))
            queue.extend([task])
            pending[task.position] = task
        elif running and rng.random() < 0.3:
            task = running.pop(rng.randrange(len(running)))
            queue.move(task, PENDING)
            pending[task.position] = task
        elif pending and rng.random() < 0.2:
            queue.move(pending.pop(rng.choice(list(pending))), CANCELLED)
        else:
            mine, count = rng.choice(types), rng.randint(1, 9)
            able = [task for task in pending.values() if task.options.task_type in mine]
            able.sort(key=lambda task: (task.options.priority, task.position))
            got = queue.picker(mine).pick(count)
            assert got == able[:count]
            for task in got:
                queue.move(task, RUNNING)
                running.append(pending.pop(task.position))
