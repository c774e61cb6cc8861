"""The picker: in which order the tasks of one queue leave for those who run certain task types.

By priority, then by position over all types.  The lines stand in a heap by the place of their heads.  A place in the heap may be too good, since
tasks have left the line meanwhile: then it is put right when it comes to the top.  It is never too bad, since whoever puts a task at the head of a
line offers the line again.  So picking costs what is picked, however many types wait.

Nothing overtakes a task of the same line, so where the most urgent line has only cold tasks, nothing leaves before the store has brought them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import TypeAlias

import attrs

from taskq.core import line as lines
from taskq.core.line import Line
from taskq.core.task import Task

# priority, position of the head, number of the line
Place: TypeAlias = tuple[int, int, int]


@attrs.define(eq=False)
class Picker:
    """`places`: of each line that has waiting tasks, the place in the heap that counts."""

    task_types: frozenset[str]
    heap: list[tuple[Place, Line]]
    places: dict[Line, Place]

    @classmethod
    def of(cls, task_types: frozenset[str], lines: Iterable[Line]) -> Picker:
        places = {line: line.place for line in lines if line.waiting and line.task_type in task_types}
        heap = [(place, line) for line, place in places.items()]
        heapify(heap)
        return cls(task_types, heap, places)

    def offer(self, line: Line) -> None:
        """The line has a new head, or is not in the heap for the moment."""
        place, known = line.place, self.places.get(line)
        if known is None or place < known:
            self.places[line] = place
            heappush(self.heap, (place, line))

    def first(self) -> Line | None:
        """The most urgent line."""
        heap, places = self.heap, self.places
        while heap:
            place, line = heap[0]
            if places.get(line) != place:
                heappop(heap)
            elif not line.waiting:
                heappop(heap)
                del places[line]
            elif (now := line.place) != place:
                places[line] = now
                heapreplace(heap, (now, line))
            else:
                return line
        return None

    def pick(self, count: int) -> list[Task]:
        """The next tasks: at most `count`, and no more than BATCH_BYTES of payload unless it is one task.  The caller takes them out of their
        lines before it asks again."""
        line = self.first()
        if line is None or not line.hot:
            return []
        if len(self.places) == 1:
            return line.peek(count)
        return self._merge(count)

    def _merge(self, count: int) -> list[Task]:
        """Over several lines.  Those that were opened are offered again in the end, at the places that they have until the caller takes the tasks."""
        found: list[Task] = []
        opened: list[tuple[Place, Line, Iterator[Task], Task | None]] = []
        done: list[Line] = []
        room = lines.BATCH_BYTES
        while len(found) < count and room > 0:
            line = self.first()
            if line is not None and (not opened or line.place < opened[0][0]):
                heappop(self.heap)
                del self.places[line]
                tasks = line.live()
                heappush(opened, (line.place, line, tasks, next(tasks, None)))
            if not opened:
                break
            (priority, _, number), line, tasks, task = opened[0]
            if task is None:
                break  # what comes next is cold
            found.append(task)
            room -= len(task.payload)
            task = next(tasks, None)
            if task is not None:
                heapreplace(opened, ((priority, task.position, number), line, tasks, task))
            elif line.cold:
                heapreplace(opened, ((priority, line.passed + 1, number), line, tasks, None))
            else:
                done.append(heappop(opened)[1])
        for line in [*done, *(entry[1] for entry in opened)]:
            self.offer(line)
        return found
