"""The checker: what the shards decided, what clients were told, and whether the two can be true together.

Two histories.  *Facts* are the records of the shards in the order of their LSNs, folded into a naive model of the tasks that shares no code with
the core; each must be allowed by the model.  *Promises* are the answers that clients got.  After a crash the model is cut where the disk ends,
and every promise that the durability mode makes must still be kept by what is left.  A broken rule is a `Violation`.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.task import CRASHES_ALONE, STATES, Task

COUNTED = ("scheduled", "pending", "running", "retrying", "failed")
TIMED = ("scheduled", "retrying")
FINAL = ("completed", "failed", "cancelled")
# how a run has ended whose report was accepted
ENDINGS = {m.Ack: ("completed",), m.Fail: ("failed", "cancelled"), m.Release: ("interrupted", "snoozed", "cancelled")}
COUNTS = {"failed": "attempts", "crashed": "crashes", "interrupted": "interruptions"}


class Violation(AssertionError):
    """A guarantee is broken."""


@attrs.define
class Known:
    """A task as the records tell it."""

    id: bytes
    seq: int
    queue: str
    task_type: str
    priority: int
    key: str | None
    payload: bytes
    max_attempts: int
    state: str
    position: int
    due_ms: int
    attempts: int = 0
    crashes: int = 0
    interruptions: int = 0
    token: int = 0
    session: bytes = b""
    cancel_requested: bool = False
    result: bytes = b""
    pruned: bool = False


@attrs.frozen
class Fact:
    """A record, when it was decided, what its session could run then, and which queue that it prefers was passed over.  Without a record: the
    store has pruned these ids."""

    lsn: int
    record: Any
    now_ms: int
    task_types: frozenset[str] = frozenset()
    passed_over: str = ""
    pruned: tuple[bytes, ...] = ()


def split(block: bytes, size: int) -> list[bytes]:
    return [block[at : at + size] for at in range(0, len(block), size)]


def of_task(values: list[Any], at: int) -> Any:
    return values[at] if len(values) > 1 else values[0]


class Model:
    """The fold of the facts."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.tasks: dict[bytes, Known] = {}
        self.keys: dict[tuple[str, str], Known] = {}
        self.ended: dict[int, tuple[bytes, str]] = {}
        self.sent: dict[bytes, None] = {}
        self.tokens_max = self.last_lsn = 0

    def add(self, fact: Fact) -> None:
        """A new fact, which must be allowed."""
        if fact.lsn != self.last_lsn + 1:
            raise Violation(f"LSN {fact.lsn} follows {self.last_lsn}")
        self.last_lsn = fact.lsn
        self.facts.append(fact)
        if type(fact.record) is r.Granted:
            self._check_order(fact)
        FOLD[type(fact.record)](self, fact)

    def cut(self, lsn: int) -> None:
        """All facts after this LSN were lost.  What was pruned stays so: only what is stored is pruned."""
        facts, tokens_max = [fact for fact in self.facts if fact.record is None or fact.lsn <= lsn], self.tokens_max
        if lsn > self.last_lsn:
            raise Violation(f"the disk has LSN {lsn}, the last one given was {self.last_lsn}")
        self.facts, self.tasks, self.keys, self.ended, self.tokens_max = facts, {}, {}, {}, 0
        for fact in facts:
            FOLD[type(fact.record)](self, fact)
        self.tokens_max, self.last_lsn = tokens_max, lsn

    def prune(self, gone: list[bytes]) -> None:
        fact = Fact(self.last_lsn, None, 0, pruned=tuple(gone))
        self.facts.append(fact)
        self._pruned(fact)

    def _pruned(self, fact: Fact) -> None:
        for task_id in fact.pruned:
            task = self.tasks[task_id]
            if task.state not in FINAL:
                raise Violation(f"task {task_id.hex()} was pruned, and it is {task.state}")
            task.pruned = True
            if task.key is not None and self.keys.get((task.queue, task.key)) is task:
                del self.keys[task.queue, task.key]

    def counts(self) -> Counter[tuple[str, str]]:
        """The tasks of each queue and state that its shard counts."""
        return Counter((task.queue, task.state) for task in self.tasks.values() if task.state in COUNTED and not task.pruned)

    # ---- records

    def _expect(self, task_id: bytes, states: Iterable[str], what: str) -> Known:
        task = self.tasks.get(task_id)
        if task is None:
            raise Violation(f"{what} of a task that was never enqueued: {task_id.hex()}")
        if task.state not in states:
            raise Violation(f"{what} of task {task_id.hex()}, which is {task.state}")
        return task

    def _admitted(self, fact: Fact) -> None:
        record: r.Admitted = fact.record
        for at, task_id in enumerate(split(record.ids, 16)):
            seq, due_ms, key = record.first_seq + at, of_task(record.dues_ms, at), of_task(record.keys, at)
            if bytes(record.payloads[at]) not in self.sent:
                raise Violation(f"task {task_id.hex()} has a payload that nobody sent")
            if task_id in self.tasks:
                raise Violation(f"task {task_id.hex()} was enqueued twice")
            if key is not None and (record.queue, key) in self.keys:
                raise Violation(f"key {key!r} of queue {record.queue} was enqueued twice")
            task = Known(
                id=task_id,
                seq=seq,
                queue=record.queue,
                task_type=of_task(record.task_types, at),
                priority=of_task(record.priorities, at),
                key=key,
                payload=bytes(record.payloads[at]),
                max_attempts=of_task(record.max_attempts, at),
                state="scheduled" if due_ms else "pending",
                position=seq,
                due_ms=due_ms,
            )
            self.tasks[task_id] = task
            if key is not None:
                self.keys[record.queue, key] = task

    def _check_order(self, fact: Fact) -> None:
        """Each granted task is the most urgent and then the longest waiting that the session can run; one that two workers died with is granted
        to a session that runs nothing else."""
        record: r.Granted = fact.record
        if fact.passed_over:
            raise Violation(f"queue {fact.passed_over} of another shard is preferred and was passed over")
        granted = split(record.ids, 16)
        first = self._expect(granted[0], ("pending",), "a grant")
        if first.crashes >= CRASHES_ALONE:
            beside = [task for task in self.tasks.values() if task.state == "running" and task.session == record.session]
            if beside or len(granted) > 1:
                raise Violation(f"task {first.id.hex()} has crashed {first.crashes} times and was not granted alone")
            return
        waiting = [
            task
            for task in self.tasks.values()
            if task.queue == first.queue and task.state == "pending" and task.crashes < CRASHES_ALONE and task.task_type in fact.task_types
        ]
        waiting.sort(key=lambda task: (task.priority, task.position))
        for task_id, due in zip(granted, waiting, strict=False):
            if task_id != due.id:
                raise Violation(f"task {task_id.hex()} was granted before {due.id.hex()} (priority {due.priority}, position {due.position})")

    def _granted(self, fact: Fact) -> None:
        record: r.Granted = fact.record
        for task_id, packed in zip(split(record.ids, 16), split(record.tokens, 8), strict=True):
            token = int.from_bytes(packed, "big")
            task = self._expect(task_id, ("pending",), "a grant")
            if token <= self.tokens_max:
                raise Violation(f"token {token:x} of task {task_id.hex()} does not rise: {self.tokens_max:x} was given before")
            self.tokens_max = task.token = token
            task.state, task.session = "running", record.session

    def _completed(self, fact: Fact) -> None:
        record: r.Completed = fact.record
        for task_id, result in zip(split(record.ids, 16), record.payloads, strict=True):
            task = self._expect(task_id, ("running",), "a completion")
            self._end(task, "completed")
            task.state, task.result = "completed", bytes(result)
            task.attempts += 1

    def _end(self, task: Known, outcome: str) -> None:
        self.ended[task.token] = (task.id, outcome)
        task.token, task.session = 0, b""

    def _ended(self, fact: Fact) -> None:
        record: r.Ended = fact.record
        rows = zip(split(record.ids, 16), record.outcomes, record.states, record.dues_ms, strict=True)
        for task_id, outcome, code, due_ms in rows:
            if outcome == "excused":
                self._excused(task_id, code)
                continue
            task = self._expect(task_id, ("running",), f"the end ({outcome})")
            self._end(task, outcome)
            task.state, task.due_ms = STATES[code], due_ms
            if outcome in COUNTS:
                setattr(task, COUNTS[outcome], getattr(task, COUNTS[outcome]) + 1)
            if task.cancel_requested and task.state != "cancelled":
                raise Violation(f"task {task_id.hex()} was asked to stop, its run ended ({outcome}) and it is {task.state}")
            if task.attempts >= task.max_attempts and task.state not in FINAL:
                raise Violation(f"task {task_id.hex()} has failed {task.attempts} of {task.max_attempts} times and is {task.state}")
            if task.crashes >= 3 and task.state not in FINAL:
                raise Violation(f"task {task_id.hex()} has killed {task.crashes} workers and is {task.state}")

    def _excused(self, task_id: bytes, code: int) -> None:
        """A crash that was none: the task stays where it is."""
        task = self._expect(task_id, ("running", "pending", *TIMED), "the word that a crash was none")
        if task.state != STATES[code] or not task.crashes:
            raise Violation(f"task {task_id.hex()} is {task.state} with {task.crashes} crashes, and was excused as {STATES[code]}")
        task.crashes -= 1
        task.interruptions += 1

    def _promoted(self, fact: Fact) -> None:
        record: r.Promoted = fact.record
        for at, task_id in enumerate(split(record.ids, 16)):
            task = self._expect(task_id, TIMED, "a promotion")
            if task.due_ms > fact.now_ms:
                raise Violation(f"task {task_id.hex()} became pending {task.due_ms - fact.now_ms} ms before it was due")
            task.state, task.position, task.due_ms = "pending", record.first_position + at, 0

    def _dropped(self, fact: Fact) -> None:
        for task_id in split(fact.record.ids, 16):
            self._expect(task_id, ("pending", *TIMED), "a cancel").state = "cancelled"

    def _cancel_asked(self, fact: Fact) -> None:
        for task_id in split(fact.record.ids, 16):
            self._expect(task_id, ("running",), "the cancel of a run").cancel_requested = True


