"""A session: what one connection may say, in which order, and what becomes of it.

Pure: frames and the time in, commands for shards and answers out.  The order within a session is never changed.  A request is answered once; a
refusal is an Error with its seq.  What breaks the protocol is raised as ProtocolError, and the shell closes.  An Error with seq 0 is the last frame
of a connection: a frame to which nobody waits for an answer closes it if it is refused, and goes unnoticed if its kind is unknown.

One connection at a time speaks for a worker session.  The one that it was taken from, and that of a session that is over, is told so and closed
(`evicted`), and what it still sends is refused.

    New ── Hello ──► Ready ──► Closing            New ── Hello ──► Greeted ── Proof ──► Ready ──► Closing       where a token is asked for

`FIRST` says which frame each state before Ready waits for; any other ends the connection.  Before Ready there is no role and no grant.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from heapq import nsmallest
from itertools import islice
from typing import Any

from taskq.core import access, standing
from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.access import Grant
from taskq.core.consumer import Consumer
from taskq.core.enqueue import NAME, NAME_RULE, error_of
from taskq.core.house import House
from taskq.core.records import column
from taskq.core.requests import Requests
from taskq.core.scram import NONCE_BYTES, Exchange
from taskq.core.types import declared
from taskq.errors import (
    Answer,
    AuthRequired,
    BadRequest,
    Draining,
    Forbidden,
    NotFound,
    OutOfOrder,
    ProtocolError,
    SessionOver,
    SessionTaken,
    UnknownKind,
    VersionUnsupported,
    echo,
)
from taskq.ids import TOKEN_BYTES, split

VERSION = 1
ROLES = ("producer", "worker", "keeper")
NEW, GREETED, READY, CLOSING = "new", "greeted", "ready", "closing"
# state before Ready → the only frame that may come, as it is called in the refusal of any other
FIRST: dict[str, tuple[type, str]] = {
    NEW: (m.Hello, "the first frame must be HELLO"),
    GREETED: (m.Proof, "a CHALLENGE must be answered with PROOF"),
}
NAMES_MAX = 10_000
ROWS_MAX = 10_000
# of the names of a worker's subscription so many are shown, and fewer where there are very many workers
NAMES_SHOWN, NAMES_SHOWN_IN_ALL = 100, 50_000
CLIENT_FIELDS_MAX = 16
CLIENT_CHARS_MAX = 256


class Session:
    """One connection.  `commands`, `answers` and `notices`, words for the log, are what the last call left to be taken; `closing` says that the
    connection ends after them.
    `evicted`: other connections that are to be closed, and why.  `resuming`: no frame may come until the Resume is answered.
    `grant`: what its access token allows, None where no token is asked for."""

    def __init__(self, origin: int, house: House) -> None:
        self.origin = origin
        self.house = house
        self.requests = Requests(origin, house.ring)
        self.state = NEW
        self.role = ""
        self.grant: Grant | None = None
        self.client: dict[str, Any] = {}
        self.consumer: Consumer | None = None
        self.commands: list[tuple[int, fx.Command]] = []
        self.answers: list[tuple[int, Any]] = []
        self.notices: list[str] = []
        self.evicted: dict[int, ProtocolError] = {}
        self._sent = 0
        self._hello = m.Hello(VERSION, "")
        self._exchange: Exchange | None = None
        self._resumes = False
        self._resuming: dict[int, tuple[Consumer, m.Resume]] = {}
        self._beating: dict[int, m.Heartbeat] = {}

    @property
    def closing(self) -> bool:
        return self.state is CLOSING

    @property
    def resuming(self) -> bool:
        return bool(self._resuming)

    def receive(self, seq: int, resent: bool, message: Any, now_ms: int) -> None:
        """One frame from the peer.  Raises ProtocolError."""
        if self.state is not READY:
            self._check_order(message)
        rule = RULES.get(type(message))
        if rule is None:
            if seq:
                self.answers.append((seq, error_of(UnknownKind(f"frame kind {_kind(message)} is unknown to this broker"))))
            return
        roles, handle = rule
        if self.role not in roles and self.state is READY:
            self._answer(seq, Forbidden(f"a {self.role} session may not send {type(message).__name__.upper()}; open one with another role"))
            return
        if seq and seq in self.requests.open:
            raise OutOfOrder(f"seq {seq} is in use by a request that is not answered yet")
        self._check_session()
        try:
            if self.grant is not None:
                access.check(self.grant, message)
            handle(self, seq, message, now_ms, resent)
        except Answer as answer:
            self._answer(seq, answer)

    def _check_order(self, message: Any) -> None:
        expected, otherwise = FIRST.get(self.state, (None, "the connection is closing"))
        if type(message) is not expected:
            self.state = CLOSING
            raise OutOfOrder(otherwise)

    def _check_session(self) -> None:
        """The worker session is still this connection's own."""
        consumer = self.consumer
        if consumer is None or self._resuming:
            return
        if consumer.over:
            raise SessionOver()
        if consumer.origin != self.origin:
            raise SessionTaken()

    def _answer(self, seq: int, answer: Answer) -> None:
        """Refuse a request.  Who waits for no answer would not know which frame was refused, so the connection ends with it."""
        self.answers.append((seq, error_of(answer)))
        if not seq:
            self.state = CLOSING

    def answered(self, seq: int, part: int, answer: Any, now_ms: int) -> None:
        """A shard's reply came back durable."""
        if seq == 0:
            if type(answer) is m.Deliver:
                self._sent = answer.first + len(answer.payloads) - 1
            self.answers.append((0, answer))
            return
        whole = self.requests.answered(seq, part, answer)
        if whole is None:
            return
        if type(whole) is fx.Known:
            whole = self._known(seq, whole, now_ms)
        elif type(whole) is m.Inspected:
            del whole.rows[ROWS_MAX:]
        self.answers.append((seq, whole))

    def lost(self, now_ms: int) -> None:
        """The connection is gone.  The consumer stays for a while: it may resume."""
        consumer = self.consumer
        if consumer is not None and consumer.origin == self.origin:
            consumer.away(now_ms, self.house.terms.grace_ms)

    # ---- session frames ------------------------------------------------------------------------------------------------------------

    def on_hello(self, seq: int, hello: m.Hello, now_ms: int, resent: bool) -> None:
        if self.state is READY:
            raise OutOfOrder("HELLO was sent before")
        if hello.version != VERSION:
            raise VersionUnsupported(f"version {hello.version} is not supported; this broker speaks version {VERSION}")
        if hello.role not in ROLES:
            raise ProtocolError(f"role {echo(hello.role)} is unknown; use producer, worker or keeper", field="role")
        if len(hello.client) > CLIENT_FIELDS_MAX or any(len(str(value)) > CLIENT_CHARS_MAX for value in hello.client.values()):
            raise ProtocolError(f"client: at most {CLIENT_FIELDS_MAX} fields of {CLIENT_CHARS_MAX} characters", field="client")
        self._hello = hello
        gate = self.house.gate
        if gate is None:
            self._welcome(seq, now_ms)
        elif not hello.auth:
            self.state = CLOSING
            raise AuthRequired()
        else:
            self._exchange = gate.begin(hello.auth, self.house.rng.randbytes(NONCE_BYTES))
            self.state = GREETED
            self.answers.append((seq, m.Challenge(self._exchange.challenge)))

    def on_proof(self, seq: int, proof: m.Proof, now_ms: int, resent: bool) -> None:
        gate, exchange, self._exchange = self.house.gate, self._exchange, None
        if gate is None or exchange is None:
            raise OutOfOrder("PROOF answers a CHALLENGE, and there is none")
        self.state = CLOSING
        self.grant, signature = gate.end(exchange, proof.proof)
        self._welcome(seq, now_ms, signature)

    def _welcome(self, seq: int, now_ms: int, signature: bytes = b"") -> None:
        hello, terms = self._hello, self.house.terms
        self.state, self.role, self.client = READY, hello.role, hello.client
        session = self.house.rng.randbytes(16)
        wall_ms = now_ms if self.house.wall_ms is None else self.house.wall_ms()
        if hello.role == "worker":
            name = str(hello.client.get("name") or session.hex()[:8])
            self._open_consumer(Consumer(session, name, now_ms + terms.lease_ms, hello.client, connected_ms=wall_ms, heard_ms=now_ms))
        secret = self.house.secret(session)
        id_ms = self.house.ids.now_ms(now_ms)
        welcome = m.Welcome(session, secret, id_ms, terms.epoch, terms.heartbeat_ms, terms.lease_ms, terms.limits, auth=signature)
        self.answers.append((seq, welcome))

    def _open_consumer(self, consumer: Consumer) -> None:
        consumer.origin = self.origin
        self.consumer = consumer
        self.house.consumers[consumer.session] = consumer

    def _proven(self, message: Any) -> Consumer:
        if not hmac.compare_digest(message.secret, self.house.secret(message.session)):
            raise NotFound("no such session, or the secret is not its own", field="secret")
        consumer = self.house.consumers.get(message.session)
        if consumer is None or consumer.over:
            raise NotFound("the session is over; begin a new one", field="session")
        return consumer

    def on_resume(self, seq: int, resume: m.Resume, now_ms: int, resent: bool) -> None:
        self._check_tokens(resume.tokens)
        own = self.consumer
        if self._resumes or own is None or own.queues or own.allowed:
            raise OutOfOrder("RESUME comes once, before CONSUME and CREDIT")
        consumer = self._proven(resume)
        self._resumes = True
        if consumer.origin and consumer.origin != self.origin:
            self.evicted[consumer.origin] = SessionTaken()
        if own is not consumer:
            self.house.consumers.pop(own.session, None)
        consumer.origin = 0
        consumer.subscribe({}, consumer.task_types, ())
        consumer.deadline_ms = max(consumer.deadline_ms, now_ms + self.house.terms.lease_ms)
        self._excuse(consumer)
        self.consumer = consumer
        self._resuming[seq] = (consumer, resume)
        self._ask(seq, fx.Held(consumer.session, resume.received, frozenset(split(resume.tokens, TOKEN_BYTES)), True), False)

    def on_heartbeat(self, seq: int, beat: m.Heartbeat, now_ms: int, resent: bool) -> None:
        if self.consumer is None:
            self.answers.append((seq, m.Beat()))
            return
        self._check_tokens(beat.tokens)
        self._heard(self.consumer, beat.received, now_ms)
        idle = self._holds_nothing(self.consumer.session)
        if self.consumer.origin == self.origin:
            self._account(self.consumer, beat, idle)
        if seq and idle and not beat.tokens:
            self.answers.append((seq, m.Beat(delivered=self._sent)))
            return
        self._beating[seq] = beat
        received = min(beat.received, self.consumer.delivered)
        self._ask(seq, fx.Held(self.consumer.session, received, frozenset(split(beat.tokens, TOKEN_BYTES)), False), False)

    def _check_tokens(self, tokens: bytes) -> None:
        """Nobody holds more tasks than a worker may have: a longer list is refused before anything is done with it."""
        most, count = self.house.terms.leases_max, len(tokens) // TOKEN_BYTES
        if count > most:
            raise BadRequest(f"tokens: a worker has at most {most:,} tasks at a time (leases_max), not {count:,}", field="tokens")

    def _holds_nothing(self, session: bytes) -> bool:
        """There is nothing to give up: what is delivered from now on has a number that the worker has not received.  So an idle worker's heartbeat
        costs the shards nothing."""
        held = self.house.held
        return bool(held) and not any(session in leases for leases in held)

    def _known(self, seq: int, known: fx.Known, now_ms: int) -> Any:
        """What all shards know of the tokens that the worker said it holds."""
        held, cancelled = set(known.tokens), set(known.cancelled)
        if seq in self._beating:
            beat = self._beating.pop(seq)
            lost = b"".join(token for token in split(beat.tokens, TOKEN_BYTES) if token not in held)
            return m.Beat(lost, b"".join(known.cancelled), self._sent)
        consumer, resume = self._resuming.pop(seq)
        if self.closing:
            return m.Resumed(b"")
        if consumer.over:
            self.state = CLOSING
            return error_of(SessionOver())
        if consumer.origin:
            self.evicted[consumer.origin] = SessionTaken()
        consumer.origin, consumer.client, consumer.restored, consumer.choked = self.origin, self.client, False, False
        self._sent = consumer.delivered = consumer.received = consumer.allowed = resume.received
        consumer.heard(resume.received, now_ms, self.house.terms.lease_ms)
        outcomes = (
            m.LOST if token not in held else m.KEPT_BUT_CANCELLED if token in cancelled else m.KEPT for token in split(resume.tokens, TOKEN_BYTES)
        )
        return m.Resumed(bytes(outcomes))

    def on_keepalive(self, seq: int, keepalive: m.Keepalive, now_ms: int, resent: bool) -> None:
        self._heard(self._proven(keepalive), keepalive.received, now_ms)
        self.answers.append((seq, m.Ok()))

    def _heard(self, consumer: Consumer, received: int, now_ms: int) -> None:
        """A sign of life; one that was given up gets tasks again."""
        was_late = consumer.deadline_ms <= now_ms
        self._excuse(consumer)
        consumer.heard(received, now_ms, self.house.terms.lease_ms)
        if was_late:
            self._ready(consumer)

    def _excuse(self, consumer: Consumer) -> None:
        """It lives, so the tasks that it has lost to a cut were not killed."""
        if consumer.charged:
            pieces = self.house.ring.split(fx.Returned(b"".join(consumer.charged)))
            self.commands += [(shard, fx.Command(0, 0, piece)) for shard, piece, _ in pieces]
            consumer.charged = []

    def on_died(self, seq: int, died: m.Died, now_ms: int, resent: bool) -> None:
        consumer = self._proven(died)
        consumer.over = True
        if consumer.origin and consumer.origin != self.origin:
            self.evicted[consumer.origin] = SessionOver()
        if not died.cause:
            self._excuse(consumer)
        self._ask(seq, fx.Over(died.session, died.cause[:CLIENT_CHARS_MAX]), False)

    def on_bye(self, seq: int, bye: m.Bye, now_ms: int, resent: bool) -> None:
        self.state = CLOSING
        if self.consumer is None:
            self.answers.append((seq, m.Ok()))
            return
        self.consumer.over = True
        self._ask(seq, fx.Over(self.consumer.session, ""), False)

    # ---- task frames ---------------------------------------------------------------------------------------------------------------

    def _ask(self, seq: int, message: Any, resent: bool) -> None:
        if seq == 0:
            raise OutOfOrder("a request needs a seq from 1 up")
        consumer = self.consumer
        self.commands += self.requests.ask(seq, message, resent, b"" if consumer is None else consumer.session, self.grant)

    def on_request(self, seq: int, message: Any, now_ms: int, resent: bool) -> None:
        self._ask(seq, message, resent)

    def on_consume(self, seq: int, consume: m.Consume, now_ms: int, resent: bool) -> None:
        consumer = self._subscriber()
        for field, names in (("queues", consume.queues), ("task_types", consume.task_types)):
            if len(names) > NAMES_MAX:
                raise BadRequest(f"{field}: at most {NAMES_MAX} names", field=field)
            wrong = next((name for name in names if not NAME.fullmatch(name)), None)
            if wrong is not None:
                raise BadRequest(f"{field}: {echo(wrong)} must be {NAME_RULE}", field=field)
        if len(consume.ranks) not in (0, 1, len(consume.queues)):
            raise BadRequest(
                f"ranks: needs no entry, 1, or one for each of the {len(consume.queues)} queues, not {len(consume.ranks)}", field="ranks"
            )
        if self.house.draining and consume.queues:
            raise Draining(retry_after_ms=1_000)
        queues = ranked(consume)
        consumer.subscribe(queues, frozenset(consume.task_types), tuple(sorted(set(map(self.house.ring.of_queue, queues)))))
        consumer.concurrency = consume.concurrency
        self.answers.append((seq, m.Ok()))
        self.ready()

    def on_declare(self, seq: int, declare: m.Declare, now_ms: int, resent: bool) -> None:
        house, consumer = self.house, self._subscriber()
        if house.types.declare(declared(declare, consumer.name, now_ms if house.wall_ms is None else house.wall_ms())):
            house.keep_types()
        self.answers.append((seq, m.Ok()))

    def on_credit(self, seq: int, credit: m.Credit, now_ms: int, resent: bool) -> None:
        consumer = self._subscriber()
        if seq:
            self.answers.append((seq, m.Ok()))
        self._allow(consumer, credit.allowed)

    def _allow(self, consumer: Consumer, allowed: int) -> None:
        if allowed > consumer.allowed:
            consumer.allowed = allowed
            self._ready(consumer)

    def _account(self, consumer: Consumer, beat: m.Heartbeat, idle: bool) -> None:
        """What it allows, said anew; and does it stand for all that?"""
        self._allow(consumer, beat.allowed)
        told = standing.look(consumer, self.house.waiting) if idle else None
        if told is not None:
            self._ready(consumer)
            self.notices += [told] if told else []

    def _subscriber(self) -> Consumer:
        if self.consumer is None or self.consumer.origin != self.origin:
            raise OutOfOrder("the session is not resumed yet")
        return self.consumer

    def ready(self) -> None:
        """Tell the shards that own the consumer's queues that it can take more."""
        if self.consumer is not None:
            self._ready(self.consumer)

    def _ready(self, consumer: Consumer) -> None:
        if consumer.room > 0:
            self.commands += [(shard, fx.Command(0, 0, fx.Ready(consumer.session))) for shard in consumer.shards]

    def on_inspect(self, seq: int, inspect: m.Inspect, now_ms: int, resent: bool) -> None:
        if inspect.what == "queues":
            self._ask(seq, inspect, False)
        else:
            self.answers.append((seq, inspected(self.house, inspect.what, now_ms, self.grant)))


