"""Grant: lease pending tasks to worker sessions that have credit.

Matching happens once a turn, for the queues that were touched in it, and goes round the sessions: each takes at most ceil(ready / waiting
sessions) at a time.  A session whose leases would end now gets nothing until it is heard.  `blocker` says of a pending task why it waits, by
the same conditions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from struct import pack

from taskq.core import messages as m
from taskq.core.alone import forget, match_alone
from taskq.core.book import Book, Decision
from taskq.core.consumer import Consumer
from taskq.core.effects import Command, LineLoad, Reply
from taskq.core.followers import Followers
from taskq.core.queue import Queue
from taskq.core.records import Granted
from taskq.core.task import CRASHES_ALONE, PENDING, RETRYING, RUNNING, SCHEDULED, TIMED, Task
from taskq.ids import ID_BYTES, slot_of_queue, split

GRANT_TASKS_MAX = 1_000


def decide_ready(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    """A consumer subscribed or has new credit: its queues are matched at the end of this turn."""
    consumer = book.consumers.get(command.message.session)
    if consumer is not None:
        for name in consumer.queues:
            if book.owns_queue(name):
                followers = book.followers.get(name)
                if followers is None:
                    followers = book.followers[name] = Followers(name)
                followers.enter(consumer)
                book.touched[name] = None
    return [], None


def match(book: Book, now_ms: int) -> Iterator[Granted]:
    """Grant what can be granted in the touched queues, and ask for cold tasks where a line runs low."""
    if book.alone:
        forget(book)
    if book.held_back:
        book.touched.update(book.held_back)
        book.held_back = {}
    touched, book.touched = book.touched, {}
    for name in sorted(touched, key=partial(_rank, book)) if len(touched) > 1 else touched:
        followers, queue = book.followers.get(name), book.queues.get(name)
        if followers is not None and queue is not None and queue.counts[PENDING] and not book.admission.draining:
            if queue.apart.waiting:
                yield from _grant_alone(book, queue, followers, now_ms)
            yield from _match_queue(book, queue, followers, now_ms)
            _fill(book, queue)
            if book.alone and queue.counts[PENDING]:
                book.held_back[name] = None


def _rank(book: Book, name: str) -> int:
    followers = book.followers.get(name)
    return 0 if followers is None else followers.best_place


def _match_queue(book: Book, queue: Queue, followers: Followers, now_ms: int) -> Iterator[Granted]:
    """Ask no more sessions than there are tasks, and those again that took some when all were asked."""
    able = _able(book, followers)
    served: list[Consumer] = []
    while ready := queue.counts[PENDING] - queue.apart.waiting:
        waiting = list(islice(able, ready))
        if not waiting:
            waiting, served = served, []
        if not waiting:
            return
        share = -(-ready // len(waiting))
        for consumer in waiting:
            wanted = min(_room(book, consumer), share, GRANT_TASKS_MAX)
            granted = 0
            for tasks in queue.pick(consumer.task_types, wanted):
                record = _grant(book, consumer, queue.name, tasks, now_ms)
                yield record
                book.effects.replies.append(Reply(consumer.origin, 0, 0, _deliver(queue.name, record, tasks)))
                granted += len(tasks)
            if granted:
                followers.to_the_end(consumer)
            if granted and _room(book, consumer) > 0:
                served.append(consumer)
            elif consumer.room > 0 >= _room(book, consumer):
                book.touched[queue.name] = None


def _able(book: Book, followers: Followers) -> Iterator[Consumer]:
    """Who may be given more.  One that has all that a worker may have is looked at again in the next turn."""
    for consumer in followers.able(book.steady_ms):
        if consumer.session in book.alone:
            continue
        if _room(book, consumer) > 0:
            yield consumer
        else:
            book.touched[followers.queue] = None


def _room(book: Book, consumer: Consumer) -> int:
    """How many more tasks it may be given."""
    return min(consumer.room, book.limits.leases_max - book.leases_of(consumer.session))


def _grant_alone(book: Book, queue: Queue, followers: Followers, now_ms: int) -> Iterator[Granted]:
    for consumer, task in match_alone(book, queue, followers):
        record = _grant(book, consumer, queue.name, [task], now_ms)
        yield record
        book.effects.replies.append(Reply(consumer.origin, 0, 0, _deliver(queue.name, record, [task])))


def _grant(book: Book, consumer: Consumer, queue: str, tasks: list[Task], now_ms: int) -> Granted:
    count = len(tasks)
    first_token = book.tokens.take(count)
    record = Granted(
        slot=slot_of_queue(queue),
        now_ms=now_ms,
        session=consumer.session,
        worker=consumer.name,
        first=consumer.delivered + 1,
        ids=b"".join([task.id for task in tasks]),
        tokens=pack(f">{count}Q", *range(first_token, first_token + count)),
    )
    consumer.delivered += count
    return record


def _deliver(queue: str, record: Granted, tasks: list[Task]) -> m.Deliver:
    options = [task.options for task in tasks]
    told = options[:1] if options.count(options[0]) == len(options) else options
    attempts = [task.attempts + 1 for task in tasks]
    return m.Deliver(
        payloads=[task.payload for task in tasks],
        queue=queue,
        first=record.first,
        ids=record.ids,
        tokens=record.tokens,
        task_types=[option.task_type for option in told],
        encodings=[option.encoding for option in told],
        attempts=attempts[:1] if attempts.count(attempts[0]) == len(attempts) else attempts,
        timeouts_ms=[option.timeout_ms for option in told],
    )


def evolve_granted(book: Book, record: Granted) -> None:
    count = len(record.ids) // ID_BYTES
    held = book.held.setdefault(record.session, {})
    delivery, now_ms, session, worker = record.first, record.now_ms, record.session, record.worker
    tasks, touch = book.tasks, book.touch
    queue: Queue | None = None
    for task_id, token in zip(split(record.ids, ID_BYTES), book.unpack_tokens(record.tokens, count), strict=True):
        task = tasks[task_id]
        if queue is None:
            queue = book.queue(task.queue)
        touch(task)
        queue.move(task, RUNNING)
        task.token = token
        task.session = session
        task.worker = worker
        task.delivery = delivery
        task.started_ms = now_ms
        delivery += 1
        held[token] = task
    if count == 1 and task.crashes >= CRASHES_ALONE:
        book.alone[session] = task


def _fill(book: Book, queue: Queue) -> None:
    for line, tasks in queue.low():
        line.loading = True
        book.effects.loads.append(LineLoad(queue.name, line.priority, line.task_type, line.passed, tasks))


def blocker(book: Book, task: Task, now_ms: int) -> str:
    """Why the task is not running, in words for people; empty if it runs or is final."""
    if task.state in TIMED:
        what = {SCHEDULED: "scheduled", RETRYING: "waiting to be retried"}[task.state]
        return f"{what}, due in {max(0, task.due_ms - now_ms) / 1000:.1f} s"
    if task.state != PENDING:
        return ""
    connected = [consumer for consumer in book.consumers.values() if consumer.origin]
    if not connected:
        return f"no connected worker has task type {task.options.task_type}: no worker is connected"
    takers = [consumer for consumer in connected if task.queue in consumer.queues]
    if not takers:
        return f"no connected worker takes queue {task.queue}"
    able = [consumer for consumer in takers if task.options.task_type in consumer.task_types]
    if not able:
        return f"no connected worker has task type {task.options.task_type}"
    if all(consumer.deadline_ms <= book.steady_ms for consumer in able):
        return f"none of the {len(able)} workers that can run it is heard of"
    if task.hot and task.crashes >= CRASHES_ALONE:
        return f"it was running when {task.crashes} workers died, and waits for one that is idle, to run alone"
    if all(_room(book, consumer) <= 0 or consumer.session in book.alone for consumer in able):
        return f"all {len(able)} workers that can run it are busy"
    return "about to be delivered"
