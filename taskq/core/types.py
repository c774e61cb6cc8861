"""Task types: the options of their functions, as workers declare them, so that they hold for tasks that are enqueued by name.

The last declaration of a type counts, from whichever worker it came, until the next one.  What a request says itself wins; that is up to the door
through which it comes (`gateway/enqueue.py`, `client.py`), since the queue decides about the id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from taskq.core import messages as m
from taskq.core.enqueue import COLUMNS, NAME, NAME_RULE, TASKS_MAX
from taskq.core.records import column
from taskq.errors import BadRequest

TYPES_MAX = 10_000


@attrs.frozen
class TaskType:
    """`retry` None: the broker's default.  `worker` and `declared_ms`: who declared it so first, and when."""

    name: str
    queue: str = m.DEFAULT_QUEUE
    priority: int = m.DEFAULT_PRIORITY
    max_attempts: int = m.DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = 0
    retry: tuple[int, float, int] | None = None
    worker: str = ""
    declared_ms: int = 0

    def dump(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def load(cls, fields: dict[str, Any]) -> TaskType:
        """From `dump`, also when it has been JSON meanwhile.  ValueError or TypeError if it is none."""
        retry = fields.get("retry")
        return cls(**{**fields, "retry": None if retry is None else tuple(retry)})

    @property
    def options(self) -> tuple[Any, ...]:
        return self.queue, self.priority, self.max_attempts, self.timeout_ms, self.retry


class Types(dict[str, TaskType]):
    """By name."""

    def declare(self, found: Iterable[TaskType]) -> bool:
        """Whether anything is new.  Raises BadRequest when there would be too many."""
        news = {each.name: each for each in found if each.name not in self or self[each.name].options != each.options}
        if len(self.keys() | news.keys()) > TYPES_MAX:
            rule = f"the broker keeps {TYPES_MAX:,} declared types; use fewer names, with what differs in the payload"
            raise BadRequest(f"task_types: {rule}", field="task_types")
        self.update(news)
        return bool(news)


def declared(message: m.Declare, worker: str, now_ms: int) -> list[TaskType]:
    """The task types of a message.  Raises BadRequest."""
    count = len(message.task_types)
    if count > TASKS_MAX:
        raise BadRequest(f"task_types: a frame declares at most {TASKS_MAX:,} types, not {count:,}", field="task_types")
    for field in ("task_types", "queues"):
        if any(not NAME.fullmatch(name) for name in getattr(message, field)):
            raise BadRequest(f"{field}: must be {NAME_RULE}", field=field)
    columns = []
    for field in ("queues", "priorities", "max_attempts", "timeouts_ms", "retries"):
        values = getattr(message, field)
        if len(values) not in (1, count):
            raise BadRequest(f"{field}: needs 1 entry or one for each of the {count} task types, not {len(values)}", field=field)
        is_good, rule = COLUMNS.get(field, (None, ""))
        if is_good is not None and not all(map(is_good, values)):
            raise BadRequest(f"{field}: {rule}", field=field)
        columns.append(column(values, count))
    rows = zip(message.task_types, *columns, strict=True)
    return [
        TaskType(name, queue, priority, attempts, timeout_ms, None if retry is None else tuple(retry), worker, now_ms)
        for name, queue, priority, attempts, timeout_ms, retry in rows
    ]
