"""The book of a shard: its state, and what the nouns (enqueue, grant, report, cancel, lease …) share to read and change it.

It decides nothing and writes no record.  `Shard` adds the turn and the tables.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import count, groupby
from operator import attrgetter
from struct import unpack
from typing import Any, TypeAlias

import attrs

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.admission import Admission, Limits, full
from taskq.core.consumer import Consumer, Consumers
from taskq.core.followers import Crew, Followers, Key
from taskq.core.idtime import IdTime
from taskq.core.line import TASK_BYTES, Budget
from taskq.core.names import Names
from taskq.core.queue import Queue
from taskq.core.recent import Recent
from taskq.core.task import CRASHES_ALONE, DIRTY, FAILED, PENDING, RUNNING, TAKEN, TIMED, InvariantError, Task
from taskq.errors import Answer
from taskq.ids import SLOTS, slot_of_queue

SESSION = attrgetter("session")
# so many queues of a shard are kept even if they are empty
QUEUES_MANY = 100
# horizons (see horizon.py): all timed tasks are near, and none
EVERYTHING, NOTHING = (1 << 62, 0), (0, 0)

# what a decide function gives: records, and a message to answer with (or a FindLoad: decide again when the store has answered)
Decision: TypeAlias = tuple[list[Any], Any]


class Sequence64:
    """A rising number, shared by the shards of a broker."""

    def __init__(self, following: int) -> None:
        self.following = following

    def take(self, count: int) -> int:
        """The first of `count` new numbers."""
        first = self.following
        self.following += count
        return first


def _without_flush(task: Task) -> None:
    raise InvariantError(f"task {task.id.hex()} was taken by a flush that never made its row")


@attrs.define(eq=False)
class Shared:
    """What the shards of one broker share.  `names`: of the queues of all shards.  `held`: the leases of the sessions, by shard.  `alone`:
    see alone.py.  `crews` and `turns`: see followers.py.  `before_change` is called with a task that a flush has taken, before it changes."""

    sequence: Sequence64
    tokens: Sequence64
    budget: Budget
    rng: random.Random
    limits: Limits = attrs.field(factory=Limits)
    consumers: Consumers = attrs.field(factory=dict)
    held: dict[int, dict[bytes, dict[int, Task]]] = attrs.field(factory=dict)
    alone: dict[bytes, Task] = attrs.field(factory=dict)
    crews: dict[Key, dict[int, Crew]] = attrs.field(factory=dict)
    turns: count[int] = attrs.field(factory=count)
    admission: Admission = attrs.field(factory=Admission)
    durability: int = m.FSYNC
    ids: IdTime = attrs.field(factory=IdTime)
    recent: Recent = attrs.field(factory=Recent)
    names: Names = attrs.field(init=False)
    before_change: Callable[[Task], None] = _without_flush

    def __attrs_post_init__(self) -> None:
        self.names = Names(self.limits.queues_max)


class Book:
    def __init__(self, index: int, count: int, shared: Shared) -> None:
        self.index = index
        self.count = count
        self.shared = shared
        self.sequence, self.tokens, self.rng = shared.sequence, shared.tokens, shared.rng
        self.limits, self.consumers, self.admission = shared.limits, shared.consumers, shared.admission
        self.durability = shared.durability
        self.tasks: dict[bytes, Task] = {}
        self.keys: dict[tuple[str, str], Task] = {}
        self.queues: dict[str, Queue] = {}
        self.idle: dict[str, None] = {}
        self.held: dict[bytes, dict[int, Task]] = {}
        shared.held[index] = self.held
        self.alone = shared.alone
        self.followers = Followers(index, self.queues, shared.crews, shared.turns)
        self.offered: list[fx.Offer] = []
        self.grants_left = 0
        self.waiters: dict[bytes, list[fx.Command]] = {}
        self.timers: list[tuple[int, int, Any]] = []
        self.dead_timers = 0
        self.horizon = EVERYTHING
        self.far: dict[bytes, Task] = {}
        self.near = 0
        self.is_loading_due = False
        self.touched: dict[str, None] = {}
        self.held_back: dict[Consumer, None] = {}
        self.dirty: list[Task] = []
        self.taken: list[Task] = []
        self.flushes = 0
        self._in_flush: tuple[int, frozenset[Task]] = (0, frozenset())
        self.suspects: set[bytes] = set()
        self.steady_ms = 0
        self.pass_ms = 0
        self.gap_until_ms = 0
        self.effects = fx.Effects()
        self._ties = 0

    # ---- what the nouns share --------------------------------------------------------------------------------------------------------

    @property
    def id_ms(self) -> int:
        """The time of ids, now."""
        return self.shared.ids.now_ms(self.steady_ms)

    def owns_slot(self, slot: int) -> bool:
        return slot * self.count // SLOTS == self.index

    def owns_queue(self, name: str) -> bool:
        return self.owns_slot(slot_of_queue(name))

    def queue(self, name: str, bringer: str = "") -> Queue:
        """The queue; a new one counts for who brought it (names.py)."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name, self.shared.budget, bringer=bringer)
            self.idle[name] = None
            self.shared.names.add(bringer)
        return queue

    def refusal(self, name: str, tasks: int, payload_bytes: int, bringer: str) -> Answer | None:
        """Why this queue may not get so many new tasks, with so much payload, from somebody with this token ("": none)."""
        refusal = self.admission.refusal
        if refusal is not None:
            return refusal
        queue = self.queues.get(name)
        if queue is not None:
            return full(self.limits, name, queue.length + tasks, queue.bytes + payload_bytes)
        return self.shared.names.refusal(bringer) or full(self.limits, name, tasks, payload_bytes)

    @staticmethod
    def unpack_tokens(block: bytes, count: int) -> tuple[int, ...]:
        return unpack(f">{count}Q", block)

    def touch(self, task: Task) -> None:
        """The task is about to change, or is new: its row in the store falls behind.  A flush that still has to make its row makes it now."""
        if task.dirty != DIRTY:
            if task.dirty == TAKEN:
                self.shared.before_change(task)
            task.dirty = DIRTY
            self.dirty.append(task)

    def touch_all(self, tasks: Iterable[Task]) -> None:
        """The same for several, most of which are behind already."""
        for task in tasks:
            if task.dirty != DIRTY:
                self.touch(task)

    def take_dirty(self) -> list[Task]:
        """The tasks whose rows are behind, for a flush: it makes their rows as they are now, in its own time (`Shared.before_change`)."""
        self.flushes += 1
        self.taken, self.dirty = self.dirty, []
        for task in self.taken:
            task.dirty = TAKEN
        return self.taken

    def end_flush(self, flush: int) -> frozenset[Task]:
        """This flush is committed.  What a newer one has taken, which is not."""
        if flush == self.flushes:
            self.taken, self._in_flush = [], (flush, frozenset())
        elif self._in_flush[0] != self.flushes:
            self._in_flush = self.flushes, frozenset(self.taken)
        return self._in_flush[1]

    def take_sizes(self) -> dict[str, int]:
        """For the flush that has just taken the dirty tasks: the bytes of the queues where they changed, which is where tasks did."""
        queues = map(self.queues.get, {task.queue for task in self.taken})
        changed = [queue for queue in queues if queue is not None and queue.bytes != queue.bytes_taken]
        for queue in changed:
            queue.bytes_taken = queue.bytes
        return {queue.name: queue.bytes for queue in changed}

    def forget_queues(self, names: Iterable[str]) -> None:
        """Leave out those of these queues that have nothing, once there are many or names are scarce; a flush has taken their sizes."""
        self.idle.update(dict.fromkeys(names))
        if len(self.queues) <= QUEUES_MANY and not self.shared.names.is_scarce():
            return
        idle, self.idle = self.idle, {}
        for name in idle:
            queue = self.queues.get(name)
            if queue is not None and not (queue.length or queue.counts[FAILED] or queue.bytes != queue.bytes_taken):
                del self.queues[name]
                self.shared.names.drop(queue.bringer)

    def leases_of(self, session: bytes) -> int:
        """The tasks that a session has, of all shards."""
        return sum([len(held[session]) for held in self.shared.held.values() if session in held])

    def let_go(self, tasks: Iterable[Task]) -> None:
        """The leases of these tasks end."""
        for session, group in groupby(tasks, SESSION):
            held = self.held.get(session, {})
            for task in group:
                held.pop(task.token, None)
                task.drop_lease()
            if not held:
                self.held.pop(session, None)

    def held_drop(self, task: Task) -> None:
        held = self.held.get(task.session)
        if held is not None:
            held.pop(task.token, None)
            if not held:
                del self.held[task.session]

    def received_of(self, session: bytes) -> int:
        """The deliveries that a session has confirmed; all of them if it is known only from before a restart."""
        consumer = self.consumers.get(session)
        return 1 << 62 if consumer is None or consumer.restored else consumer.received

    def set_timer(self, due_ms: int, what: Any) -> None:
        self._ties += 1
        heapq.heappush(self.timers, (due_ms, self._ties, what))

    def become_timed(self, task: Task) -> None:
        """It has a timer, or is far: see horizon.py."""
        if (task.due_ms, task.seq) <= self.horizon:
            self.come_near(task)
        else:
            self.far[task.id] = task

    def come_near(self, task: Task) -> None:
        task.hot = True
        self.near += 1
        self.shared.budget.bytes_used += TASK_BYTES + len(task.payload)
        self.set_timer(task.due_ms, task)

    def leave_timed(self, task: Task) -> None:
        """It came due, or will not."""
        if task.hot:
            task.hot = False
            self.near -= 1
            self.shared.budget.bytes_used -= TASK_BYTES + len(task.payload)
        else:
            self.far.pop(task.id, None)

    def wait(self, task_id: bytes, command: fx.Command, until_ms: int) -> None:
        self.waiters.setdefault(task_id, []).append(command)
        self.set_timer(until_ms, command)

    def answer(self, command: fx.Command, reply: Any) -> None:
        """Send the answer to a command, or the question to the store that it needs first."""
        if type(reply) is fx.FindLoad:
            self.effects.loads.append(reply)
        elif reply is not None:
            self.effects.reply(command, reply)

    # ---- memory and store ------------------------------------------------------------------------------------------------------------

    def adopt(self, task: Task) -> None:
        """A cold task comes into memory; what is in memory already counts more."""
        if task.id not in self.tasks:
            self.tasks[task.id] = task
            if task.key is not None:
                self.keys[task.queue, task.key] = task

    def adopt_far(self, task: Task) -> None:
        """The same for one that does not leave its state: if it has a time, it is a far one, since all near ones are in memory."""
        if task.id not in self.tasks and task.state in TIMED:
            self.far[task.id] = task
        self.adopt(task)

    def forget(self, tasks: Sequence[Task]) -> None:
        """The store has them as they are: they leave memory."""
        for task in tasks:
            self.tasks.pop(task.id, None)
            self.far.pop(task.id, None)
            if task.key is not None:
                self.keys.pop((task.queue, task.key), None)
        self.shared.recent.add([task.id for task in tasks], self.id_ms)

    def restore(self, task: Task) -> None:
        """At start: a live task that is kept in memory."""
        self.adopt(task)
        queue = self.queue(task.queue)
        queue.counts[task.state] += 1
        if task.state == RUNNING:
            self.held.setdefault(task.session, {})[task.token] = task
            if task.crashes >= CRASHES_ALONE:
                self.alone[task.session] = task

    def restore_size(self, queue: str, payload_bytes: int) -> None:
        """At start: the payloads of its unfinished tasks."""
        self.queue(queue).bytes = self.queue(queue).bytes_taken = payload_bytes

    def restore_count(self, queue: str, state: int, priority: int, task_type: str, tasks: int) -> None:
        """At start: so many tasks that stay cold."""
        if state in TIMED:
            self.horizon = NOTHING
        if state == PENDING:
            self.queue(queue).restore(priority, task_type, tasks)
        else:
            self.queue(queue).counts[state] += tasks

    def check(self) -> None:
        """Every invariant that can be seen from inside; for tests."""
        for queue in self.queues.values():
            assert all(count >= 0 for count in queue.counts), (queue.name, queue.counts)
            lines = [*queue.lines.values(), queue.apart]
            for line in lines:
                live = [task for task in line.tasks if task.hot]
                assert line.hot == len(live) <= line.waiting, (line.hot, len(live), line.waiting)
                assert all(task.state == PENDING for task in live)
                assert [task.position for task in live] == sorted(task.position for task in live)
            assert queue.counts[PENDING] == sum(line.waiting for line in lines)
            assert not queue.apart.cold and all(task.crashes >= CRASHES_ALONE for task in queue.apart.tasks if task.hot)
            assert queue.bytes >= 0, (queue.name, queue.bytes)
        timed = [task for task in self.tasks.values() if task.state in TIMED]
        for task in timed:
            is_near = (task.due_ms, task.seq) <= self.horizon
            assert task.hot == is_near or (task.hot and self.is_loading_due), "a timed task is on the wrong side of the horizon"
        assert self.near == sum(task.hot for task in timed)
        assert all(task.hot != (task.id in self.far) for task in timed) and all(task.state in TIMED for task in self.far.values())
        running = [task for task in self.tasks.values() if task.state == RUNNING]
        held = {token: task for tasks in self.held.values() for token, task in tasks.items()}
        assert len(held) == len(running) and all(held[task.token] is task for task in running)
        assert all((task.token != 0) == (task.state == RUNNING) for task in self.tasks.values())


def index(tasks: Iterable[Task]) -> dict[Any, Task]:
    """Tasks by id and by (queue, key)."""
    known: dict[Any, Task] = {}
    for task in tasks:
        known[task.id] = task
        if task.key is not None:
            known[task.queue, task.key] = task
    return known
