"""A shard under any sequence of commands, against a model that is nothing but a dict of tasks and the facts of the journal.

After each step the guarantees are looked at: at most one valid token a task, completed is final, no task is lost, first deliveries of a priority
follow commit order, counts agree, a stale token changes nothing.  At the end everything that is still open runs to its end, and the journal,
replayed into a fresh shard, gives the same tasks to the last field.
"""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from small_world import Job, Worker, World, enqueue_of

from taskq.core import horizon, line, queue
from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.shard import Shard
from taskq.core.task import CANCELLED, COMPLETED, FAILED, FINAL, PENDING, RETRYING, RUNNING, SCHEDULED
from taskq.ids import split
from taskq.storage.rows import row_of

QUEUES = ("email", "images")
TYPES = ("a", "b")
LONG_MS = 400_000


@attrs.define
class Entry:
    """A task as anyone can see it who reads the journal."""

    queue: str
    priority: int
    task_type: str
    payload: bytes
    state: int
    due_ms: int
    token: int = 0
    session: bytes = b""
    delivered: bool = False
    result: bytes = b""
    asked: bool = False


class Model:
    """Reads the facts and refuses those that cannot be.  `arrivals`: the ids of each queue and priority as they first became pending."""

    def __init__(self) -> None:
        self.tasks: dict[bytes, Entry] = {}
        self.arrivals: dict[tuple[str, int], list[bytes]] = {}
        self.last_token = 0

    def read(self, record: Any, now_ms: int, types: dict[bytes, frozenset[str]]) -> None:
        ids = split(record.ids, 16)
        assert len(set(ids)) == len(ids), record
        match record:
            case r.Admitted():
                self._admitted(record, ids)
            case r.Granted():
                self._granted(record, ids, types)
            case r.Completed():
                for task_id, result in zip(ids, record.payloads, strict=True):
                    entry = self._ends(task_id)
                    entry.state, entry.result = COMPLETED, bytes(result)
            case r.Ended():
                for task_id, state, due_ms in zip(ids, record.states, record.dues_ms, strict=True):
                    entry = self._ends(task_id)
                    assert state in (PENDING, SCHEDULED, RETRYING, FAILED, CANCELLED)
                    assert state == CANCELLED or not entry.asked, "a task that was to be cancelled goes on"
                    entry.state, entry.due_ms = state, due_ms
            case r.Promoted():
                for task_id in ids:
                    entry = self.tasks[task_id]
                    assert entry.state in (SCHEDULED, RETRYING)
                    assert entry.due_ms <= now_ms, "a task runs early"
                    self._waits(task_id, entry)
            case r.Dropped():
                for task_id in ids:
                    assert self.tasks[task_id].state in (PENDING, SCHEDULED, RETRYING)
                    self.tasks[task_id].state = CANCELLED
            case r.CancelAsked():
                for task_id in ids:
                    assert self.tasks[task_id].state == RUNNING
                    self.tasks[task_id].asked = True

    def _admitted(self, record: r.Admitted, ids: list[bytes]) -> None:
        columns = (r.column(column, len(ids)) for column in (record.task_types, record.priorities, record.dues_ms))
        for task_id, payload, task_type, priority, due_ms in zip(ids, record.payloads, *columns, strict=True):
            assert task_id not in self.tasks, "a task is made twice"
            entry = self.tasks[task_id] = Entry(record.queue, priority, task_type, bytes(payload), SCHEDULED, due_ms)
            if not due_ms:
                self._waits(task_id, entry)

    def _waits(self, task_id: bytes, entry: Entry) -> None:
        entry.state = PENDING
        arrivals = self.arrivals.setdefault((entry.queue, entry.priority), [])
        if not entry.delivered and task_id not in arrivals:
            arrivals.append(task_id)

    def _granted(self, record: r.Granted, ids: list[bytes], types: dict[bytes, frozenset[str]]) -> None:
        for task_id, token in zip(ids, Shard.unpack_tokens(record.tokens, len(ids)), strict=True):
            entry = self.tasks[task_id]
            assert entry.state == PENDING and not entry.token, "a task has two valid tokens"
            assert token > self.last_token, "tokens do not rise"
            self.last_token = token
            if not entry.delivered:
                arrivals = self.arrivals[entry.queue, entry.priority]
                before = (self.tasks[other] for other in arrivals[: arrivals.index(task_id)])
                runs = types[record.session]
                assert not any(each.state == PENDING and not each.delivered and each.task_type in runs for each in before), "a task is overtaken"
            entry.state, entry.token, entry.session, entry.delivered = RUNNING, token, record.session, True

    def _ends(self, task_id: bytes) -> Entry:
        entry = self.tasks[task_id]
        assert entry.state == RUNNING and entry.token, "a run ends that was not"
        entry.token, entry.session = 0, b""
        return entry


class ShardMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(queue, "LOAD_TASKS", 4)
        self.patch.setattr(horizon, "NEAR_TASKS", 1)
        self.patch.setattr(line, "LINE_HOT_MIN", 2)
        self.world = World(budget_bytes=0)
        self.model = Model()
        self.read = 0
        self.workers: list[Worker] = []
        self.types: dict[bytes, frozenset[str]] = {}
        self.contents: dict[bytes, tuple[str, str, bytes]] = {}
        self.waits: list[tuple[int, bytes]] = []

    @initialize(credit=st.integers(0, 3))
    def first_worker(self, credit: int) -> None:
        self.joins(QUEUES, TYPES, credit)

    def _pick(self, data: Any, of: list[Any]) -> Any:
        return of[data.draw(st.integers(0, len(of) - 1))]

    @property
    def connected(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.connected]

    # ---- producers ---------------------------------------------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 6),
        queue=st.sampled_from(QUEUES),
        task_type=st.sampled_from(TYPES),
        priority=st.sampled_from([0, 5]),
        delay_ms=st.sampled_from([0, 0, 0, 700, 5_000]),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        max_attempts=st.sampled_from([1, 2, 10]),
    )
    def enqueues(self, count: int, queue: str, task_type: str, priority: int, delay_ms: int, key: str | None, max_attempts: int) -> None:
        ids = [self.world.new_id(queue) for _ in range(count)]
        bodies = [b"%d" % len(self.contents)] * count
        for task_id, body in zip(ids, bodies, strict=True):
            self.contents[task_id] = (queue, task_type, body)
        keys = [key, *[None] * (count - 1)]
        message = enqueue_of(*bodies, queue=queue, task_type=task_type, ids=b"".join(ids), priorities=priority, delays_ms=delay_ms, keys=keys,
                             max_attempts=max_attempts)  # fmt: skip
        self.world.client.ask(message)

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), same=st.booleans(), resent=st.booleans())
    def enqueues_again(self, data: Any, same: bool, resent: bool) -> None:
        task_id = self._pick(data, list(self.contents))
        queue, task_type, body = self.contents[task_id]
        self.world.run()
        if not resent and not self.world.in_memory(task_id):
            return
        sent = body if same else b"other"
        known, before = task_id in self.model.tasks, len(self.model.tasks)
        told = self.world.client.ask(enqueue_of(sent, queue=queue, task_type=task_type, ids=task_id), resent=resent)
        if told is not None and known:
            self.look()
            entry = self.model.tasks[task_id]
            assert told.outcomes == bytes([m.EXISTS if sent == entry.payload else m.REFUSED])
            assert len(self.model.tasks) == before

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data(), count=st.integers(1, 4))
    def cancels(self, data: Any, count: int) -> None:
        ids = [self._pick(data, list(self.model.tasks)) for _ in range(count)]
        final = [self.model.tasks[task_id].state in FINAL for task_id in ids]
        told = self.world.client.ask(m.Cancel(b"".join(ids)))
        if told is not None:
            assert [outcome == m.CANCEL_ALREADY_FINAL for outcome in told.outcomes] == final
            assert m.CANCEL_NOT_FOUND not in told.outcomes

    @precondition(lambda self: self.model.tasks)
    @rule(data=st.data())
    def waits_for(self, data: Any) -> None:
        task_id = self._pick(data, list(self.model.tasks))
        self.waits.append((self.world.client.say(m.Get(task_id, 60_000)), task_id))
        self.world.run()

    # ---- workers -----------------------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.workers) < 5)
    @rule(
        queues=st.sampled_from([QUEUES, QUEUES[:1], QUEUES[1:]]),
        types=st.sampled_from([TYPES, TYPES, TYPES[:1], TYPES[1:]]),
        credit=st.integers(0, 6),
    )
    def joins(self, queues: tuple[str, ...], types: tuple[str, ...], credit: int) -> None:
        worker = Worker(self.world, f"w{len(self.types)}")
        self.workers.append(worker)
        self._takes(worker, queues, types)
        if credit:
            worker.allow(credit)

    def _takes(self, worker: Worker, queues: tuple[str, ...], types: tuple[str, ...]) -> None:
        self.types[worker.identity] = frozenset(types)
        worker.take(*queues, runs=types)

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), more=st.integers(1, 6))
    def allows(self, data: Any, more: int) -> None:
        self._pick(data, self.connected).allow(more)

    @precondition(lambda self: self.connected and any(worker.jobs for worker in self.workers))
    @rule(data=st.data(), what=st.sampled_from(["ack", "ack", "fail", "discard", "after", "release", "snooze"]), resent=st.booleans())
    def reports(self, data: Any, what: str, resent: bool) -> None:
        """Any worker reports on anything that was ever delivered to anybody; only what is its own counts."""
        worker = self._pick(data, self.connected)
        jobs = [job for each in self.workers for job in each.jobs]
        chosen = {job.token: job for job in (self._pick(data, jobs) for _ in range(data.draw(st.integers(1, 3))))}
        current = [
            self.model.tasks[job.id].token == int.from_bytes(job.token, "big") and self.world.task(job.id).session == worker.identity
            for job in chosen.values()
        ]
        before = {job.id: row_of(self.world.task(job.id)) for job in chosen.values()}
        told = worker.ask(_report(what, list(chosen.values())), resent=resent)
        for each in self.workers:
            for token in chosen:
                each.held.pop(token, None)
        if told is None:
            return
        assert [outcome == m.REPORT_OK for outcome in told.outcomes] == current or resent
        for at, job in enumerate(chosen.values()):
            if not current[at] and not any(other.id == job.id and good for other, good in zip(chosen.values(), current, strict=True)):
                assert row_of(self.world.task(job.id)) == before[job.id], "a stale token changed something"

    def _superseded(self) -> list[Job]:
        """Runs that ended while their task is being run again."""
        jobs = [job for worker in self.workers for job in worker.jobs]
        tokens = {job.token: self.model.tasks[job.id].token for job in jobs}
        return [job for job in jobs if tokens[job.token] not in (0, int.from_bytes(job.token, "big"))]

    @precondition(lambda self: self.connected and self._superseded())
    @rule(data=st.data(), what=st.sampled_from(["ack", "fail", "discard", "release"]), resent=st.booleans())
    def reports_on_an_earlier_run(self, data: Any, what: str, resent: bool) -> None:
        job = self._pick(data, self._superseded())
        before = row_of(self.world.task(job.id))
        told = self._pick(data, self.connected).ask(_report(what, [job]), resent=resent)
        assert told.outcomes == bytes([m.REPORT_LEASE_LOST])
        assert row_of(self.world.task(job.id)) == before, "a stale token changed something"

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), drops=st.booleans())
    def beats(self, data: Any, drops: bool) -> None:
        worker = self._pick(data, self.connected)
        if drops and worker.held:
            worker.held.pop(self._pick(data, list(worker.held)))
        beat = worker.ask(m.Heartbeat(worker.received, b"".join(worker.held)))
        self.look()
        for token, job in list(worker.held.items()):
            is_current = self.model.tasks[job.id].token == int.from_bytes(token, "big")
            assert (token in split(beat.lost, 8)) != is_current
            if not is_current:
                worker.held.pop(token)

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), how=st.sampled_from(["died", "bye", "cut"]))
    def leaves(self, data: Any, how: str) -> None:
        worker = self._pick(data, self.connected)
        if how == "died":
            worker.ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
        elif how == "bye":
            worker.ask(m.Bye())
        worker.disconnect()
        if how != "cut":
            self.look()
            assert not any(entry.session == worker.identity for entry in self.model.tasks.values())
            self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), credit=st.integers(0, 6))
    def resumes(self, data: Any, credit: int) -> None:
        worker = self._pick(data, self.workers)
        holding = [job for job in worker.held.values() if data.draw(st.booleans())]
        self.look()
        before = [self.model.tasks[job.id].token == int.from_bytes(job.token, "big") for job in holding]
        told = worker.resume(self.world, *holding)
        if type(told) is m.Resumed:
            assert [outcome != m.LOST for outcome in told.outcomes] == before
        self._takes(worker, QUEUES, TYPES)
        if credit:
            worker.allow(credit)

    # ---- the broker --------------------------------------------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([0, 1, 300, 500, 700, 2_000, 16_000]))
    def time_passes_at_once(self, ms: int) -> None:
        self.world.tick(ms)

    @rule(ms=st.sampled_from([500, 1_000, 5_000, 16_000]))
    def time_passes(self, ms: int) -> None:
        for _ in range(ms // 500):
            self.world.tick(500)
            self.look()

    @rule()
    def flush_begins(self) -> None:
        self.world.begin_flush()

    @rule()
    def flush_ends(self) -> None:
        self.world.end_flush()
        self.world.run()

    @rule(hold=st.booleans())
    def store_is_slow(self, hold: bool) -> None:
        self.world.hold_loads = hold
        self.world.run()

    @rule()
    def broker_restarts(self) -> None:
        self.world.restart()
        self.waits.clear()

    # ---- what must hold ----------------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        records = self.world.records
        for record in records[self.read :]:
            self.model.read(record, self.world.now_ms, self.types)
        self.read = len(records)

    @invariant()
    def facts_and_shard_agree(self) -> None:
        world, tasks = self.world, self.model.tasks
        self.look()
        world.check()
        counts: dict[tuple[str, int], int] = {}
        for task_id, entry in tasks.items():
            task = world.task(task_id)
            assert (task.state, task.token, task.session) == (entry.state, entry.token, entry.session)
            assert task.state != COMPLETED or task.result == entry.result
            if entry.state not in FINAL:
                counts[entry.queue, entry.state] = counts.get((entry.queue, entry.state), 0) + 1
        held = {token for tokens in world.shard.held.values() for token in tokens}
        assert held == {entry.token for entry in tasks.values() if entry.token}
        for each in world.shard.queues.values():
            for state in (SCHEDULED, PENDING, RUNNING, RETRYING):
                assert each.counts[state] == counts.get((each.name, state), 0), (each.name, state)
        hot = [task for task in world.shard.tasks.values() if task.hot]
        assert world.shared.budget.bytes_used == sum(line.TASK_BYTES + len(task.payload) for task in hot)

    @invariant()
    def who_waits_is_told_of_the_end_and_of_nothing_else(self) -> None:
        for seq, task_id in list(self.waits):
            told = self.world.client.answers.get(seq)
            if told is not None:
                self.waits.remove((seq, task_id))
                assert told.info["state"] in ("completed", "failed", "cancelled") or told.info["state"] in _STATES_AT_TIMEOUT
            elif not self.world.loads:
                assert self.model.tasks[task_id].state not in FINAL

    def teardown(self) -> None:
        try:
            self._everything_comes_to_its_end()
            self._replay_gives_the_same()
        finally:
            self.patch.undo()

    def _everything_comes_to_its_end(self) -> None:
        world = self.world
        world.hold_loads = False
        world.run()
        for worker in self.connected:
            worker.disconnect()
        self.joins_last = Worker(world, "last")
        self._takes(self.joins_last, QUEUES, TYPES)
        self.joins_last.allow(1_000)
        for _ in range(LONG_MS // 5_000):
            if self.joins_last.held:
                self.joins_last.ack(*self.joins_last.held.values())
            self.joins_last.beat()
            world.live(5_000)
            self.facts_and_shard_agree()
            if all(entry.state in FINAL for entry in self.model.tasks.values()):
                return
        raise AssertionError("a task never comes to its end")

    def _replay_gives_the_same(self) -> None:
        fresh = Shard(0, 1, World().shared)
        for record in self.world.records:
            fresh.replay(record)
        assert {task_id: row_of(task) for task_id, task in fresh.tasks.items()} == {
            task_id: row_of(self.world.task(task_id)) for task_id in self.model.tasks
        }
        fresh.check()


# what a wait may show after its minute
_STATES_AT_TIMEOUT = ("pending", "running", "scheduled", "retrying")


def _report(what: str, jobs: list[Job]) -> Any:
    ids, tokens = b"".join(job.id for job in jobs), b"".join(job.token for job in jobs)
    if what == "ack":
        return m.Ack([b"result of %d" % int.from_bytes(job.token, "big") for job in jobs], ids, tokens)
    if what in ("release", "snooze"):
        return m.Release(ids, tokens, [0 if what == "release" else 900])
    how = {"fail": m.RETRY, "discard": m.DISCARD, "after": m.RETRY_AFTER}[what]
    return m.Fail(ids, tokens, [how], [1_200], ["ValueError"], ["boom"])


TestShardMachine = ShardMachine.TestCase
TestShardMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
