"""The runner: a worker session and what it runs.  `launch.py` makes it a process of its own, tests run it on their loop.

    Channel ─ Deliver ─► page.received ─► Workbench ─► Reports ─ one Ack / Fail / Release a turn ─► Channel

Rules:
- The shared counter of deliveries is advanced before any of them is started.
- A report stays with the Link until it is answered, through broken connections and restarts of the broker.
- Stopping: take nothing, hand back what waits, finish within the drain time, hand back the rest, say Bye, exit 0.  A second request: at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

from taskq import ids
from taskq.advice import did_you_mean
from taskq.connection import Address, Channel, Untrusted, hello
from taskq.core import messages as m
from taskq.core.messages import DEFAULT_QUEUE
from taskq.core.records import column
from taskq.errors import AuthFailed, AuthRequired, BrokerUnavailable, TaskqError, VersionUnsupported
from taskq.protocol.link import CLOSED, GREETING, PROVING, REPORTS, Answered, Closed, Event, Link, Pushed, Ready, Refused, Stale
from taskq.worker.blocked import LoopWatch
from taskq.worker.context import Serving
from taskq.worker.copies import Copies, sockets_to
from taskq.worker.failure import type_name
from taskq.worker.growth import Growth, resident_meter
from taskq.worker.job import CANCELLED, HANDBACK, LOST, Handback, Job, Outcome
from taskq.worker.loading import AppLike
from taskq.worker.logs import tell_failure
from taskq.worker.origin import Origin
from taskq.worker.page import Page
from taskq.worker.refused import Refusals, is_last, named
from taskq.worker.registry import TaskDefinition, Verdict, declarations
from taskq.worker.reports import Report, Reports
from taskq.worker.settings import EXIT_BUG, EXIT_FATAL, WorkerConfig
from taskq.worker.stall import Question, StallGuard
from taskq.worker.workbench import STEPS, Workbench

log = logging.getLogger("taskq.worker")

PULSE_S = 1.0
CANCEL_S = 2.0
REPORT_S = 5.0
UNKNOWN_TYPE_DELAY_MS = 1_000
# the broker does not take this worker now; what was to be said waits until it does
TURNED_AWAY = (VersionUnsupported, AuthRequired, AuthFailed)

Notify = Callable[[dict[str, Any]], None]


class Runner:
    """One worker session.  `notify` tells the keeper; the page is shared with it.  `copies` guards the process, `origin` is what it began with, if
    it is the worker's own."""

    def __init__(
        self, config: WorkerConfig, app: AppLike, page: Page, notify: Notify, copies: Copies | None = None, origin: Origin | None = None
    ) -> None:
        self._config = config
        self._page = page
        self._notify = notify
        self._tasks = app.tasks
        self._queues = list(config.queues) or sorted({DEFAULT_QUEUE, *(task.queue for task in app.tasks.values())})
        self._ranks = [] if config.queues else [0]  # nobody has said which of the tasks' own queues is preferred
        default = None if config.pool == "auto" else config.pool
        self._pools: dict[str, str] = {name: task.pool_for(default) for name, task in app.tasks.items()}  # type: ignore[arg-type]
        self._concurrency = config.concurrency
        if set(self._pools.values()) == {"process"}:
            self._concurrency = min(config.concurrency, os.cpu_count() or 1)  # more would wait here for a child while other workers are idle
        self._reports = Reports()
        self._refusals = Refusals()
        self._growth = Growth(resident_meter())
        self._flushing = False
        self._taking = False
        self._leaving = False
        self._level = 0
        self._code = 0
        self._changed = asyncio.Event()
        serving = Serving(self._queues, self._tasks)
        self._bench = Workbench(
            config.app or "", self._concurrency, page, self._report, self._failed, self._flush_soon, serving, config.logging, copies, origin
        )
        greeting = hello("worker", config.name)
        self._channel = Channel(Address.parse(config.connect), greeting, self._on_event, token=config.token, ca=config.tls_ca, room=self._room)
        self._away_reason = self._link.reason  # that nothing was tried yet is no news
        self._watch = LoopWatch(lambda: not self._bench.idle, STEPS)
        self._guard = StallGuard(self._channel, self._put, self._watch.culprit)
        self._events: dict[type, Callable[[Any], None]] = {
            Ready: self._ready,
            Pushed: self._pushed,
            Answered: self._answered,
            Refused: self._refused,
            Closed: self._closed,
            Stale: self._ignore,
            Untrusted: self._ignore,
        }
        self._pushes: dict[type, Callable[[Any], None]] = {
            m.Deliver: self._deliver,
            m.Revoke: self._revoke,
            m.Beat: self._beat,
            m.Goaway: self._goaway,
        }

    def files(self) -> Iterable[int]:
        """The numbers of the files by which this process speaks for the worker, and those of its tasks' connections to the broker."""
        return [*self._bench.files(), *sockets_to(self._channel.peers)]

    # ---- life

    async def run(self) -> int:
        """Work until told to stop; the exit code."""
        self._page.clear()
        self._tell_start()
        if not self._tasks:
            log.warning("%s; the worker takes nothing", _no_tasks(self._config.app))
        self._channel.start()
        self._watch.start()
        pulse = asyncio.get_running_loop().create_task(self._beat_pulse())
        pulse.add_done_callback(self._pulse_over)
        await self._until(lambda: self._level > 0, None)
        if not self._is_broken:
            await self._drain()
        self._leaving = True
        pulse.cancel()
        self._flush()
        await self._channel.stop(bye=not self._is_broken)
        await self._bench.close()
        self._watch.stop()
        log.info("stopped")
        return self._code

    def _tell_start(self) -> None:
        pools = ", ".join(sorted(set(self._pools.values()))) or "none"
        types = ", ".join(sorted(self._tasks)) or "none"
        text = "starts with broker %s, queues %s, concurrency %d, pools %s, %d task types: %s"
        log.info(text, self._config.connect, ", ".join(self._queues), self._concurrency, pools, len(self._tasks), types)
        known = {DEFAULT_QUEUE, *(task.queue for task in self._tasks.values())}
        for queue in set(self._queues) - known:
            if near := did_you_mean(queue, known):
                log.warning("no task of the app is for queue %s; %s", queue, near)

    def stop(self, level: int) -> None:
        """1: drain, 2: at once."""
        if level > self._level:
            self._level = level
            self._changed.set()

    def _failed(self, error: BaseException) -> None:
        """A bug of the worker itself, or a task that broke it: a crash.  What runs is not given back, or it would run and break it without end."""
        log.critical("bug in the worker, the runner ends", exc_info=error)
        self._notify({"last_words": f"{type_name(error)} was raised in the worker itself"})
        self._code = EXIT_BUG
        self.stop(2)

    @property
    def _is_broken(self) -> bool:
        return self._code == EXIT_BUG

    def _fatal(self, text: str) -> None:
        """No restart would help."""
        log.error("%s", text)
        self._notify({"fatal": text})
        self._code = EXIT_FATAL
        self.stop(2)

    async def _drain(self) -> None:
        if not self._link.session:
            return  # it never got in: there is nothing to finish and nobody to tell
        log.info("stopping: %d tasks have up to %g s to finish", len(self._bench), self._config.drain_s)
        self._taking = False
        self._subscribe(m.Consume([], [], 0))
        end_s = monotonic() + self._config.drain_s
        self._bench.hand_back_waiting()
        self._hand_back(self._guard.give_up())
        await self._until(lambda: self._bench.idle or self._level > 1, end_s)
        if not self._bench.idle:
            self._bench.hand_back_all()
            await self._until(lambda: self._bench.idle, monotonic() + CANCEL_S)
        self._flush()
        if not self._is_broken:
            await self._until(lambda: self._link.idle, max(monotonic() + REPORT_S, end_s) if self._level < 2 else monotonic() + REPORT_S)

    async def _until(self, condition: Callable[[], bool], end_s: float | None) -> None:
        """Wait for the condition, which is looked at whenever something has changed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if end_s is None else max(0.0, end_s - monotonic())):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    @property
    def _link(self) -> Link:
        return self._channel.link

    # ---- events of the channel

    def _on_event(self, event: Event | Untrusted) -> None:
        try:
            self._events[type(event)](event)
        except Exception as error:
            self._failed(error)
        self._changed.set()

    def _ready(self, event: Ready) -> None:
        link = self._link
        self._page.received = link.received
        self._notify({"session": link.session.hex(), "secret": link.secret.hex(), "heartbeat_ms": event.welcome.heartbeat_ms})
        self._reports.heed(event.welcome.limits)
        log.info("%s session %s at %s", "resumed" if event.resumed else "new", link.session.hex()[:8], self._config.connect)
        self._away_reason = ""
        self._lost(event.lost)
        for token in event.cancelled:
            self._bench.end(token, CANCELLED)
        self._guard.resumed()
        if self._level == 0:
            self._taking = True
            for declaration in declarations(self._tasks.values()):
                self._subscribe(declaration)
            self._subscribe(m.Consume(self._queues, sorted(self._tasks), self._concurrency, self._ranks))
            self._give_credit()

    def _put(self, jobs: list[Job]) -> None:
        self._bench.put(jobs)
        self._watch.wake()

    def _subscribe(self, message: m.Consume | m.Declare) -> None:
        self._channel.request(message, message)

    def _pushed(self, event: Pushed) -> None:
        self._pushes[type(event.message)](event.message)

    def _answered(self, event: Answered) -> None:
        if isinstance(event.owner, Question):
            self._guard.answered(event.owner, event.message)
            self._flush_soon()
        elif type(event.message) is m.Reported:
            self._reported(event.owner, event.message)

    def _reported(self, report: Report, message: m.Reported) -> None:
        if self._refusals.asked is report:
            self._send(self._refusals.answered(report))
        if any(message.outcomes):
            told = zip(ids.split(report.ids, ids.ID_BYTES), message.outcomes, strict=True)
            for task_id in (task_id for task_id, outcome in told if outcome == m.REPORT_LEASE_LOST):
                log.warning("task %s: its lease was lost before the report came; the report was dropped", task_id.hex())

    def _refused(self, event: Refused) -> None:
        owner = event.owner
        if isinstance(owner, Question):
            self._guard.refused(owner)
        elif isinstance(event.error, BrokerUnavailable):
            log.warning("the worker ends before the broker has answered a %s", type(owner).__name__)
        elif isinstance(event.error, TURNED_AWAY) or self._link.state in (GREETING, PROVING):
            self._channel.request(owner, owner)  # the broker has not looked at it
        elif isinstance(owner, REPORTS):
            self._report_refused(owner, event.error)
        elif isinstance(owner, m.Declare):
            log.warning("the broker did not take the options of the task types of queue %s: %s", owner.queues[0], event.error)
        elif self._link.state is not CLOSED:  # else each new connection begins with a subscription of its own
            self._fatal(f"the broker refused the subscription to {', '.join(self._queues) or 'nothing'}: {event.error}")

    def _report_refused(self, report: Report, error: TaskqError) -> None:
        """Told otherwise.  If nothing can be told any more, the lease stays with this session: given up, its task would run again, and uncharged."""
        told = self._refusals.refused(report, error, self._link.state is CLOSED)
        what = "nothing else can be told, so it stays as running while this worker lives" if is_last(report) else "it is told otherwise"
        log.error("the broker refused the %s of %s; %s: %s", type(report).__name__.upper(), named(report), what, error)
        self._send(told)

    def _send(self, reports: list[Report]) -> None:
        for report in reports:
            self._channel.request(report, report)

    def _closed(self, event: Closed) -> None:
        """A worker that never got in will not get in the next time either; one that did waits for whoever has taken its token away."""
        if event.greeting and isinstance(event.error, (AuthRequired, AuthFailed)) and not self._link.session:
            self._fatal(f"the broker does not let the worker in: {event.error}")
        else:
            log.warning("the broker ended the connection: %s", event.error)

    def _ignore(self, event: Event | Untrusted) -> None:
        """Stale, Untrusted: the channel tries again by itself, and the pulse tells why there is no connection."""

    # ---- what the broker pushes

    def _deliver(self, message: m.Deliver) -> None:
        if self._leaving:
            return  # granted before the subscription ended; Bye gives it back
        self._page.received = self._link.received
        jobs = self._jobs_of(message)
        unknown = [job for job in jobs if not job.pool]
        known = [job for job in jobs if job.pool] if unknown else jobs
        for job in unknown:
            log.warning("%s: no such task type here; given back", job.label)
            self._report(job, Handback(UNKNOWN_TYPE_DELAY_MS))
        if self._level:
            self._hand_back(known)
        else:
            self._guard.admit(known)

    def _jobs_of(self, message: m.Deliver) -> list[Job]:
        queue, count = message.queue, len(message.ids) // ids.ID_BYTES
        heads = (ids.split(message.ids, ids.ID_BYTES), ids.split(message.tokens, ids.TOKEN_BYTES), message.payloads)
        told = (message.task_types, message.encodings, message.attempts, message.timeouts_ms)
        columns = (*told, message.max_attempts, message.retries)
        same = all(len(values) == 1 for values in columns)
        definition = self._tasks.get(message.task_types[0]) if same else None
        if definition is None:
            rows = zip(*heads, *(column(values, count) for values in columns), strict=True)
            return [self._job(queue, self._tasks.get(row[3]), row) for row in rows]
        _, (encoding,), (attempt,), (timeout_ms,), (max_attempts,), (retry,) = columns  # one entry counts for all: looked at once
        timeout_ms, pool = timeout_ms or definition.timeout_ms, self._pools[definition.name]
        return [
            Job(task_id, token, queue, definition, payload, encoding, attempt, timeout_ms, pool, max_attempts, retry)
            for task_id, token, payload in zip(*heads, strict=True)
        ]

    def _hand_back(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._report(job, HANDBACK)

    def _job(self, queue: str, definition: TaskDefinition | None, row: tuple[Any, ...]) -> Job:
        task_id, token, payload, task_type, encoding, attempt, timeout_ms, *policy = row
        if definition is None:
            return Job(task_id, token, queue, TaskDefinition(task_type, _nothing), payload, encoding, attempt, timeout_ms, "")
        return Job(
            task_id, token, queue, definition, payload, encoding, attempt, timeout_ms or definition.timeout_ms, self._pools[task_type], *policy
        )

    def _revoke(self, message: m.Revoke) -> None:
        for token in ids.split(message.tokens, ids.TOKEN_BYTES):
            self._bench.end(token, CANCELLED)

    def _beat(self, message: m.Beat) -> None:
        self._lost(ids.split(message.lost, ids.TOKEN_BYTES))
        for token in ids.split(message.cancelled, ids.TOKEN_BYTES):
            self._bench.end(token, CANCELLED)

    def _goaway(self, message: m.Goaway) -> None:
        """The broker stops: finish and report, and come back when the connection has ended."""
        log.info("the broker is stopping: %s", message.reason)
        self._taking = False

    def _lost(self, tokens: list[bytes]) -> None:
        if tokens:
            log.warning("%d leases are lost; their runs are ended and not reported", len(tokens))
        for token in tokens:
            self._bench.end(token, LOST)

    # ---- reports and credit

    def _report(self, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Verdict) and not job.told:
            tell_failure(job, outcome)
        self._reports.add(job, outcome)
        self._flush_soon()

    def _flush_soon(self) -> None:
        """What ended in this turn of the loop is reported at its end, and the room that it left is told."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        self._send(self._reports.take())
        self._growth.check()
        self._give_credit()
        self._channel.flush()
        self._changed.set()

    def _give_credit(self) -> None:
        """Told when it is a quarter more than before, or when the broker is about to run out of what it was allowed."""
        link, room = self._link, self._room()
        gain, outstanding = link.received + room - link.allowed, link.allowed - link.received
        if gain > 0 and (4 * gain >= self._bench.window or 2 * outstanding < room):
            self._channel.credit(room)

    def _room(self) -> int:
        """How many more tasks it takes now, whatever was told before."""
        return max(0, self._bench.room - len(self._guard)) if self._taking else 0

    # ---- time

    def _pulse_over(self, pulse: asyncio.Task[None]) -> None:
        if not pulse.cancelled() and (error := pulse.exception()) is not None:
            self._failed(error)

    async def _beat_pulse(self) -> None:
        while True:
            self._guard.check()
            self._bench.relieve()
            self._growth.check()
            self._tell_absence()
            await asyncio.sleep(PULSE_S)

    def _tell_absence(self) -> None:
        """One line each time the reason changes."""
        if self._link.state is CLOSED and self._link.reason != self._away_reason:
            self._away_reason = self._link.reason
            log.warning("not connected, trying again: %s; %d tasks go on meanwhile", self._away_reason, len(self._bench))


def _no_tasks(app: str | None) -> str:
    if app is None:
        return "no --app was given; give the module of your tasks with it"
    module = app.partition(":")[0]
    return f"the App of {app} has no tasks; import the modules of your tasks in {module}, or give --app one of them that has imported the App"


def _nothing() -> None:
    """The function of a task type that is not known here."""