def ranked(consume: m.Consume) -> dict[str, int]:
    """The queues with their ranks, the lowest preferred: as told, else in the order of the list.  Of a name that stands twice the first counts."""
    ranks = column(consume.ranks, len(consume.queues)) if consume.ranks else range(len(consume.queues))
    queues: dict[str, int] = {}
    for queue, rank in zip(consume.queues, ranks, strict=True):
        queues.setdefault(queue, rank)
    return queues


def inspected(house: House, what: str, now_ms: int, grant: Grant | None = None) -> m.Inspected | m.Error:
    """What can be told without asking the shards."""
    if what == "workers":
        seen = (consumer for consumer in house.consumers.values() if consumer.origin and (grant is None or _may_see(grant, consumer)))
        connected = list(islice(seen, ROWS_MAX))
        shown = min(NAMES_SHOWN, NAMES_SHOWN_IN_ALL // (len(connected) or 1))
        return m.Inspected([_worker(house, consumer, now_ms, shown) for consumer in connected])
    if what == "broker":
        return m.Inspected([house.describe()])
    if what == "types":
        return m.Inspected([each.dump() for each in house.types.values() if grant is None or grant.allows_in_any_way(each.queue)])
    return error_of(BadRequest(f"what: {echo(what)} is unknown; use queues, workers, types or broker", field="what"))


def _may_see(grant: Grant, consumer: Consumer) -> bool:
    """A worker is shown to who may read all that it works on."""
    if not consumer.queues:
        return grant.allows_everywhere(access.READ)
    return all(grant.allows(access.READ, queue) for queue in consumer.queues)


def _worker(house: House, consumer: Consumer, now_ms: int, shown: int) -> dict[str, Any]:
    """One worker as people see it, with the first names of what it takes and runs."""
    row = {name: consumer.client.get(name, "") for name in ("host", "pid", "version")}
    return {
        "name": consumer.name,
        "session": consumer.session.hex(),
        **row,
        "queues": list(islice(consumer.queues, shown)),
        "task_types": nsmallest(shown, consumer.task_types),
        "queues_count": len(consumer.queues),
        "task_types_count": len(consumer.task_types),
        "concurrency": consumer.concurrency,
        "running": sum(len(held[consumer.session]) for held in house.held if consumer.session in held),
        "delivered": consumer.delivered,
        "room": consumer.room,
        "connected_ms": consumer.connected_ms,
        "heard_ms_ago": max(0, now_ms - consumer.heard_ms),
    }


def _kind(message: Any) -> str:
    """What a frame is called, without what it says."""
    kind = getattr(message, "kind", None)
    return type(message).__name__.upper() if kind is None else f"0x{kind:04x}"


Handler = Callable[[Session, int, Any, int, bool], None]
ANY = frozenset(ROLES)
WORKER = frozenset({"worker"})
KEEPER = frozenset({"keeper", "worker"})

# which roles may send a frame, and what it does
RULES: dict[type, tuple[frozenset[str], Handler]] = {
    m.Hello: (ANY, Session.on_hello),
    m.Proof: (ANY, Session.on_proof),
    m.Resume: (WORKER, Session.on_resume),
    m.Heartbeat: (ANY, Session.on_heartbeat),
    m.Keepalive: (KEEPER, Session.on_keepalive),
    m.Died: (KEEPER, Session.on_died),
    m.Bye: (ANY, Session.on_bye),
    m.Enqueue: (ANY, Session.on_request),
    m.Consume: (WORKER, Session.on_consume),
    m.Declare: (WORKER, Session.on_declare),
    m.Credit: (WORKER, Session.on_credit),
    m.Ack: (WORKER, Session.on_request),
    m.Fail: (WORKER, Session.on_request),
    m.Release: (WORKER, Session.on_request),
    m.Cancel: (ANY, Session.on_request),
    m.Get: (ANY, Session.on_request),
    m.Inspect: (ANY, Session.on_inspect),
}
