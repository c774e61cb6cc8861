"""One end of a connection that outlives its transports: requests in flight, greeting, resume, credit.  It serves client, runner and keeper.

PURE: time (monotonic milliseconds) is an argument, frames go out through `take()`, what happened comes back as a list of events.

    transport up → opened() → Hello → [Challenge → Proof →] Welcome ─► Ready                      a new session
                                                                └► Resume → Resumed ─► Ready      a worker that had one; refused: a new
                                                                                                  session, all leases lost

Rules:
- Each request gets one event, Answered or Refused, also when connections break: it is sent again with the flag RESENT until its deadline.
- A *lane* bounds how many requests of its kind are in flight; the others wait their turn, in order.
- A retryable refusal (OVERLOADED, DRAINING) is sent again after the time that the broker names, if the deadline allows.
- A connection that the broker ends as our mistake counts against everything in flight; the third time the request is refused with that error.
- With a prover each greeting proves the access token, if the broker asks, and then the broker has to prove that it knows it as well.  A broker
  that does not ask is taken as it is: which broker it is, TLS proves.
- A session that is over, or that another connection has taken, is not resumed again: the next greeting begins a new one, and what was held is lost.
- A token is held from its Deliver until its report is answered, so a Resume lists it and the report that follows finds it current.
- Credit is an account that both ends can draw up at any time: a worker allows what it has received and, beyond that, what it has `room` for now.
  Each heartbeat says it anew, and its answer how much was sent, so a frame that was lost on the way stops nobody for longer than that.
- What a worker must not lose and is not answered after ANSWER_BEATS heartbeats is taken for lost: the transport is given up, and it is sent again.

What it must not know: sockets, clocks, task functions, what the messages of its owner mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import attrs

from taskq import ids
from taskq.core import messages as m
from taskq.core.scram import Prover
from taskq.errors import AuthFailed, BrokerUnavailable, OutOfOrder, SessionOver, SessionTaken, TaskqError, from_wire
from taskq.protocol.frames import RESENT, Frame

CLOSED, GREETING, PROVING, RESUMING, READY = "closed", "greeting", "proving", "resuming", "ready"
ENQUEUES_MAX = 256
REQUESTS_MAX = 4_096
WAITS_MAX = 8_000
STRIKES_MAX = 3
SEQ_MAX = 0xFFFF_FFFF
GREETING_MS = 10_000
SILENT_BEATS = 3
ANSWER_BEATS = 6
RETRY_MIN_MS = 20
TICK_MIN_MS = 20
LATE_MS = 1_000
NEVER = 1 << 62
NO_BROKER = "start one with taskq-broker, or name another with TASKQ_URL or --broker"

REPORTS = (m.Ack, m.Fail, m.Release)
UNLOSABLE = (*REPORTS, m.Consume)


@attrs.define
class Ready:
    """The session can be used.  `resumed`: it is the old one.  `lost` and `cancelled`: tokens that were held before the connection broke.
    A worker sends its Consume and its credit again."""

    welcome: m.Welcome
    resumed: bool
    lost: list[bytes] = attrs.field(factory=list)
    cancelled: list[bytes] = attrs.field(factory=list)


@attrs.define
class Answered:
    owner: Any
    message: Any


@attrs.define
class Refused:
    owner: Any
    error: TaskqError


@attrs.define
class Pushed:
    """A frame that answers nothing: Deliver, Revoke, Goaway, and Beat with the tokens that are news."""

    message: Any


@attrs.define
class Closed:
    """The broker says why it ends this connection.  If not `error.retryable`, connecting again in the same way is useless when `greeting`."""

    error: TaskqError
    greeting: bool


@attrs.define
class Stale:
    """Nothing was heard for too long, or not what has to be: the transport is to be dropped."""

    reason: str = "the broker was silent for too long"


Event: TypeAlias = Ready | Answered | Refused | Pushed | Closed | Stale


@attrs.define(eq=False)
class Lane:
    """Requests of one kind: at most `limit` of them in flight, the rest waits."""

    limit: int
    in_flight: int = 0
    queue: deque[Request] = attrs.field(factory=deque)


@attrs.define(eq=False)
class Request:
    message: Any
    owner: Any
    deadline_ms: int
    lane: Lane
    resent: bool = False
    strikes: int = 0
    beats: int = 0


class Link:
    """See the module.  `room`: how many more tasks a worker takes now.  `received`: deliveries read since the session began.  `held`: tokens of
    tasks that are this side's to finish.  `reason`: why there is no transport, or why the last one ended."""

    def __init__(
        self,
        hello: m.Hello,
        *,
        room: Callable[[], int] | None = None,
        prover: Prover | None = None,
        enqueues_max: int = ENQUEUES_MAX,
        requests_max: int = REQUESTS_MAX,
    ) -> None:
        self.hello = hello
        self._room = room
        self._prover = prover
        self.state = CLOSED
        self.welcome: m.Welcome | None = None
        self.session = b""
        self.secret = b""
        self.received = 0
        self.allowed = 0
        self.held: dict[bytes, None] = {}
        self.wake_at = NEVER
        self._greeting: m.Welcome | None = None
        self._lanes: dict[type, Lane] = {m.Enqueue: Lane(enqueues_max)}
        self._waits, self._others = Lane(WAITS_MAX), Lane(requests_max)
        self._all_lanes = (self._others, self._waits, *self._lanes.values())
        self._pending: dict[int, Request] = {}
        self._delayed: list[tuple[int, Request]] = []
        self._out: list[Frame] = []
        self._seq = 0
        self._heard_ms = 0
        self._beat_at = NEVER
        self._beat_seq = 0
        self.reason = "no connection was made yet"
        self._fault: TaskqError | None = None

    # ---- the transport comes and goes

    def opened(self, now_ms: int) -> None:
        """A transport is up: greet."""
        self.state = GREETING
        self._seq = 0
        self._out = []
        self._heard_ms = now_ms
        self._wake(now_ms + GREETING_MS)
        self._emit(self.hello if self._prover is None else attrs.evolve(self.hello, auth=self._prover.first()))

    def lost(self, reason: str = "the connection was closed") -> list[Event]:
        """The transport is gone, or could not be made: what was in flight waits for the next one, ahead of what never was."""
        self.reason = reason
        self.state = CLOSED
        self._out = []
        self.allowed = self._beat_seq = 0
        self._beat_at = NEVER
        events: list[Event] = []
        fault, self._fault = self._fault, None
        for request in reversed(self._pending.values()):
            request.lane.in_flight -= 1
            request.resent = True
            request.strikes += fault is not None
            if fault is not None and request.strikes >= STRIKES_MAX:
                events.append(Refused(request.owner, fault))
            else:
                request.lane.queue.appendleft(request)
        self._pending.clear()
        return events

    def take(self) -> list[Frame]:
        """The frames to send now."""
        out, self._out = self._out, []
        return out

    # ---- requests

    @property
    def idle(self) -> bool:
        """Nothing is in flight and nothing waits."""
        return not (self._pending or self._delayed or any(lane.queue for lane in self._all_lanes))

    def request(self, message: Any, owner: Any, deadline_ms: int = 0, resent: bool = False) -> None:
        """Ask the broker; exactly one Answered or Refused with this owner follows.  `deadline_ms` 0: no deadline.  `resent`: it may have been
        sent before, by somebody else."""
        lane = self._lane_of(message)
        request = Request(message, owner, deadline_ms, lane, resent)
        if deadline_ms:
            self._wake(deadline_ms)
        if self.state is READY and lane.in_flight < lane.limit and not lane.queue:
            self._send(request)
        else:
            lane.queue.append(request)

    def _lane_of(self, message: Any) -> Lane:
        """Waits for a task to end take their time, so nothing else is behind them."""
        return self._waits if type(message) is m.Get and message.wait_ms else self._lanes.get(type(message), self._others)

    def abandon(self, error: TaskqError) -> list[Event]:
        """Refuse everything that was asked for and is not answered: the end, or a broker that will not have us."""
        events: list[Event] = [Refused(request.owner, error) for request in self._all()]
        self._pending.clear()
        self._delayed.clear()
        for lane in self._all_lanes:
            lane.in_flight = 0
            lane.queue.clear()
        return events

    def unsendable(self, seq: int, error: TaskqError) -> list[Event]:
        """A frame from `take()` could not be encoded: its request is refused, nobody else is touched."""
        request = self._pending.pop(seq, None)
        if request is None:
            return []
        request.lane.in_flight -= 1
        self._fill(request.lane)
        return [Refused(request.owner, error)]

    def _send(self, request: Request) -> None:
        request.lane.in_flight += 1
        request.beats = 0
        self._pending[self._emit(request.message, RESENT if request.resent else 0)] = request

    def _emit(self, message: Any, flags: int = 0) -> int:
        self._seq = 1 if self._seq == SEQ_MAX else self._seq + 1
        while self._seq in self._pending:
            self._seq += 1
        self._out.append(Frame(flags, self._seq, message))
        return self._seq

    def _fill(self, lane: Lane) -> None:
        while lane.queue and lane.in_flight < lane.limit:
            self._send(lane.queue.popleft())

    def _fill_all(self) -> None:
        for lane in self._all_lanes:
            self._fill(lane)

    # ---- what arrives

    def receive(self, frame: Frame, now_ms: int) -> list[Event]:
        """One frame of the broker.  Raises ProtocolError when it may not come now: drop the transport."""
        self._heard_ms = now_ms
        if type(frame.message) is m.Error and (frame.seq == 0 or self.state in (GREETING, PROVING)):
            return self._closing(frame.message)
        if self.state is not READY:
            return self._greeted(frame, now_ms)
        return self._answered(frame, now_ms) if frame.seq else self._pushed(frame.message)

    def _closing(self, message: m.Error) -> list[Event]:
        error = from_wire(message.code, message.message, message.field, message.retry_after_ms)
        if isinstance(error, (SessionOver, SessionTaken)):
            self.session = self.secret = b""
        elif not message.retryable:
            self._fault = error
        return [Closed(error, greeting=self.state in (GREETING, PROVING))]

    def _greeted(self, frame: Frame, now_ms: int) -> list[Event]:
        message = frame.message
        match self.state, message:
            case "greeting", m.Challenge() if self._prover is not None:
                return self._prove(self._prover, message)
            case "proving", m.Welcome() if self._prover is not None and not self._prover.confirms(message.auth):
                return [Closed(AuthFailed("what answers there does not know the access token, so it is not the broker that it is for"), True)]
            case "greeting" | "proving", m.Welcome() if self.session and self.hello.role == "worker":
                self._greeting, self.state = message, RESUMING
                self._emit(m.Resume(self.session, self.secret, self.received, b"".join(self.held)))
                return []
            case "greeting" | "proving", m.Welcome():
                return self._begin(message, now_ms)
            case "resuming", m.Resumed():
                return self._resumed(message, now_ms)
            case "resuming", m.Error():
                return self._begin(self._welcomed(), now_ms)
            case _, m.Goaway():
                return [Pushed(message)]
        raise OutOfOrder(f"{type(message).__name__} may not come while {self.state}")

    def _prove(self, prover: Prover, message: m.Challenge) -> list[Event]:
        try:
            proof = m.Proof(prover.final(message.challenge))
        except AuthFailed as error:
            return [Closed(error, greeting=True)]
        self.state = PROVING
        self._emit(proof)
        return []

    def _welcomed(self) -> m.Welcome:
        assert self._greeting is not None
        return self._greeting

    def _begin(self, welcome: m.Welcome, now_ms: int) -> list[Event]:
        """A new session: whatever an old one held is lost."""
        lost = self._news(self.held)
        self.session, self.secret = welcome.session, welcome.secret
        self.received = 0
        self.held.clear()
        return self._ready(Ready(welcome, False, lost), now_ms)

    def _resumed(self, message: m.Resumed, now_ms: int) -> list[Event]:
        told = list(zip(self.held, message.outcomes, strict=True)) if len(message.outcomes) == len(self.held) else None
        if told is None:
            raise OutOfOrder("Resumed does not answer the tokens of the Resume one by one")
        lost = self._news(token for token, outcome in told if outcome == m.LOST)
        self._drop(token for token, outcome in told if outcome == m.LOST)
        cancelled = [token for token, outcome in told if outcome == m.KEPT_BUT_CANCELLED]
        return self._ready(Ready(self._welcomed(), True, lost, cancelled), now_ms)

    def _ready(self, event: Ready, now_ms: int) -> list[Event]:
        self.state, self.welcome = READY, event.welcome
        self._fault = None
        self._beat_at = now_ms + event.welcome.heartbeat_ms
        self._wake(self._beat_at)
        self._fill_all()
        return [event]

    def _answered(self, frame: Frame, now_ms: int) -> list[Event]:
        message = frame.message
        if frame.seq == self._beat_seq:
            self._beat_seq = 0
            return self._beat(message)
        request = self._pending.pop(frame.seq, None)
        if request is None:
            return []
        lane = request.lane
        lane.in_flight -= 1
        if lane.queue:
            self._fill(lane)
        if type(message) is m.Error:
            return self._refused(request, message, now_ms)
        if type(message) is m.Reported:
            self._drop(ids.split(request.message.tokens, ids.TOKEN_BYTES))
        return [Answered(request.owner, message)]

    def _refused(self, request: Request, message: m.Error, now_ms: int) -> list[Event]:
        again_ms = now_ms + max(message.retry_after_ms, RETRY_MIN_MS)
        if message.retryable and (not request.deadline_ms or again_ms < request.deadline_ms):
            self._delayed.append((again_ms, request))
            self._wake(again_ms)
            return []
        return [Refused(request.owner, from_wire(message.code, message.message, message.field, message.retry_after_ms))]

    def _pushed(self, message: Any) -> list[Event]:
        if type(message) is m.Deliver:
            self._delivered(message)
        return [Pushed(message)]

    # ---- leases and credit of a worker

    def credit(self, free: int) -> None:
        """Allow `free` more deliveries than were received; told only when it is more than was told before."""
        allowed = self.received + free
        if self.state is READY and allowed > self.allowed:
            self.allowed = allowed
            self._out.append(Frame(0, 0, m.Credit(allowed)))

    def heartbeat(self) -> m.Heartbeat:
        """The account of a worker as it is now."""
        if self._room is not None:
            self.allowed = max(self.allowed, self.received + self._room())
        return m.Heartbeat(self.received, b"".join(self.held), self.allowed)

    def _delivered(self, message: m.Deliver) -> None:
        tokens = ids.split(message.tokens, ids.TOKEN_BYTES)
        if message.first != self.received + 1:
            raise OutOfOrder(f"delivery {message.first} follows delivery {self.received}")
        self.received += len(tokens)
        self.held.update(dict.fromkeys(tokens))

    def _beat(self, message: Any) -> list[Event]:
        if type(message) is not m.Beat:
            return []
        if message.delivered > self.received:
            raise OutOfOrder(f"delivery {message.delivered} was sent, and {self.received} is the last that came")
        told = ids.split(message.lost, ids.TOKEN_BYTES)
        lost = self._news(told)
        self._drop(lost)
        if not lost and not message.cancelled:
            return []
        return [Pushed(m.Beat(b"".join(lost), message.cancelled))]

    def _news(self, tokens: Any) -> list[bytes]:
        """Those tokens whose loss the owner does not know: held, and no report about them is under way (its answer will tell)."""
        reports = (request.message for request in self._all() if isinstance(request.message, REPORTS))
        reported = {token for report in reports for token in ids.split(report.tokens, ids.TOKEN_BYTES)}
        return [token for token in tokens if token in self.held and token not in reported]

    def _drop(self, tokens: Any) -> None:
        for token in tokens:
            self.held.pop(token, None)

    # ---- time

    def tick(self, now_ms: int) -> list[Event]:
        """To be called at `wake_at` or later: heartbeats, deadlines, delayed retries, silence."""
        if now_ms - self.wake_at > LATE_MS:
            self._heard_ms = now_ms  # this side slept: what the broker sent meanwhile was not read yet
        if self._silent(now_ms):
            return [Stale()]
        if now_ms >= self._beat_at and self._is_unanswered():
            return [Stale("the broker has left a report or the subscription without an answer for too long")]
        if now_ms >= self._beat_at:
            self._heartbeat(now_ms)
        events = self._expire(now_ms)
        self._retry(now_ms)
        self.wake_at = max(now_ms + TICK_MIN_MS, self._next(now_ms))
        return events

    def _silence_max_ms(self) -> int:
        return self.welcome.heartbeat_ms * SILENT_BEATS if self.state is READY and self.welcome else GREETING_MS

    def _silent(self, now_ms: int) -> bool:
        return self.state is not CLOSED and now_ms - self._heard_ms >= self._silence_max_ms()

    def _is_unanswered(self) -> bool:
        """To be called once a heartbeat.  A wait for a task may take any time; what is asked for with a deadline has that."""
        asked = [request for request in self._pending.values() if isinstance(request.message, UNLOSABLE)]
        for request in asked:
            request.beats += 1
        return any(request.beats > ANSWER_BEATS for request in asked)

    def _heartbeat(self, now_ms: int) -> None:
        assert self.welcome is not None
        self._beat_seq = self._emit(self.heartbeat())
        self._beat_at = now_ms + self.welcome.heartbeat_ms

    def _expire(self, now_ms: int) -> list[Event]:
        late = [request for request in self._all() if request.deadline_ms and request.deadline_ms <= now_ms]
        if not late:
            return []
        gone = set(map(id, late))
        in_flight = {seq for seq, request in self._pending.items() if id(request) in gone}
        for seq in in_flight:
            self._pending.pop(seq).lane.in_flight -= 1
        for lane in self._all_lanes:
            lane.queue = deque(request for request in lane.queue if id(request) not in gone)
        self._delayed = [(at, request) for at, request in self._delayed if id(request) not in gone]
        if self.state is READY:
            self._fill_all()
        return [Refused(request.owner, self._unavailable()) for request in late]

    def _unavailable(self) -> BrokerUnavailable:
        if self.state is READY:
            return BrokerUnavailable("the broker is connected but did not answer before the deadline; whether the request was applied is unknown")
        return BrokerUnavailable(f"the broker could not be reached before the deadline: {self.reason}; {NO_BROKER}")

    def _retry(self, now_ms: int) -> None:
        due = [request for at, request in self._delayed if at <= now_ms]
        if not due:
            return
        self._delayed = [(at, request) for at, request in self._delayed if at > now_ms]
        for request in reversed(due):
            request.lane.queue.appendleft(request)
        if self.state is READY:
            self._fill_all()

    def _next(self, now_ms: int) -> int:
        silent_at = NEVER if self.state in (CLOSED, READY) else self._heard_ms + GREETING_MS
        deadlines = (request.deadline_ms for request in self._all() if request.deadline_ms)
        return min(chain(deadlines, (at for at, _ in self._delayed), (self._beat_at, silent_at)))

    def _wake(self, at_ms: int) -> None:
        self.wake_at = min(self.wake_at, at_ms)

    def _all(self) -> list[Request]:
        queued = (lane.queue for lane in self._all_lanes)
        return [*self._pending.values(), *chain.from_iterable(queued), *(request for _, request in self._delayed)]
