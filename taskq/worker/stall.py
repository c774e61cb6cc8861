"""After a stall of the process (it was stopped, its GIL was held) leases may have been given to others.  What is read then is not started before
the broker has confirmed it.

    check() notices the stall → admit() parks what comes → a Heartbeat as a question → answered(): start what is current, ask about newer ones

Once an answer covers all that is parked, the doubt is over.  A new connection ends it too, since its Resume asked about everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

import attrs

from taskq import ids
from taskq.connection import Channel
from taskq.core import messages as m
from taskq.protocol.link import READY
from taskq.worker.job import Job

log = logging.getLogger("taskq.worker")

STALL_S = 5.0
# the time to read what waited in the socket, before asking
SETTLE_S = 0.05
ANSWER_S = 5.0


@attrs.define(eq=False)
class Question:
    """Owner of a Heartbeat that asks about these jobs."""

    jobs: list[Job]


class StallGuard:
    """Between the deliveries and their start; `start` takes what may run, `culprit` says what held the loop in so many seconds."""

    def __init__(self, channel: Channel, start: Callable[[list[Job]], None], culprit: Callable[[float], str] = lambda within_s: "") -> None:
        self._channel = channel
        self._start = start
        self._culprit = culprit
        self._pulse_s = monotonic()
        self._in_doubt = False
        self._parked: list[Job] = []
        self._question: Question | None = None

    def __len__(self) -> int:
        """How many jobs are held back."""
        return len(self._parked) + (len(self._question.jobs) if self._question else 0)

    def check(self) -> None:
        """To be called every second, and before anything that was read is started."""
        now_s = monotonic()
        stalled_s, self._pulse_s = now_s - self._pulse_s, now_s
        if stalled_s > STALL_S and not self._in_doubt:
            why = self._culprit(stalled_s) or "it was stopped, or something held its GIL"
            log.warning("the worker stood still for %.1f s: %s; what it reads now is checked before it is started", stalled_s, why)
            self._in_doubt = True
            asyncio.get_running_loop().call_later(SETTLE_S, self._ask)

    def admit(self, jobs: list[Job]) -> None:
        self.check()
        if self._in_doubt:
            self._parked += jobs
        else:
            self._start(jobs)

    def _ask(self) -> None:
        link = self._channel.link
        if self._in_doubt and self._question is None and link.state is READY:
            self._question, self._parked = Question(self._parked), []
            self._channel.request(link.heartbeat(), self._question, ANSWER_S)

    def answered(self, question: Question, beat: m.Beat) -> None:
        """What came after the question may have been sent before it was read, so it is asked about in turn."""
        if question is not self._question:
            return
        self._question = None
        lost = set(ids.split(beat.lost, ids.TOKEN_BYTES))
        for job in question.jobs:
            if job.token in lost:
                self._channel.link.held.pop(job.token, None)
        self._in_doubt = bool(self._parked)
        self._start_current(question.jobs)
        self._ask()

    def refused(self, question: Question) -> None:
        if question is self._question:
            self._question, self._parked = None, [*question.jobs, *self._parked]
            self._ask()

    def resumed(self) -> None:
        """A new connection: the broker has said which of all held leases are current."""
        self._start_current(self.give_up())

    def give_up(self) -> list[Job]:
        """The jobs that are held back; they are the caller's now, and there is no doubt left."""
        jobs = [*(self._question.jobs if self._question else ()), *self._parked]
        self._question, self._parked, self._in_doubt = None, [], False
        return jobs

    def _start_current(self, jobs: list[Job]) -> None:
        current = [job for job in jobs if job.token in self._channel.link.held]
        if len(current) < len(jobs):
            log.warning("%d tasks were not started, since their leases were lost meanwhile", len(jobs) - len(current))
        self._start(current)