FOLD: dict[type, Any] = {
    type(None): Model._pruned,
    r.Admitted: Model._admitted,
    r.Granted: Model._granted,
    r.Completed: Model._completed,
    r.Ended: Model._ended,
    r.Promoted: Model._promoted,
    r.Dropped: Model._dropped,
    r.CancelAsked: Model._cancel_asked,
}


def _check_itself(shard: Any) -> None:
    try:
        shard.check()
    except AssertionError as wrong:
        *_, last = traceback.extract_tb(wrong.__traceback__)
        raise Violation(f"shard {shard.index} contradicts itself: {last.line} {wrong}") from wrong


class History:
    """Facts, promises, and whether they agree."""

    def __init__(self) -> None:
        self.model = Model()
        self.sent = self.model.sent
        self.acknowledgements = 0
        self.acknowledged: dict[bytes, int] = {}
        self.completions: dict[bytes, bytes] = {}
        self.shown_final: dict[bytes, str] = {}
        self.delivered: dict[int, bytes] = {}
        self.forgiven = 0

    # ---- promises

    def enqueued(self, payloads: list[bytes], ids: list[bytes], outcomes: bytes) -> None:
        """The broker says that these tasks exist."""
        for task_id, payload, outcome in zip(ids, payloads, outcomes, strict=True):
            if outcome == m.REFUSED:
                continue
            task = self.model.tasks.get(task_id)
            if task is None:
                raise Violation(f"task {task_id.hex()} was acknowledged and does not exist")
            if task.payload != payload:
                raise Violation(f"task {task_id.hex()} was acknowledged with another payload")
            self.acknowledgements += 1
            self.acknowledged.setdefault(task_id, self.acknowledgements)

    def deliver(self, task_id: bytes, token: bytes, payload: bytes, attempt: int) -> None:
        """A worker has a task in its hands."""
        number = int.from_bytes(token, "big")
        if number in self.delivered:
            raise Violation(f"token {number:x} was delivered twice: {self.delivered[number].hex()} and {task_id.hex()}")
        self.delivered[number] = task_id
        task = self.model.tasks.get(task_id)
        if task is None:
            raise Violation(f"task {task_id.hex()} was delivered and does not exist")
        if task.payload != payload:
            raise Violation(f"task {task_id.hex()} was delivered with another payload")
        if task.token == number and attempt != task.attempts + 1:
            raise Violation(f"task {task_id.hex()} was delivered as attempt {attempt} after {task.attempts}")

    def reported(self, kind: type, ids: list[bytes], tokens: list[bytes], results: list[bytes], outcomes: bytes) -> None:
        """The broker says what became of reports."""
        for task_id, packed, result, outcome in zip(ids, tokens, results, outcomes, strict=True):
            token = int.from_bytes(packed, "big")
            how = self.model.ended.get(token, (task_id, "not ended"))[1]
            if outcome == m.REPORT_LEASE_LOST:
                if how == "not ended" and (task := self.model.tasks.get(task_id)) and task.token == token:
                    raise Violation(f"the report on task {task_id.hex()} was told LEASE_LOST, but its token is current")
                continue
            # a second word on a run that has ended is accepted if it changes nothing: the task is final and did not succeed
            idle = kind is not m.Ack and self.model.tasks[task_id].state in ("failed", "cancelled")
            if how not in ENDINGS[kind] and not idle:
                raise Violation(f"a {kind.__name__} on task {task_id.hex()} was accepted, but the run is {how} (token {token:x})")
            if kind is m.Ack and self.completions.setdefault(task_id, result) != result:
                raise Violation(f"task {task_id.hex()} was completed twice, with two results")

    def cancelled(self, ids: list[bytes], outcomes: bytes, sure: int) -> None:
        """What became of a cancel; so many acknowledgements are `sure`, since they came before it was sent."""
        for task_id, outcome in zip(ids, outcomes, strict=True):
            if outcome == m.CANCEL_DONE:
                self.shown(task_id, "cancelled")
            elif outcome == m.CANCEL_NOT_FOUND:
                self.not_found(task_id, sure)

    def shown(self, task_id: bytes, state: str) -> None:
        """A reader was shown this state."""
        task = self.model.tasks.get(task_id)
        if task is None:
            raise Violation(f"task {task_id.hex()} was shown as {state} and does not exist")
        before = self.shown_final.get(task_id)
        if before is not None and before != state:
            raise Violation(f"task {task_id.hex()} was shown as {before}, later as {state}")
        if state in FINAL:
            self.shown_final[task_id] = state
            if task.state != state:
                raise Violation(f"task {task_id.hex()} was shown as {state}, it is {task.state}")

    def not_found(self, task_id: bytes, sure: int) -> None:
        """One that was lost, as it may be, and acknowledged again since it was sent again, has a new acknowledgement."""
        task = self.model.tasks.get(task_id)
        if self.acknowledged.get(task_id, sure + 1) <= sure and (task is None or not task.pruned):
            raise Violation(f"task {task_id.hex()} was acknowledged, and not found")

    # ---- crashes

    def crashed(self, end_lsn: int, *, strict: bool) -> None:
        """The broker is gone; its disk has everything up to this LSN."""
        self.model.cut(end_lsn)
        tasks = self.model.tasks
        if strict:
            self._check_promises()
            return
        before = len(self.acknowledged) + len(self.completions)
        self.acknowledged = {task_id: number for task_id, number in self.acknowledged.items() if task_id in tasks}
        self.completions = {
            task_id: result for task_id, result in self.completions.items() if task_id in tasks and tasks[task_id].state == "completed"
        }
        self.shown_final = {task_id: state for task_id, state in self.shown_final.items() if task_id in tasks and tasks[task_id].state == state}
        self.forgiven += before - len(self.acknowledged) - len(self.completions)

    def _check_promises(self) -> None:
        tasks = self.model.tasks
        for task_id in self.acknowledged:
            if task_id not in tasks:
                raise Violation(f"task {task_id.hex()} was acknowledged and is lost")
        for task_id, result in self.completions.items():
            if tasks[task_id].state != "completed":
                raise Violation(f"the completion of task {task_id.hex()} was acknowledged, and it is {tasks[task_id].state}")
            if tasks[task_id].result != result:
                raise Violation(f"the completion of task {task_id.hex()} was acknowledged, and its result is another")
        for task_id, state in self.shown_final.items():
            if tasks[task_id].state != state:
                raise Violation(f"task {task_id.hex()} was shown as {state}, and it is {tasks[task_id].state}")

    # ---- what the broker holds

    def check_store(self, stored: list[Task]) -> None:
        """The rows after recovery are the fold of the facts."""
        seen: dict[bytes, Task] = {}
        for task in stored:
            if task.id in seen:
                raise Violation(f"task {task.id.hex()} has two rows: {STATES[seen[task.id].state]} and {STATES[task.state]}")
            seen[task.id] = task
            known = self.model.tasks.get(task.id)
            if known is None or known.pruned:
                raise Violation(f"the store has task {task.id.hex()}, which {'was pruned' if known else 'never was'}")
            self._check_row(task, known)
        for known in self.model.tasks.values():
            if known.id not in seen and not known.pruned:
                raise Violation(f"task {known.id.hex()} ({known.state}) has no row in the store after recovery")

    def _check_row(self, task: Task, known: Known) -> None:
        for name, stored, expected in (
            ("state", STATES[task.state], known.state),
            ("payload", task.payload, known.payload),
            ("key", task.key, known.key),
            ("token", task.token, known.token),
            ("session", task.session, known.session),
            ("attempts", task.attempts, known.attempts),
            ("crashes", task.crashes, known.crashes),
            ("interruptions", task.interruptions, known.interruptions),
            ("cancel_requested", task.cancel_requested, known.cancel_requested),
            ("position", task.position, known.position),
            ("due_ms", task.due_ms if known.state in TIMED else 0, known.due_ms if known.state in TIMED else 0),
            ("result", task.result, known.result),
        ):
            if stored != expected:
                raise Violation(f"task {task.id.hex()} has {name} {stored!r} in the store, the records say {expected!r}")

    def check_shards(self, shards: list[Any], forgotten: Counter[str]) -> None:
        """The invariants that the shards can see themselves, and their counts; `forgotten`: dead letters that they are about to be told of."""
        counts: Counter[tuple[str, str]] = Counter()
        sizes: Counter[str] = Counter()
        for shard in shards:
            _check_itself(shard)
            for queue in shard.queues.values():
                sizes[queue.name] += queue.bytes
                counts.update({(queue.name, state): queue.counts[STATES.index(state)] for state in COUNTED})
        counts.subtract({(queue, "failed"): tasks for queue, tasks in forgotten.items()})
        expected = self.model.counts()
        for name in sorted({*counts, *expected}):
            if counts[name] != expected[name]:
                raise Violation(f"queue {name[0]} counts {counts[name]} {name[1]} tasks, the records say {expected[name]}")
        tasks = self.model.tasks
        for task in tasks.values():
            sizes[task.queue] -= 0 if task.state in FINAL else len(task.payload)
        for name in sizes:
            if sizes[name]:
                raise Violation(f"the bytes of queue {name} are counted wrongly, by {sizes[name]}")
        for shard in shards:
            for task in shard.tasks.values():
                if STATES[task.state] != tasks[task.id].state or task.token != tasks[task.id].token:
                    raise Violation(f"task {task.id.hex()} is {STATES[task.state]} in its shard, the records say {tasks[task.id].state}")

    def check_end(self) -> None:
        """All is healed and quiet: every task is final, and every promise is kept."""
        self._check_promises()
        for task in self.model.tasks.values():
            if task.state not in FINAL:
                raise Violation(f"task {task.id.hex()} of queue {task.queue} is {task.state} for ever")
