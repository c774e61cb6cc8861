"""A queue: its ready lines, its counts by state, and the bytes of its unfinished tasks.

Tasks that have to run alone (see alone.py) wait in a line `apart`, of all priorities and types, whose tasks are all hot.
"""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter

import attrs

from taskq.core import line as lines
from taskq.core.line import Budget, Line
from taskq.core.pace import WAITING_MIN, Pace
from taskq.core.picker import Picker
from taskq.core.task import CLEAN, COMPLETED, CRASHES_ALONE, PENDING, RETRYING, RUNNING, STATES, Options, Task, move_all

LOAD_TASKS = 20_000
LOAD_BYTES = 16 << 20
PICKERS_MAX = 64
CRASHES, OPTIONS = attrgetter("crashes"), attrgetter("options")


@attrs.define(eq=False)
class Queue:
    """`bytes`: the payloads of its unfinished tasks; `bytes_taken`: the same when a flush last asked.  `pace`: None while few tasks wait.
    `pickers`: by the task types of those who asked.  `tails`: the lines that may have cold tasks.  `bringer`: see names.py."""

    name: str
    budget: Budget
    lines: dict[tuple[int, str], Line] = attrs.field(factory=dict)
    counts: list[int] = attrs.field(factory=lambda: [0] * len(STATES))
    bytes: int = 0
    bytes_taken: int = 0
    pace: Pace | None = None
    pickers: dict[frozenset[str], Picker] = attrs.field(factory=dict)
    tails: dict[Line, None] = attrs.field(factory=dict)
    bringer: str = ""
    apart: Line = attrs.field(init=False)
    _options: Options | None = None
    _line: Line | None = None

    def __attrs_post_init__(self) -> None:
        self.apart = Line(self.name, 0, "", self.budget)

    def line(self, priority: int, task_type: str) -> Line:
        line = self.lines.get((priority, task_type))
        if line is None:
            line = self.lines[priority, task_type] = Line(self.name, priority, task_type, self.budget, number=len(self.lines))
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
            self._leave(task)
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
            self._grown(line)

    def _leave(self, task: Task) -> None:
        """A pending task leaves its line, or those that wait apart."""
        if task.crashes >= CRASHES_ALONE and task.hot:
            self.apart.take_out(task)
        else:
            self.line_of(task).remove(task)

    def excuse(self, task: Task, cause: str) -> None:
        """One crash of the task is none any more, so it need not wait apart for it."""
        waits_apart = task.state == PENDING and task.hot and task.crashes >= CRASHES_ALONE
        if waits_apart:
            self.apart.take_out(task)
        task.excuse(cause)
        if waits_apart and task.crashes >= CRASHES_ALONE:
            self.apart.give_back(task)
        elif waits_apart:
            line = self.line_of(task)
            line.give_back(task)
            self._grown(line)

    def extend(self, tasks: list[Task]) -> None:
        """New tasks are pending."""
        self.counts[PENDING] += len(tasks)
        for options, group in groupby(tasks, OPTIONS):
            line = self.line(options.priority, options.task_type)
            line.extend(list(group))
            self._grown(line)

    def restore(self, priority: int, task_type: str, tasks: int) -> None:
        """At start: so many cold tasks wait."""
        self.counts[PENDING] += tasks
        line = self.line(priority, task_type)
        line.waiting += tasks
        self._grown(line)

    def _grown(self, line: Line) -> None:
        """Tasks have come to this line: its head or its tail may be new."""
        if line.hot != line.waiting:
            self.tails[line] = None
        for picker in self.pickers.values():
            if line.task_type in picker.task_types:
                picker.offer(line)

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

    def spill(self, line: Line, kept_until: int = 0) -> list[Task]:
        """Its tasks behind this position but for the first become cold.  Those of them that the store has can leave memory now, the others will with
        their flush."""
        tasks = line.spill(kept_until)
        if tasks:
            self.tails[line] = None
        return [task for task in tasks if task.dirty == CLEAN]

    def picker(self, task_types: frozenset[str]) -> Picker:
        """For those who run these types."""
        picker = self.pickers.get(task_types)
        if picker is None:
            if len(self.pickers) >= PICKERS_MAX:
                del self.pickers[next(iter(self.pickers))]
            picker = self.pickers[task_types] = Picker.of(task_types, self.lines.values())
        return picker

    def low(self) -> list[tuple[Line, int]]:
        """The lines that should be filled from their cold tail, and with how many tasks: while there is room, no worker is to wait for the store."""
        has_room = self.budget.has_room
        tasks, size = (LOAD_TASKS, LOAD_BYTES) if has_room else (min(LOAD_TASKS, lines.LINE_HOT_MIN), lines.LINE_HOT_BYTES)
        for line in [line for line in self.tails if not line.cold]:
            del self.tails[line]
        low = [line for line in self.tails if not line.loading and (line.hot < tasks if has_room else line.has_few or not line.hot)]
        return [(line, max(1, min(tasks, size * self.length // (self.bytes + 1)))) for line in low]
