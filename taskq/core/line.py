"""A ready line: the pending tasks of one queue with the same priority and task type, in the order of their positions.

A FIFO of hot tasks in memory, then a cold tail in the store, known by count.  Every hot position is lower than every cold one: an arrival goes cold
if the tail is not empty or the memory budget is spent.  Beyond the budget a line may have a few hot tasks (LINE_HOT_MIN, LINE_HOT_BYTES), so that who
works on it need not wait for the store, until all lines together have BEYOND_BYTES more than the budget: then whatever comes goes cold.  A task that
leaves the line from the middle (a cancel) stays in the FIFO as a dead entry (`hot` is false) until it comes to the head.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator
from operator import attrgetter

import attrs

from taskq.core.task import Task

TASK_BYTES = 500
LINE_HOT_MIN, LINE_HOT_BYTES = 1_000, 1 << 20
BEYOND_BYTES = 64 << 20
BATCH_BYTES = 1 << 20
POSITION = attrgetter("position")


@attrs.define
class Budget:
    """The bytes that all hot pending tasks of a broker may take, and do.  `tight`: the process has no memory for them, whatever the budget says."""

    bytes_max: int
    bytes_used: int = 0
    tight: bool = False

    @property
    def has_room(self) -> bool:
        return self.bytes_used < self.bytes_max and not self.tight

    @property
    def is_overdrawn(self) -> bool:
        """Not even a few tasks of a line may be hot beyond the budget."""
        return self.tight or self.bytes_used >= self.bytes_max + BEYOND_BYTES


@attrs.define(eq=False)
class Line:
    """`hot_bytes`: what its hot tasks take.  `passed`: no task of the cold tail has a position up to this one."""

    queue: str
    priority: int
    task_type: str
    budget: Budget
    tasks: deque[Task] = attrs.field(factory=deque)
    hot: int = 0
    hot_bytes: int = 0
    waiting: int = 0
    loading: bool = False
    passed: int = 0
    number: int = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands among the lines of its queue: no waiting task of it has a lower position."""
        return self.priority, self.tasks[0].position if self.hot else self.passed + 1, self.number

    @property
    def cold(self) -> int:
        return self.waiting - self.hot

    @property
    def has_few(self) -> bool:
        """It may have one more hot task although the budget is spent."""
        return self.hot < LINE_HOT_MIN and self.hot_bytes < LINE_HOT_BYTES and not self.budget.is_overdrawn

    def add(self, task: Task) -> None:
        """A task became pending."""
        self.waiting += 1
        if self.waiting - self.hot > 1:
            return
        if self.budget.has_room or self.has_few:
            self._append(task)
        else:
            self.passed = task.position - 1

    def extend(self, tasks: list[Task]) -> None:
        """The same for several, in their order."""
        size = TASK_BYTES * len(tasks) + sum([len(task.payload) for task in tasks])
        if self.waiting != self.hot or not self.budget.has_room or self.budget.bytes_used + size > self.budget.bytes_max:
            for task in tasks:
                self.add(task)
            return
        for task in tasks:
            task.hot = True
        self.waiting += len(tasks)
        self.hot += len(tasks)
        self._takes(size)
        self.tasks.extend(tasks)

    def give_back(self, task: Task) -> None:
        """A task that had left the head is pending again, at its old position; it stays hot."""
        self.waiting += 1
        self._append(task)
        tasks = self.tasks
        tasks.pop()
        tasks.insert(bisect(tasks, task.position, key=POSITION), task)

    def load(self, task: Task) -> None:
        """The next task of the cold tail came from the store; it was counted before."""
        self.passed = task.position
        self._append(task)

    def _append(self, task: Task) -> None:
        task.hot = True
        self.hot += 1
        self._takes(TASK_BYTES + len(task.payload))
        self.tasks.append(task)

    def _takes(self, size: int) -> None:
        self.hot_bytes += size
        self.budget.bytes_used += size

    def remove(self, task: Task) -> None:
        """A pending task leaves the line, from wherever it is."""
        self.waiting -= 1
        if task.hot:
            task.hot = False
            self.hot -= 1
            self._takes(-TASK_BYTES - len(task.payload))
        self._drop_dead()

    def take_out(self, task: Task) -> None:
        """The same for a hot task that may come back: it leaves no dead entry, which would come to life with it."""
        self.tasks.remove(task)
        self.remove(task)

    def remove_all(self, tasks: list[Task]) -> None:
        """The same for several."""
        hot = [task for task in tasks if task.hot]
        for task in hot:
            task.hot = False
        self.waiting -= len(tasks)
        self.hot -= len(hot)
        self._takes(-TASK_BYTES * len(hot) - sum([len(task.payload) for task in hot]))
        self._drop_dead()

    def _drop_dead(self) -> None:
        tasks = self.tasks
        while tasks and not tasks[0].hot:
            tasks.popleft()

    def spill(self, kept_until: int = 0) -> list[Task]:
        """Its hot tasks become cold, to give memory back, but for the first and those up to this position: one that stands there may come back, and
        is hot then.  Not while some are on their way from the store."""
        if self.loading or self.hot < 2:
            return []
        tasks = list(self.live())
        count = max(1, bisect(tasks, kept_until, key=POSITION))
        kept, rest = tasks[:count], tasks[count:]
        for task in rest:
            task.hot = False
            self._takes(-TASK_BYTES - len(task.payload))
        if rest:
            self.tasks = deque(kept)
            self.hot, self.passed = count, kept[-1].position
        return rest

    def live(self) -> Iterator[Task]:
        """Its hot tasks, in order."""
        return (task for task in self.tasks if task.hot)

    def peek(self, count: int) -> list[Task]:
        """The first tasks of the line: at most `count`, and no more than BATCH_BYTES of payload unless it is one task."""
        found: list[Task] = []
        room = BATCH_BYTES
        for task in self.tasks:
            if len(found) == count or room <= 0:
                break
            if task.hot:
                found.append(task)
                room -= len(task.payload)
        return found
