"""A queue and its ready lines.

A *line* is the pending tasks of one queue with the same priority and task type, in the order of their positions: a FIFO of hot tasks in
memory, then a cold tail in the store, known by count.  Every hot position is lower than every cold one: an arrival goes cold if the tail is
not empty or the memory budget is spent.  A task that leaves the line from the middle (a cancel) stays in the FIFO as a dead entry (`hot` is
false) until it comes to the head.

Tasks that have to run alone (see alone.py) wait in a line `apart`, of all priorities and types, whose tasks are all hot.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Collection, Iterator
from itertools import groupby
from operator import attrgetter

import attrs

from taskq.core.pace import WAITING_MIN, Pace
from taskq.core.task import COMPLETED, CRASHES_ALONE, PENDING, RETRYING, RUNNING, STATES, Options, Task, move_all

TASK_BYTES = 500
LINE_HOT_MIN = 1_000
LOAD_TASKS = 20_000
LOAD_BYTES = 16 << 20
BATCH_BYTES = 1 << 20
POSITION = attrgetter("position")
CRASHES, OPTIONS = attrgetter("crashes"), attrgetter("options")


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

    def peek(self, count: int, below_position: int) -> list[Task]:
        """The first tasks of the line: at most `count`, all below the position, and no more than BATCH_BYTES of payload unless it is one task."""
        found: list[Task] = []
        room = BATCH_BYTES
        for task in self.tasks:
            if len(found) == count or task.position >= below_position or room <= 0:
                break
            if task.hot:
                found.append(task)
                room -= len(task.payload)
        return found


NO_POSITION = 1 << 62


@attrs.define(eq=False)
class Queue:
    """`bytes`: the payloads of its unfinished tasks; `bytes_taken`: the same when a flush last asked.  `pace`: None while few tasks wait."""

    name: str
    budget: Budget
    lines: dict[tuple[int, str], Line] = attrs.field(factory=dict)
    counts: list[int] = attrs.field(factory=lambda: [0] * len(STATES))
    bytes: int = 0
    bytes_taken: int = 0
    pace: Pace | None = None
    apart: Line = attrs.field(init=False)
    _options: Options | None = None
    _line: Line | None = None

    def __attrs_post_init__(self) -> None:
        self.apart = Line(self.name, 0, "", self.budget)

    def line(self, priority: int, task_type: str) -> Line:
        line = self.lines.get((priority, task_type))
        if line is None:
            line = self.lines[priority, task_type] = Line(self.name, priority, task_type, self.budget)
        return line

    def shared(self, options: Options) -> Options:
        """The same options as one object with those of the task before, if they are equal: then they are compared at no cost."""
        known = self._options
        if known is not None and known == options:
            return known
        self._options, self._line = options, self.line(options.priority, options.task_type)
        return options

    def line_of(self, task: Task) -> Line:
        """The task's line; nearly always that of the task before, which came in the same frame and shares its options."""
        options = task.options
        if options is not self._options or self._line is None:
            self._options, self._line = options, self.line(options.priority, options.task_type)
        return self._line

    def move(self, task: Task, state: int) -> None:
        """Change a task's state and keep the counts and the line right."""
        before = task.state
        if before == PENDING:
            (self.apart if task.crashes >= CRASHES_ALONE and task.hot else self.line_of(task)).remove(task)
        self.counts[before] -= 1
        task.move(state)
        self.counts[state] += 1
        if state > RETRYING:
            self.bytes -= len(task.payload)
        elif before > RETRYING:
            self.bytes += len(task.payload)
        if state == PENDING and task.crashes >= CRASHES_ALONE:
            self.apart.give_back(task)
        elif state == PENDING:
            line = self.line_of(task)
            line.give_back(task) if before == RUNNING else line.add(task)

    def extend(self, tasks: list[Task]) -> None:
        """New tasks are pending."""
        self.counts[PENDING] += len(tasks)
        for options, group in groupby(tasks, OPTIONS):
            self.line(options.priority, options.task_type).extend(list(group))

    def start(self, tasks: list[Task]) -> None:
        """`move` to running, for pending tasks."""
        if max(map(CRASHES, tasks)) >= CRASHES_ALONE:
            for task in tasks:
                self.move(task, RUNNING)
            return
        for options, group in groupby(tasks, OPTIONS):
            self.line(options.priority, options.task_type).remove_all(list(group))
        move_all(tasks, PENDING, RUNNING)
        self.counts[PENDING] -= len(tasks)
        self.counts[RUNNING] += len(tasks)

    def complete(self, tasks: list[Task]) -> None:
        """`move` to completed, for running tasks."""
        move_all(tasks, RUNNING, COMPLETED)
        self.counts[RUNNING] -= len(tasks)
        self.counts[COMPLETED] += len(tasks)
        self.bytes -= sum([len(task.payload) for task in tasks])

    @property
    def length(self) -> int:
        """Its unfinished tasks; the states that are not final come first."""
        return sum(self.counts[: RETRYING + 1])

    def holds(self, now_ms: int) -> bool:
        """Whether new tasks have to wait for those before them; see pace.py."""
        waiting, finished = self.counts[PENDING], self.counts[COMPLETED]
        if waiting < WAITING_MIN:
            self.pace = None
            return False
        if self.pace is None:
            self.pace = Pace(finished, now_ms, now_ms)
        return self.pace.holds(waiting, finished, now_ms)

    def load(self, line: Line, task: Task) -> None:
        """The next task of the line's cold tail came from the store; it was counted before."""
        if task.crashes >= CRASHES_ALONE:
            line.waiting -= 1
            line.passed = task.position
            self.apart.give_back(task)
        else:
            line.load(task)

    def ready(self, task_types: Collection[str]) -> list[Line]:
        """The lines with waiting tasks of these types, most urgent priority first."""
        found = [line for line in self.lines.values() if line.waiting and line.task_type in task_types]
        if len(found) > 1:
            found.sort(key=lambda line: line.priority)
        return found

    def pick(self, task_types: Collection[str], count: int) -> Iterator[list[Task]]:
        """The next tasks for a consumer that runs these types, in order: by priority, then by position over all types.  Stops early at a line
        whose head is cold, since nothing may overtake it.  The caller takes each list out of its line before it asks for the next."""
        lines = self.ready(task_types)
        while lines and count > 0:
            urgent = [line for line in lines if line.priority == lines[0].priority]
            if any(not line.hot for line in urgent):
                return
            urgent.sort(key=lambda line: line.tasks[0].position)
            limit = urgent[1].tasks[0].position if len(urgent) > 1 else NO_POSITION
            tasks = urgent[0].peek(count, limit)
            count -= len(tasks)
            yield tasks
            lines = [line for line in lines if line.waiting]

    def low(self) -> list[tuple[Line, int]]:
        """The lines that should be filled from their cold tail, and with how many tasks: while there is room, no worker is to wait for the store."""
        tasks = LOAD_TASKS if self.budget.bytes_used < self.budget.bytes_max else min(LOAD_TASKS, LINE_HOT_MIN)
        low = [line for line in self.lines.values() if line.cold and not line.loading and line.hot < tasks]
        return [(line, max(1, min(tasks, LOAD_BYTES * self.length // (self.bytes + 1)))) for line in low]
