"""The link between a client and the broker, driven by hand: invented times, no sockets."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core import messages as m
from taskq.core.gate import AccessToken, Gate, grant_of, text_of
from taskq.core.scram import Exchange, Prover
from taskq.errors import AuthFailed, BrokerUnavailable, OutOfOrder, Overloaded, PayloadTooLarge, TaskqError
from taskq.protocol.frames import RESENT, Frame
from taskq.protocol.link import ANSWER_BEATS, GREETING_MS, LATE_MS, STRIKES_MAX, TICK_MIN_MS, Answered, Closed, Link, Pushed, Ready, Refused, Stale

HEARTBEAT_MS = 5_000
TOKENS = [bytes([n]) * 8 for n in range(1, 10)]


def welcome(session: bytes = b"s" * 16) -> m.Welcome:
    return m.Welcome(session, session * 2, now_ms=1_000_000, epoch=1, heartbeat_ms=HEARTBEAT_MS, lease_ms=15_000)


def enqueue(text: str = "x") -> m.Enqueue:
    return m.Enqueue([text.encode()], "default", b"i" * 16, ["t"])


def deliver(first: int, *tokens: bytes) -> m.Deliver:
    count = len(tokens)
    return m.Deliver([b""] * count, "default", first, b"i" * 16 * count, b"".join(tokens), ["t"], [1], [1], [0])


def seq_of(link: Link, kind: type) -> int:
    """The seq of the only frame of this kind that is to be sent."""
    (frame,) = [frame for frame in link.take() if type(frame.message) is kind]
    return frame.seq


def connect(link: Link, now_ms: int = 0) -> Ready:
    """Bring a link without an old session to READY; what it sends after that stays in `take()`."""
    link.opened(now_ms)
    (event,) = link.receive(Frame(0, seq_of(link, m.Hello), welcome()), now_ms)
    assert isinstance(event, Ready)
    return event


def producer(**limits: int) -> Link:
    link = Link(m.Hello(1, "producer"), **limits)
    connect(link)
    return link


def worker() -> Link:
    link = Link(m.Hello(1, "worker"))
    connect(link)
    return link


def answer(link: Link, seq: int, message: Any, now_ms: int = 0) -> list[Any]:
    return link.receive(Frame(0, seq, message), now_ms)


class TestGreeting:
    def test_a_transport_is_greeted_first_and_nothing_overtakes_the_hello(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.request(enqueue(), "a")
        link.opened(0)
        assert [type(frame.message) for frame in link.take()] == [m.Hello]

    def test_what_was_asked_before_leaves_with_the_welcome(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.request(enqueue(), "a")
        assert not connect(link).resumed
        (frame,) = link.take()
        assert frame.message == enqueue() and frame.flags == 0

    def test_a_refused_hello_is_told_as_closed(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.opened(0)
        (event,) = answer(link, seq_of(link, m.Hello), m.Error("VERSION_UNSUPPORTED", "no"))
        assert isinstance(event, Closed) and event.greeting and not event.error.retryable

    def test_another_frame_before_the_welcome_breaks_the_protocol(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.opened(0)
        with pytest.raises(OutOfOrder):
            answer(link, 0, deliver(1, TOKENS[0]))

    def test_a_broker_that_never_greets_is_stale(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.opened(0)
        assert link.wake_at == GREETING_MS
        assert link.tick(GREETING_MS) == [Stale()]


class TestRequests:
    def test_an_answer_finds_its_owner_by_seq_in_any_order(self) -> None:
        link = producer()
        link.request(m.Get(b"1"), "first")
        link.request(m.Get(b"2"), "second")
        first, second = link.take()
        assert answer(link, second.seq, m.Ok()) == [Answered("second", m.Ok())]
        assert answer(link, first.seq, m.Ok()) == [Answered("first", m.Ok())]
        assert link.idle

    def test_an_error_becomes_its_exception(self) -> None:
        link = producer()
        link.request(enqueue(), "a")
        (event,) = answer(link, seq_of(link, m.Enqueue), m.Error("PAYLOAD_TOO_LARGE", "big", "payload"))
        assert isinstance(event, Refused) and isinstance(event.error, PayloadTooLarge) and event.error.field == "payload"

    def test_an_answer_that_nobody_waits_for_is_ignored(self) -> None:
        assert answer(producer(), 77, m.Ok()) == []

    def test_only_so_many_enqueues_are_in_flight_and_other_requests_pass_them(self) -> None:
        link = producer(enqueues_max=2)
        for owner in "abc":
            link.request(enqueue(owner), owner)
        link.request(m.Get(b"1"), "get")
        sent = link.take()
        assert [frame.message for frame in sent] == [enqueue("a"), enqueue("b"), m.Get(b"1")]
        answer(link, sent[0].seq, m.Ok())
        assert [frame.message for frame in link.take()] == [enqueue("c")]

    def test_a_broken_connection_sends_again_with_the_flag_in_order_and_before_new_ones(self) -> None:
        link = producer(enqueues_max=2)
        for owner in "abc":
            link.request(enqueue(owner), owner)
        link.take()
        assert link.lost() == []
        link.request(enqueue("d"), "d")
        connect(link, 10)
        sent = link.take()
        assert [(frame.message, frame.flags) for frame in sent] == [(enqueue("a"), RESENT), (enqueue("b"), RESENT)]
        for frame in sent:
            answer(link, frame.seq, m.Ok())
        assert [(frame.message, frame.flags) for frame in link.take()] == [(enqueue("c"), 0), (enqueue("d"), 0)]

    def test_an_overloaded_broker_is_asked_again_after_the_time_it_names(self) -> None:
        link = producer()
        link.request(enqueue(), "a", deadline_ms=10_000)
        busy = m.Error("OVERLOADED", "later", retryable=True, retry_after_ms=500)
        assert answer(link, seq_of(link, m.Enqueue), busy, 100) == []
        assert link.wake_at == 600
        assert link.tick(500) == [] and link.take() == []
        link.tick(600)
        (frame,) = link.take()
        assert frame.message == enqueue() and frame.flags == 0
        assert answer(link, frame.seq, m.Ok()) == [Answered("a", m.Ok())]

    def test_an_overloaded_broker_is_not_asked_again_after_the_deadline(self) -> None:
        link = producer()
        link.request(enqueue(), "a", deadline_ms=400)
        (event,) = answer(link, seq_of(link, m.Enqueue), m.Error("OVERLOADED", "later", retryable=True, retry_after_ms=500), 100)
        assert isinstance(event, Refused) and isinstance(event.error, Overloaded)

    def test_a_deadline_refuses_what_is_in_flight_and_what_waits_and_makes_room(self) -> None:
        link = producer(enqueues_max=1)
        link.request(enqueue("a"), "a", deadline_ms=1_000)
        link.request(enqueue("b"), "b", deadline_ms=1_000)
        link.request(enqueue("c"), "c", deadline_ms=9_000)
        late = seq_of(link, m.Enqueue)
        assert link.wake_at == 1_000
        events = link.tick(1_000)
        assert [event.owner for event in events if isinstance(event, Refused) and isinstance(event.error, BrokerUnavailable)] == ["a", "b"]
        assert [frame.message for frame in link.take()] == [enqueue("c")]
        assert answer(link, late, m.Ok(), 1_001) == []

    def test_the_refusal_of_an_unreachable_broker_says_why(self) -> None:
        link = Link(m.Hello(1, "producer"))
        link.request(enqueue(), "a", deadline_ms=1_000)
        link.lost("localhost:7000: Connection refused")
        (event,) = link.tick(1_000)
        assert isinstance(event, Refused) and "Connection refused" in str(event.error)

    def test_a_request_that_gets_the_connection_closed_again_and_again_is_refused_with_the_reason(self) -> None:
        link = producer()
        link.request(enqueue(), "poison")
        events: list[Any] = []
        for round_number in range(STRIKES_MAX):
            link.take()
            (closed,) = answer(link, 0, m.Error("BAD_FRAME", "what is this"))
            assert isinstance(closed, Closed) and not closed.greeting
            assert events == [], round_number
            events = link.lost()
            connect(link)
        assert [event.owner for event in events] == ["poison"] and "what is this" in str(events[0].error)
        assert link.idle

    def test_abandon_refuses_everything_once(self) -> None:
        link = producer(enqueues_max=1)
        for owner in "ab":
            link.request(enqueue(owner), owner)
        assert [event.owner for event in link.abandon(TaskqError("over"))] == ["a", "b"]  # type: ignore[union-attr]
        assert link.idle and link.abandon(TaskqError("over")) == []


class TestHeartbeats:
    def test_a_heartbeat_leaves_when_due_and_its_answer_is_not_news(self) -> None:
        link = producer()
        assert link.wake_at == HEARTBEAT_MS
        link.tick(HEARTBEAT_MS)
        assert answer(link, seq_of(link, m.Heartbeat), m.Beat(), HEARTBEAT_MS + 1) == []
        assert link.wake_at == 2 * HEARTBEAT_MS

    def test_a_silent_broker_is_stale(self) -> None:
        link = producer()
        for beat in (1, 2):
            assert link.tick(beat * HEARTBEAT_MS) == []
        assert link.tick(3 * HEARTBEAT_MS) == [Stale()]

    def test_a_process_that_slept_does_not_blame_the_broker(self) -> None:
        link = producer()
        assert link.tick(link.wake_at + LATE_MS + 3 * HEARTBEAT_MS) == []

    def test_the_next_waking_is_never_at_once(self) -> None:
        link = producer()
        link.request(m.Get(b"1"), "a", deadline_ms=10)
        link.tick(10)
        assert link.wake_at >= 10 + TICK_MIN_MS


class TestWorker:
    def test_deliveries_are_counted_and_their_tokens_held_until_the_report_is_answered(self) -> None:
        link = worker()
        assert answer(link, 0, deliver(1, *TOKENS[:2])) == [Pushed(deliver(1, *TOKENS[:2]))]
        assert link.received == 2 and list(link.held) == TOKENS[:2]
        link.request(m.Ack([b""], b"i" * 16, TOKENS[0]), "ack")
        assert list(link.held) == TOKENS[:2]
        answer(link, seq_of(link, m.Ack), m.Reported(b"\0"))
        assert list(link.held) == TOKENS[1:2]

    def test_a_gap_in_the_deliveries_breaks_the_protocol(self) -> None:
        with pytest.raises(OutOfOrder):
            answer(worker(), 0, deliver(2, TOKENS[0]))

    def test_credit_is_cumulative_and_told_only_when_it_grows(self) -> None:
        link = worker()
        link.credit(10)
        link.credit(10)
        assert [frame.message for frame in link.take()] == [m.Credit(10)]
        answer(link, 0, deliver(1, TOKENS[0]))
        link.credit(9)
        assert link.take() == []
        link.credit(10)
        assert [frame.message for frame in link.take()] == [m.Credit(11)]

    def test_a_heartbeat_lists_what_is_held_and_tells_losses_once(self) -> None:
        link = worker()
        answer(link, 0, deliver(1, *TOKENS[:3]))
        link.request(m.Ack([b""], b"i" * 16, TOKENS[0]), "ack")
        link.take()
        link.tick(HEARTBEAT_MS)
        (frame,) = link.take()
        assert frame.message == m.Heartbeat(3, b"".join(TOKENS[:3]))
        events = answer(link, frame.seq, m.Beat(TOKENS[0] + TOKENS[1], TOKENS[2]), HEARTBEAT_MS)
        assert events == [Pushed(m.Beat(TOKENS[1], TOKENS[2]))], "the loss of a reported token is told by the answer to its report"
        assert list(link.held) == [TOKENS[0], TOKENS[2]]

    def test_a_heartbeat_says_anew_what_there_is_room_for_whatever_was_told_before(self) -> None:
        rooms = [0, 4, 2, 3]
        link = Link(m.Hello(1, "worker"), room=lambda: rooms[0])
        connect(link)
        answer(link, 0, deliver(1, *TOKENS[:2]))
        told = []
        for beat in range(1, 5):
            link.tick(beat * HEARTBEAT_MS)
            (frame,) = link.take()
            told.append(frame.message.allowed)
            answer(link, frame.seq, m.Beat(delivered=2), beat * HEARTBEAT_MS)
            rooms.pop(0)
        assert told == [2, 6, 6, 6], "it never falls"
        link.credit(5)
        assert [frame.message for frame in link.take()] == [m.Credit(7)]

    def test_a_delivery_that_was_lost_on_the_way_is_noticed_with_the_next_heartbeat(self) -> None:
        link = worker()
        answer(link, 0, deliver(1, TOKENS[0]))
        for beat, delivered in enumerate([0, 1], 1):
            link.tick(beat * HEARTBEAT_MS)
            assert answer(link, seq_of(link, m.Heartbeat), m.Beat(delivered=delivered), beat * HEARTBEAT_MS) == []
        link.tick(3 * HEARTBEAT_MS)
        with pytest.raises(OutOfOrder, match="delivery 3 was sent, and 1 is the last that came"):
            answer(link, seq_of(link, m.Heartbeat), m.Beat(delivered=3), 3 * HEARTBEAT_MS)

    @pytest.mark.parametrize("message", [m.Ack([b""], b"i" * 16, TOKENS[0]), m.Release(b"i" * 16, TOKENS[0], [0]), m.Consume(["default"], ["t"], 4)])
    def test_a_report_or_subscription_that_is_never_answered_is_sent_again_over_a_new_connection(self, message: Any) -> None:
        link = worker()
        link.request(message, "owner")
        for beat in range(1, ANSWER_BEATS + 1):
            assert self.heard_at(link, beat * HEARTBEAT_MS) == []
        (stale,) = link.tick((ANSWER_BEATS + 1) * HEARTBEAT_MS)
        assert isinstance(stale, Stale) and "without an answer" in stale.reason
        assert link.lost(stale.reason) == []
        link.opened(0)
        answer(link, seq_of(link, m.Hello), welcome(b"n" * 16))
        answer(link, seq_of(link, m.Resume), m.Resumed(b""))
        assert [(frame.message, frame.flags) for frame in link.take()] == [(message, RESENT)]

    def test_a_report_that_is_refused_for_now_and_sent_again_has_its_time_anew(self) -> None:
        link = worker()
        message = m.Ack([b""], b"i" * 16, TOKENS[0])
        link.request(message, "owner")
        for beat in range(1, 3 * ANSWER_BEATS):
            seq = seq_of(link, m.Ack)
            assert self.heard_at(link, beat * HEARTBEAT_MS) == []
            assert answer(link, seq, m.Error("OVERLOADED", "later", "", True, 100), beat * HEARTBEAT_MS) == []
            assert link.tick(beat * HEARTBEAT_MS + 200) == []

    def test_a_wait_for_a_task_may_take_any_time(self) -> None:
        link = worker()
        link.request(m.Get(b"i" * 16, 3_600_000), "owner")
        for beat in range(1, 10 * ANSWER_BEATS):
            assert self.heard_at(link, beat * HEARTBEAT_MS) == []

    def heard_at(self, link: Link, now_ms: int) -> list[Any]:
        """A heartbeat and its answer; what came of them."""
        return link.tick(now_ms) + answer(link, seq_of(link, m.Heartbeat), m.Beat(), now_ms)

    def test_resume_lists_all_tokens_and_reports_follow_it_with_the_flag(self) -> None:
        link = worker()
        answer(link, 0, deliver(1, *TOKENS[:3]))
        link.request(m.Ack([b""], b"i" * 16, TOKENS[0]), "ack")
        link.take()
        link.lost()
        link.opened(100)
        answer(link, seq_of(link, m.Hello), welcome(b"n" * 16), 100)
        (frame,) = link.take()
        assert frame.message == m.Resume(b"s" * 16, b"s" * 32, 3, b"".join(TOKENS[:3]))
        (event,) = answer(link, frame.seq, m.Resumed(bytes([m.KEPT, m.LOST, m.KEPT_BUT_CANCELLED])), 100)
        assert event == Ready(welcome(b"n" * 16), True, [TOKENS[1]], [TOKENS[2]])
        assert link.session == b"s" * 16 and link.received == 3 and list(link.held) == [TOKENS[0], TOKENS[2]]
        assert [(type(frame.message), frame.flags) for frame in link.take()] == [(m.Ack, RESENT)]
        link.credit(5)
        assert [frame.message for frame in link.take()] == [m.Credit(8)]

    def test_a_refused_resume_begins_a_new_session_and_everything_is_lost(self) -> None:
        link = worker()
        answer(link, 0, deliver(1, *TOKENS[:2]))
        link.request(m.Ack([b""], b"i" * 16, TOKENS[0]), "ack")
        link.take()
        link.lost()
        link.opened(100)
        answer(link, seq_of(link, m.Hello), welcome(b"n" * 16), 100)
        (event,) = answer(link, seq_of(link, m.Resume), m.Error("NOT_FOUND", "over"), 100)
        assert event == Ready(welcome(b"n" * 16), False, [TOKENS[1]])
        assert link.session == b"n" * 16 and link.received == 0 and not link.held
        assert [(type(frame.message), frame.flags) for frame in link.take()] == [(m.Ack, RESENT)], "its answer tells the fate of the first token"

    @pytest.mark.parametrize("code", ["SESSION_TAKEN", "SESSION_OVER"])
    def test_a_session_that_was_taken_or_is_over_is_not_resumed_again(self, code: str) -> None:
        link = worker()
        link.receive(Frame(0, 0, deliver(1, *TOKENS[:1])), 0)
        link.request(m.Get(b"i" * 16), "asked")
        link.take()
        (closed,) = link.receive(Frame(0, 0, m.Error(code, "gone")), 0)
        assert isinstance(closed, Closed) and closed.error.code == code and not closed.error.retryable
        for _ in range(STRIKES_MAX):
            assert link.lost() == []
            link.opened(0)
            (ready,) = link.receive(Frame(0, seq_of(link, m.Hello), welcome(b"n" * 16)), 0)
            assert isinstance(ready, Ready) and not ready.resumed
            assert link.session == b"n" * 16 and not link.held
            link.receive(Frame(0, 0, m.Error(code, "gone")), 0)

    def test_resumed_must_answer_every_token(self) -> None:
        link = worker()
        answer(link, 0, deliver(1, *TOKENS[:2]))
        link.lost()
        link.opened(0)
        answer(link, seq_of(link, m.Hello), welcome())
        with pytest.raises(OutOfOrder):
            answer(link, seq_of(link, m.Resume), m.Resumed(b"\0"))


ACTIONS = st.lists(st.sampled_from(["ask", "answer", "refuse", "busy", "break", "connect", "wait"]), max_size=60)


@given(ACTIONS, st.integers(1, 4))
def test_every_request_ends_exactly_once_whatever_happens(actions: list[str], enqueues_max: int) -> None:
    link = Link(m.Hello(1, "producer"), enqueues_max=enqueues_max)
    now_ms, asked, ended, sent = 0, 0, list[int](), list[Frame]()

    def note(events: list[Any]) -> None:
        ended.extend(event.owner for event in events if isinstance(event, (Answered, Refused)))

    def step(action: str) -> None:
        nonlocal now_ms, asked
        if action == "ask":
            link.request(enqueue(str(asked)), asked, now_ms + 3_000 if asked % 2 else 0)
            asked += 1
        elif action == "break":
            sent.clear()
            note(link.lost())
        elif action == "connect" and link.state == "closed":
            connect(link, now_ms)
        elif action == "wait":
            now_ms += 1_000
            note(link.tick(now_ms)) if now_ms >= link.wake_at else None
        elif action in REPLIES and sent:
            note(answer(link, sent.pop(0).seq, REPLIES[action], now_ms))
        sent.extend(frame for frame in link.take() if type(frame.message) is m.Enqueue)
        in_flight = [frame.message.payloads[0] for frame in sent]
        assert len(in_flight) == len(set(in_flight)), "a request is never in flight twice on one connection"

    for action in actions:
        step(action)
    while not link.idle:
        for action in ("connect", "answer", "wait"):
            step(action)
    assert sorted(ended) == list(range(asked))


REPLIES = {
    "answer": m.Ok(),
    "refuse": m.Error("PAYLOAD_TOO_LARGE", "big"),
    "busy": m.Error("OVERLOADED", "later", retryable=True, retry_after_ms=1_500),
}


# ---- access tokens -----------------------------------------------------------------------------------------------------------------------

TOKEN = text_of("mailer", bytes(range(32)))
KEPT = AccessToken.of(grant_of("mailer", ("produce",)), TOKEN, bytes(16), 0)


def guarded() -> Gate:
    return Gate(lambda: {"mailer": KEPT}, b"key")


def prover(token: str = TOKEN) -> Prover:
    return Prover("mailer", token, bytes)


def challenge(link: Link, gate: Gate) -> tuple[m.Proof, Exchange]:
    """The link greets and is asked for its token; its proof, and what the broker checks it with."""
    link.opened(0)
    (frame,) = link.take()
    exchange = gate.begin(frame.message.auth, bytes(18))
    assert answer(link, frame.seq, m.Challenge(exchange.challenge)) == []
    (frame,) = link.take()
    assert type(frame.message) is m.Proof
    return frame.message, exchange


def test_a_link_with_a_token_proves_it_and_never_sends_it() -> None:
    link, gate = Link(m.Hello(1, "producer"), prover=prover()), guarded()
    proof, exchange = challenge(link, gate)
    grant, signature = gate.end(exchange, proof.proof)
    assert grant is KEPT.grant
    (event,) = answer(link, 2, attrs.evolve(welcome(), auth=signature))
    assert isinstance(event, Ready)
    assert TOKEN[-43:].encode() not in proof.proof


def test_each_connection_proves_it_again_before_it_resumes() -> None:
    link, gate = Link(m.Hello(1, "worker"), prover=prover()), guarded()
    for session in (b"a" * 16, b"b" * 16):
        proof, exchange = challenge(link, gate)
        events = answer(link, 2, attrs.evolve(welcome(session), auth=gate.end(exchange, proof.proof)[1]))
        assert [type(frame.message) for frame in link.take()] == ([] if events else [m.Resume])
        link.lost()
    assert link.session == b"a" * 16


@pytest.mark.parametrize("signature", [b"", bytes(32), b"x" * 31])
def test_a_broker_that_does_not_know_the_token_is_not_believed(signature: bytes) -> None:
    link = Link(m.Hello(1, "producer"), prover=prover())
    challenge(link, guarded())
    link.request(enqueue(), "me")
    (event,) = answer(link, 2, attrs.evolve(welcome(), auth=signature))
    assert isinstance(event, Closed) and event.greeting and isinstance(event.error, AuthFailed)
    assert not link.take(), "nothing is told to it"


def test_a_challenge_that_is_none_ends_the_greeting() -> None:
    link = Link(m.Hello(1, "producer"), prover=prover())
    link.opened(0)
    (event,) = answer(link, 1, m.Challenge(b"r=somebody-else,s=AAAA,i=1"))
    assert isinstance(event, Closed) and event.greeting and isinstance(event.error, AuthFailed)


def test_a_refused_proof_is_a_refused_greeting() -> None:
    link = Link(m.Hello(1, "producer"), prover=prover())
    challenge(link, guarded())
    (event,) = answer(link, 2, m.Error("AUTH_FAILED", "no"))
    assert isinstance(event, Closed) and event.greeting and isinstance(event.error, AuthFailed) and not event.error.retryable


def test_a_broker_that_asks_for_no_token_is_taken_as_it_is() -> None:
    link = Link(m.Hello(1, "producer"), prover=prover())
    assert isinstance(connect(link), Ready)


def test_a_link_without_a_token_cannot_be_challenged() -> None:
    link = Link(m.Hello(1, "producer"))
    link.opened(0)
    assert link.take()[0].message.auth == b""
    with pytest.raises(OutOfOrder, match="Challenge may not come"):
        answer(link, 1, m.Challenge(b"x"))


def test_a_second_challenge_breaks_the_protocol() -> None:
    link = Link(m.Hello(1, "producer"), prover=prover())
    _, exchange = challenge(link, guarded())
    with pytest.raises(OutOfOrder, match="Challenge may not come"):
        answer(link, 2, m.Challenge(exchange.challenge))
