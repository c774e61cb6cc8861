"""A ready line: the pending tasks of one queue with the same priority and task type, in the order of their positions.

A FIFO of hot tasks in memory, then a cold tail in the store, known by count.  Every hot position is lower than every cold one: an arrival goes cold
if the tail is not empty or the memory budget is spent.  A task that leaves the line from the middle (a cancel) stays in the FIFO as a dead entry
(`hot` is false) until it comes to the head.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Iterator
from operator import attrgetter

import attrs

from taskq.core.task import Task

TASK_BYTES = 500
LINE_HOT_MIN = 1_000
BATCH_BYTES = 1 << 20
POSITION = attrgetter("position")


@attrs.define
class Budget:
    """The bytes that all hot pending tasks of a broker may take; a line may always hold LINE_HOT_MIN tasks."""

    bytes_max: int
    bytes_used: int = 0


@attrs.define(eq=False)
class Line:
    """`passed`: no task of the cold tail has a position up to this one."""

    queue: str
    priority: int
    task_type: str
    budget: Budget
    tasks: deque[Task] = attrs.field(factory=deque)
    hot: int = 0
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

    def add(self, task: Task) -> None:
        """A task became pending."""
        self.waiting += 1
        if self.waiting - self.hot > 1:
            return
        if self.hot < LINE_HOT_MIN or self.budget.bytes_used < self.budget.bytes_max:
            self._append(task)
        else:
            self.passed = task.position - 1

    def extend(self, tasks: list[Task]) -> None:
        """The same for several, in their order."""
        size = TASK_BYTES * len(tasks) + sum([len(task.payload) for task in tasks])
        if self.waiting != self.hot or self.budget.bytes_used + size > self.budget.bytes_max:
            for task in tasks:
                self.add(task)
            return
        for task in tasks:
            task.hot = True
        self.waiting += len(tasks)
        self.hot += len(tasks)
        self.budget.bytes_used += size
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
        self.budget.bytes_used += TASK_BYTES + len(task.payload)
        self.tasks.append(task)

    def remove(self, task: Task) -> None:
        """A pending task leaves the line, from wherever it is."""
        self.waiting -= 1
        if task.hot:
            task.hot = False
            self.hot -= 1
            self.budget.bytes_used -= TASK_BYTES + len(task.payload)
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
        self.budget.bytes_used -= TASK_BYTES * len(hot) + sum([len(task.payload) for task in hot])
        self._drop_dead()

    def _drop_dead(self) -> None:
        tasks = self.tasks
        while tasks and not tasks[0].hot:
            tasks.popleft()

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
