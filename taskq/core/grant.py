"""Grant: lease pending tasks to worker sessions that have credit.

Matching happens once a turn, for the queues that were touched in it and for the crews (followers.py) of which somebody takes tasks again.  It goes
round the sessions: each takes at most ceil(ready / waiting sessions) at a time.  A session whose leases would end now gets nothing until it is heard.
`blocker` says of a pending task why it waits, by the same conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from struct import pack

from taskq.core import messages as m
from taskq.core.alone import forget, match_alone
from taskq.core.book import Book, Decision
from taskq.core.consumer import Consumer
from taskq.core.effects import Command, LineLoad, Offer, Offered, Reply, Tick
from taskq.core.followers import Crew, Place, Row
from taskq.core.queue import Queue
from taskq.core.records import Granted
from taskq.core.task import CRASHES_ALONE, PENDING, RETRYING, SCHEDULED, TIMED, Task
from taskq.ids import ID_BYTES, slot_of_queue, split

GRANT_TASKS_MAX = 1_000
# what one turn gives out; the rest follows in the next one, so that others have theirs in between
TURN_TASKS = 2_000


def decide_ready(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    """A consumer subscribed or has new credit: it is matched at the end of this turn."""
    consumer = book.consumers.get(command.message.session)
    if consumer is not None:
        _enter(book, consumer)
    return [], None


def decide_offer(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    """Another shard stands back for this one, until the end of this turn."""
    _enter(book, command.message.consumer)
    book.offered.append(command.message)
    return [], None


def decide_offered(book: Book, command: Command, now_ms: int, known: object) -> Decision:
    crew: Crew = command.message.crew
    if book.followers.own.get(crew.key) is crew:
        book.followers.woken[crew] = None
    return [], None


def offers_back(book: Book) -> Iterator[tuple[int, Command]]:
    """This shard has looked: those that stood back for it go on."""
    offered, book.offered = book.offered, []
    for offer in offered:
        yield offer.back, Command(0, 0, Offered(offer.crew))


def _enter(book: Book, consumer: Consumer) -> None:
    if not consumer.queues:
        return
    followers = book.followers
    crew = followers.crew_of(consumer)
    if crew is None:
        named = zip(consumer.ranks, consumer.queues, strict=True)
        crew = followers.join(consumer, ((rank, name) for rank, name in named if book.owns_queue(name)))
    followers.enter(consumer, crew)


def match(book: Book, now_ms: int) -> Iterator[Granted]:
    """Grant what can be granted in the touched queues and to the woken crews, the queue first that somebody prefers most; and ask for cold tasks
    where a line runs low."""
    if book.alone:
        forget(book)
    if book.held_back:
        _look_again(book)
    if not book.touched and not book.followers.woken:
        return
    touched, book.touched = book.touched, {}
    woken, book.followers.woken = book.followers.woken, {}
    if book.admission.draining:
        return
    for name in touched:
        queue = book.queues.get(name)
        if queue is not None and queue.apart.waiting:
            yield from _grant_alone(book, queue, now_ms)
    ties = count()
    ranked = len(touched) + len(woken) > 1
    due: list[tuple[Place, int, str | Crew]] = [((_rank(book, name) if ranked else 0, 0), next(ties), name) for name in touched]
    due += [(place, next(ties), crew) for crew in woken if (place := crew.next_place()) is not None]
    heapify(due)
    book.grants_left = TURN_TASKS
    while due:
        _, _, what = heappop(due)
        if book.grants_left <= 0:
            _put_off(book, what)
        elif isinstance(what, str):
            yield from _match_queue(book, what, now_ms)
        elif _takes(book, what):
            yield from _match_queue(book, book.followers.follow(what), now_ms)
            if (place := what.next_place()) is not None:
                heappush(due, (place, next(ties), what))
    if book.grants_left <= 0:
        book.effects.offers.append((book.index, Command(0, 0, Tick())))


def _put_off(book: Book, what: str | Crew) -> None:
    """To the next turn."""
    if isinstance(what, str):
        book.touched[what] = None
    else:
        book.followers.woken[what] = None


def _rank(book: Book, name: str) -> int:
    row = book.followers.rows.get(name)
    return 0 if row is None else row.best_rank


def _takes(book: Book, crew: Crew) -> bool:
    """Whether somebody of the crew takes tasks of the best queue that it is hungry for."""
    consumer, place = _first(book, crew), crew.next_place()
    return consumer is not None and place is not None and not _stands_back(book, consumer, crew, place)


def _stands_back(book: Book, consumer: Consumer, crew: Crew, place: Place) -> bool:
    """Whether tasks of another shard come before those at this place; that shard is asked to look first."""
    shard = crew.ahead(place)
    if shard is not None:
        book.effects.offers.append((shard, Command(0, 0, Offer(consumer, crew, book.index))))
    return shard is not None


def _match_queue(book: Book, name: str, now_ms: int) -> Iterator[Granted]:
    queue = book.queues.get(name)
    if queue is not None and queue.counts[PENDING]:
        if queue.apart.waiting:
            yield from _grant_alone(book, queue, now_ms)
        yield from _go_round(book, queue, now_ms)
        _fill(book, queue)


def _go_round(book: Book, queue: Queue, now_ms: int) -> Iterator[Granted]:
    """Session by session and crew by crew.  In each round a session gets at most its share of what was ready when the round began."""
    left = share = vain = 0
    while (ready := queue.counts[PENDING] - queue.apart.waiting) and (row := book.followers.rows.get(queue.name)) and vain < len(row.crews):
        if book.grants_left <= 0:
            _put_off(book, queue.name)
            return
        if left <= 0:
            left = _sessions(book, queue, row, ready)
            if not left:
                return
            share = -(-ready // left)
        crew = next(iter(row.crews))
        waiting = len(crew.turns)
        consumer = _first(book, crew)
        left -= waiting - len(crew.turns)
        if consumer is None:
            book.followers.leave(crew, row)
            continue
        if _stands_back(book, consumer, crew, row.place(crew)):
            book.followers.stand_back(crew, row)
            left = 0
            continue
        tasks = queue.picker(crew.task_types).pick(min(_room(book, consumer), share, GRANT_TASKS_MAX))
        if tasks:
            record = _grant(book, consumer, queue.name, tasks, now_ms)
            yield record
            book.effects.replies.append(Reply(consumer.origin, 0, 0, _deliver(queue.name, record, tasks)))
            left, vain = left - 1, 0
            crew.had_turn(consumer)
            row.had_turn(crew)
        else:
            vain += 1
            row.to_the_end(crew)


def _sessions(book: Book, queue: Queue, row: Row, most: int) -> int:
    """How many sessions seem to wait that run what is ready, `most` being enough.  Crews of which nobody waits leave."""
    found, gone = 0, []
    for crew in row.crews:
        if not crew.turns:
            gone.append(crew)
        elif queue.picker(crew.task_types).first() is not None:
            found += len(crew.turns)
            if found >= most:
                break
    for crew in gone:
        book.followers.leave(crew, row)
    return min(found, most)


def _first(book: Book, crew: Crew) -> Consumer | None:
    """Whose turn it is.  Who takes nothing now leaves; one that is kept, or has all that a worker may have, is looked at again in the next turn."""
    turns, steady_ms, shard = crew.turns, book.steady_ms, book.index
    while turns:
        consumer = next(iter(turns))
        if consumer.room > 0 and consumer.deadline_ms > steady_ms and consumer.crews.get(shard) is crew:
            if consumer.session not in book.alone and _room(book, consumer) > 0:
                return consumer
            book.held_back[consumer] = None
        del turns[consumer]
    return None


def _look_again(book: Book) -> None:
    """Those that were kept, or had all that a worker may have, in the turn before."""
    for consumer in [each for each in book.held_back if each.session not in book.alone]:
        crew = book.followers.crew_of(consumer)
        if crew is None or consumer.room <= 0:
            del book.held_back[consumer]
        elif _room(book, consumer) > 0:
            del book.held_back[consumer]
            book.followers.enter(consumer, crew)


def _room(book: Book, consumer: Consumer) -> int:
    """How many more tasks it may be given."""
    return min(consumer.room, book.limits.leases_max - book.leases_of(consumer.session))


def _grant_alone(book: Book, queue: Queue, now_ms: int) -> Iterator[Granted]:
    """As long as one of these tasks waits, each turn looks at it again."""
    for consumer, task in match_alone(book, queue):
        record = _grant(book, consumer, queue.name, [task], now_ms)
        yield record
        book.effects.replies.append(Reply(consumer.origin, 0, 0, _deliver(queue.name, record, [task])))
    if queue.apart.waiting:
        book.touched[queue.name] = None


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
    book.grants_left -= count
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
        max_attempts=[option.max_attempts for option in told],
        retries=[list(option.retry) for option in told],
    )


def evolve_granted(book: Book, record: Granted) -> None:
    count = len(record.ids) // ID_BYTES
    held = book.held.setdefault(record.session, {})
    delivery, now_ms, session, worker = record.first, record.now_ms, record.session, record.worker
    tasks = [book.tasks[task_id] for task_id in split(record.ids, ID_BYTES)]
    book.touch_all(tasks)
    book.queue(tasks[0].queue).start(tasks)
    for task, token in zip(tasks, book.unpack_tokens(record.tokens, count), strict=True):
        task.token = token
        task.session = session
        task.worker = worker
        task.delivery = delivery
        task.started_ms = now_ms
        delivery += 1
        held[token] = task
    if count == 1 and task.crashes >= CRASHES_ALONE:
        book.alone[session] = task


def waiting_for(books: Iterable[Book], consumer: Consumer) -> str:
    """A queue with tasks that the session could run now, "" for none.  What is still in the store waits for that, and not for a worker."""
    for book in books:
        if book.admission.draining:
            return ""
        for name in consumer.queues:
            queue = book.queues.get(name)
            line = queue.picker(consumer.task_types).first() if queue is not None and queue.counts[PENDING] else None
            if line is not None and line.hot:
                return name
    return ""


def _fill(book: Book, queue: Queue) -> None:
    """Where memory is short only those queues are filled whose workers wait."""
    if book.shared.budget.is_overdrawn and queue.name not in book.followers.rows:
        return
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
    takes: dict[int, bool] = {}  # by list of names: those with the same subscription share one
    for consumer in connected:
        if id(consumer.queues) not in takes:
            takes[id(consumer.queues)] = task.queue in consumer.queues
    takers = [consumer for consumer in connected if takes[id(consumer.queues)]]
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
