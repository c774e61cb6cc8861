"""A session: who may say what and when, and how the identity of a worker goes from one connection to the next."""

from __future__ import annotations

import time
from base64 import b64encode
from typing import Any

import pytest
from small_world import GRACE_MS, LEASE_MS, NOW_MS, PASS_MS, Peer, Worker, World

from taskq.core import messages as m
from taskq.core import session as module
from taskq.core.admission import LEASES_MAX
from taskq.core.gate import AccessToken, Gate, grant_of, text_of
from taskq.core.requests import Requests
from taskq.core.scram import Prover
from taskq.core.session import CLIENT_CHARS_MAX, CLIENT_FIELDS_MAX, NAMES_MAX, Session
from taskq.core.task import PENDING, RUNNING
from taskq.errors import AuthFailed, AuthRequired, OutOfOrder, ProtocolError, SessionOver, SessionTaken, VersionUnsupported
from taskq.protocol.frames import Unknown


def greeted(world: World, role: str) -> Session:
    session = Session(99, world.house)
    session.receive(1, False, m.Hello(1, role), NOW_MS)
    session.answers.clear()
    return session


# ---- greeting --------------------------------------------------------------------------------------------------------------------------


def test_the_greeting_tells_the_terms(world: World) -> None:
    welcome = Peer(world, "producer", "p").welcome
    assert (welcome.now_ms, welcome.lease_ms, len(welcome.session), len(welcome.secret)) == (world.now_ms, LEASE_MS, 16, 32)


@pytest.mark.parametrize("message", [m.Heartbeat(), m.Bye(), m.Cancel(bytes(16)), m.Consume([], [], 1)])
def test_nothing_is_said_before_hello(world: World, message: Any) -> None:
    with pytest.raises(OutOfOrder, match="first frame must be HELLO"):
        Session(99, world.house).receive(1, False, message, NOW_MS)


def test_hello_is_said_once(world: World) -> None:
    with pytest.raises(OutOfOrder, match="sent before"):
        greeted(world, "producer").receive(2, False, m.Hello(1, "producer"), NOW_MS)


def test_another_version_is_refused(world: World) -> None:
    with pytest.raises(VersionUnsupported, match="speaks version 1"):
        Session(99, world.house).receive(1, False, m.Hello(2, "producer"), NOW_MS)


@pytest.mark.parametrize(
    "hello",
    [
        m.Hello(1, "boss"),
        m.Hello(1, "worker", {str(number): 1 for number in range(CLIENT_FIELDS_MAX + 1)}),
        m.Hello(1, "worker", {"name": "n" * (CLIENT_CHARS_MAX + 1)}),
    ],
)
def test_a_greeting_that_breaks_the_rules_closes(world: World, hello: m.Hello) -> None:
    with pytest.raises(ProtocolError):
        Session(99, world.house).receive(1, False, hello, NOW_MS)


# ---- access tokens -----------------------------------------------------------------------------------------------------------------------

TOKEN = text_of("mailer", bytes(range(32)))
KEPT = AccessToken.of(grant_of("mailer", ("produce", "read")), TOKEN, bytes(16), NOW_MS)


@pytest.fixture
def guarded(world: World) -> World:
    """The same world, where a token is asked for."""
    tokens = {"mailer": KEPT}
    world.house.gate = Gate(lambda: tokens, b"key")
    return world


def prover() -> Prover:
    return Prover("mailer", TOKEN, bytes)


def challenged(world: World, client: Prover, role: str = "producer") -> tuple[Session, m.Proof]:
    """A session that waits for the proof, and the right one."""
    session = Session(99, world.house)
    session.receive(1, False, m.Hello(1, role, auth=client.first()), NOW_MS)
    ((seq, challenge),) = session.answers
    session.answers.clear()
    assert (seq, type(challenge)) == (1, m.Challenge)
    return session, m.Proof(client.final(challenge.challenge))


def test_a_token_is_proved_and_the_broker_proves_that_it_knows_it_too(guarded: World) -> None:
    client = prover()
    session, proof = challenged(guarded, client)
    assert (session.state, session.role, session.grant) == ("greeted", "", None), "until it is proved there is nothing"
    session.receive(2, False, proof, NOW_MS)
    ((seq, welcome),) = session.answers
    assert (seq, type(welcome)) == (2, m.Welcome)
    assert client.confirms(welcome.auth)
    assert (session.state, session.role, session.grant) == ("ready", "producer", KEPT.grant)


def test_what_the_token_does_not_allow_is_refused_and_the_session_goes_on(guarded: World) -> None:
    session, proof = challenged(guarded, prover(), "worker")
    session.receive(2, False, proof, NOW_MS)
    session.answers.clear()
    session.receive(3, False, m.Consume(["email"], ["t"], 1), NOW_MS)
    session.receive(4, False, m.Heartbeat(0, bytes(8)), NOW_MS)
    session.receive(5, False, m.Enqueue([b""], "email", bytes(16), ["t"]), NOW_MS)
    ((seq, error),) = session.answers
    assert (seq, error.code) == (3, "FORBIDDEN")
    assert [type(command.message).__name__ for _, command in session.commands] == ["Held", "Enqueue"]
    assert session.consumer is not None and not session.consumer.queues


def test_without_a_token_the_first_answer_says_what_to_do(guarded: World) -> None:
    session = Session(99, guarded.house)
    with pytest.raises(AuthRequired, match=r"TASKQ_TOKEN.*token=.*--token-file"):
        session.receive(1, False, m.Hello(1, "producer"), NOW_MS)
    assert session.closing and not guarded.house.consumers


def test_a_wrong_proof_ends_the_session(guarded: World) -> None:
    session, proof = challenged(guarded, Prover("mailer", text_of("mailer", bytes(32)), bytes))
    with pytest.raises(AuthFailed):
        session.receive(2, False, proof, NOW_MS)
    assert session.closing and not session.role and session.grant is None and not session.answers


def test_a_worker_that_proves_nothing_leaves_no_trace(guarded: World) -> None:
    session, _ = challenged(guarded, prover(), "worker")
    session.lost(NOW_MS)
    assert not guarded.house.consumers


def test_a_broker_that_asks_for_no_token_takes_who_has_one(world: World) -> None:
    session = Session(99, world.house)
    session.receive(1, False, m.Hello(1, "producer", auth=prover().first()), NOW_MS)
    ((_, welcome),) = session.answers
    assert type(welcome) is m.Welcome and welcome.auth == b""


ORDERS: dict[str, list[Any]] = {
    "a proof first": [m.Proof(b"x")],
    "a request first": [m.Get(bytes(16))],
    "an unknown frame first": [Unknown(0x7F00)],
    "a request instead of the proof": ["hello", m.Enqueue([b""], "q", bytes(16), ["t"])],
    "a heartbeat instead of the proof": ["hello", m.Heartbeat()],
    "a goodbye instead of the proof": ["hello", m.Bye()],
    "an unknown frame instead of the proof": ["hello", Unknown(0x7F00)],
    "a frame of the broker instead of the proof": ["hello", m.Challenge(b"x")],
    "the greeting twice": ["hello", "hello"],
    "the greeting once more when it is ready": ["hello", "proof", "hello"],
    "the proof twice": ["hello", "proof", "proof"],
    "a request after a proof that failed": ["hello", "wrong", m.Get(bytes(16))],
    "the right proof after a wrong one": ["hello", "wrong", "proof"],
    "the greeting again after a proof that failed": ["hello", "wrong", "hello"],
}


class Abuser:
    """A client with a token that says what it wants, when it wants."""

    def __init__(self, world: World) -> None:
        client = prover()
        self.session = Session(99, world.house)
        self._client = client
        self._words: dict[str, Any] = {
            "hello": m.Hello(1, "producer", auth=client.first()),
            "proof": m.Proof(b""),
            "wrong": m.Proof(b"c=biws,r=12345678,p=" + b64encode(bytes(32))),
        }

    def say(self, frame: Any) -> None:
        message = self._words[frame] if isinstance(frame, str) else frame
        self.session.receive(1, False, message, NOW_MS)
        for _, told in self.session.answers:
            if type(told) is m.Challenge:
                self._words["proof"] = m.Proof(self._client.final(told.challenge))
        self.session.answers.clear()


@pytest.mark.parametrize("frames", ORDERS.values(), ids=ORDERS)
def test_any_other_order_ends_the_session_and_nothing_of_it_is_done(guarded: World, frames: list[Any]) -> None:
    abuser = Abuser(guarded)
    *before, last = frames
    for frame in before:
        try:
            abuser.say(frame)
        except AuthFailed:
            assert frame == "wrong"
    with pytest.raises(OutOfOrder):
        abuser.say(last)
    assert not abuser.session.commands and not guarded.house.consumers


# ---- roles and order -------------------------------------------------------------------------------------------------------------------

EVERYONE = {"Heartbeat", "Bye", "Enqueue", "Cancel", "Get", "Inspect"}
MAY = {
    "producer": EVERYONE,
    "worker": EVERYONE | {"Resume", "Consume", "Credit", "Ack", "Fail", "Release", "Keepalive", "Died"},
    "keeper": EVERYONE | {"Keepalive", "Died"},
}
ASKED: list[Any] = [
    m.Heartbeat(),
    m.Bye(),
    m.Enqueue([b""], "q", bytes(16), ["t"]),
    m.Cancel(bytes(16)),
    m.Get(bytes(16)),
    m.Inspect("queues"),
    m.Resume(bytes(16), bytes(32), 0),
    m.Consume(["q"], ["t"], 1),
    m.Credit(1),
    m.Ack([b""], bytes(16), bytes(8)),
    m.Fail(bytes(16), bytes(8), [0], [0], [""], [""]),
    m.Release(bytes(16), bytes(8), [0]),
    m.Keepalive(bytes(16), bytes(32), 0),
    m.Died(bytes(16), bytes(32), "x"),
]


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("message", ASKED, ids=lambda message: type(message).__name__)
def test_each_role_may_say_what_the_protocol_grants_it(world: World, role: str, message: Any) -> None:
    session = greeted(world, role)
    session.receive(2, False, message, NOW_MS)
    codes = [answer.code for _, answer in session.answers if type(answer) is m.Error]
    assert ("FORBIDDEN" in codes) == (type(message).__name__ not in MAY[role])


def test_an_unknown_frame_is_answered_and_the_session_goes_on(world: World) -> None:
    client = world.client
    assert client.ask(object()).code == "UNKNOWN_KIND"
    assert type(client.ask(m.Cancel(bytes(16)))) is m.Cancelled


def test_a_seq_that_is_in_use_breaks_the_protocol_and_is_free_after_the_answer(world: World) -> None:
    world.hold_loads = True
    world.client.say(m.Get(bytes(16)), seq=70)
    world.run()
    with pytest.raises(OutOfOrder, match="seq 70 is in use"):
        world.client.say(m.Get(bytes(16)), seq=70)
    world.hold_loads = False
    world.run()
    world.client.say(m.Get(bytes(16)), seq=70)
    world.run()


@pytest.mark.parametrize("message", [m.Enqueued(b"", b"", b"", 0), m.Error("X", "\x01" * 1_000_000), Unknown(0x0777)])
def test_an_unknown_frame_is_called_by_its_kind_alone(world: World, message: Any) -> None:
    assert len(world.client.ask(message).message) < 100


def test_an_error_without_a_seq_is_the_last_word(world: World) -> None:
    """A refused frame to which nobody waits for an answer ends the connection; one of an unknown kind goes unnoticed."""
    silent, refused = greeted(world, "producer"), greeted(world, "producer")
    silent.receive(0, False, Unknown(0x0777), NOW_MS)
    refused.receive(0, False, m.Credit(5), NOW_MS)
    assert (silent.answers, silent.closing) == ([], False)
    assert ([(seq, answer.code) for seq, answer in refused.answers], refused.closing) == ([(0, "FORBIDDEN")], True)


def test_credit_with_a_seq_is_answered(world: World) -> None:
    assert Worker(world, "w1", "email").ask(m.Credit(5)) == m.Ok()


def test_a_request_needs_a_seq(world: World) -> None:
    with pytest.raises(OutOfOrder, match="needs a seq"):
        greeted(world, "producer").receive(0, False, m.Get(bytes(16)), NOW_MS)


def test_answers_may_overtake_each_other(world: World) -> None:
    world.hold_loads = True
    slow = world.client.say(m.Get(world.new_id()))
    world.enqueue(b"x")
    assert slow not in world.client.answers


def test_a_producer_s_heartbeat_is_answered_empty(world: World) -> None:
    assert world.client.ask(m.Heartbeat()) == m.Beat()


# ---- subscription ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("consume", "field"),
    [
        (m.Consume(["a b"], ["t"], 1), "queues"),
        (m.Consume(["a"], [""], 1), "task_types"),
        (m.Consume(["a"] * (NAMES_MAX + 1), [], 1), "queues"),
    ],
)
def test_a_subscription_with_bad_names_is_refused(world: World, consume: m.Consume, field: str) -> None:
    told = Worker(world).ask(consume)
    assert (told.code, told.field) == ("BAD_REQUEST", field)


def test_a_draining_broker_takes_no_subscription_but_lets_workers_stop(world: World) -> None:
    worker = Worker(world, "w1", "email")
    world.house.draining = True
    assert worker.ask(m.Consume(["email"], ["t"], 1)).code == "DRAINING"
    assert worker.ask(m.Consume([], [], 1)) == m.Ok()


def test_workers_are_shown_while_they_are_connected(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=3)
    world.enqueue(b"x")
    world.live(2_000)
    [row] = world.client.ask(m.Inspect("workers")).rows
    assert (row["name"], row["queues"], row["task_types"], row["delivered"], row["room"], row["heard_ms_ago"]) == (
        "w1",
        ["email"],
        ["send_email"],
        1,
        2,
        2_000,
    )
    worker.disconnect()
    assert world.client.ask(m.Inspect("workers")).rows == []


def test_the_broker_describes_itself_and_nothing_else(world: World) -> None:
    assert world.client.ask(m.Inspect("broker")).rows == [{"version": "test"}]
    assert world.client.ask(m.Inspect("secrets")).code == "BAD_REQUEST"


def test_an_inspection_shows_no_more_rows_than_a_client_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 3)
    for number in range(5):
        world.enqueue(b"x", queue=f"q{number}")
        Worker(world, f"w{number}", f"q{number}")
    assert [row["queue"] for row in world.client.ask(m.Inspect("queues")).rows] == ["q0", "q1", "q2"]
    assert len(world.client.ask(m.Inspect("workers")).rows) == 3


# ---- resume ----------------------------------------------------------------------------------------------------------------------------


def test_a_worker_that_comes_back_keeps_what_it_lists_and_gives_up_the_rest(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=3)
    world.enqueue(b"1", b"2", b"3")
    first, second, third = worker.jobs
    worker.disconnect()
    told = worker.resume(world, first, third, received=3)
    assert told.outcomes == bytes([m.KEPT, m.KEPT])
    assert [world.task(job.id).state for job in (first, second, third)] == [RUNNING, PENDING, RUNNING]


def test_what_the_worker_never_received_goes_back_uncharged(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"1", b"2")
    first, second = worker.jobs
    worker.disconnect()
    worker.resume(world, first, received=1)
    task = world.task(second.id)
    assert (task.state, task.attempts, task.crashes, task.interruptions) == (PENDING, 0, 0, 0)


def test_deliveries_and_credit_count_on_from_what_was_received(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"1", b"2", b"3")
    first = worker.jobs[0]
    worker.disconnect()
    worker.resume(world, first, received=1)
    assert len(worker.jobs) == 2
    worker.take("email")
    assert len(worker.jobs) == 2
    worker.allow(1)
    assert [job.delivery for job in worker.jobs] == [1, 2, 2]


def test_a_resumed_token_is_told_lost_or_to_be_cancelled(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=3)
    world.enqueue(b"1", b"2")
    kept, cancelled = worker.jobs
    worker.disconnect()
    world.client.ask(m.Cancel(cancelled.id))
    lost = world.rng.randbytes(8)
    told = worker.ask_resume_of(world, [kept.token, lost, cancelled.token])
    assert told.outcomes == bytes([m.KEPT, m.LOST, m.KEPT_BUT_CANCELLED])


def test_a_worker_that_does_not_come_back_within_the_grace_is_lost(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    worker.beat()
    worker.disconnect()
    world.live(GRACE_MS + PASS_MS)
    assert world.task(worker.jobs[0].id).crashes == 1
    assert worker.resume(world, worker.jobs[0]).outcomes == bytes([m.LOST])


def test_a_resume_needs_the_secret_of_the_session(world: World) -> None:
    victim = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    told = Worker(world, "thief").ask(m.Resume(victim.identity, bytes(32), 1, b""))
    assert (told.code, told.field) == ("NOT_FOUND", "secret")
    assert world.task(victim.jobs[0].id).state == RUNNING


@pytest.mark.parametrize("message", [m.Keepalive, m.Died])
def test_a_keeper_needs_the_secret_of_the_session(world: World, message: type) -> None:
    victim = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    told = Peer(world, "keeper", "k").ask(message(victim.identity, bytes(32), 1 if message is m.Keepalive else "x"))
    assert told.code == "NOT_FOUND"
    assert world.task(victim.jobs[0].id).state == RUNNING


def test_a_session_that_is_over_cannot_be_resumed_and_the_new_one_goes_on(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    Peer(world, "keeper", "k").ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
    again = Worker(world, "w1")
    assert again.ask(m.Resume(worker.identity, worker.secret, 0)).code == "NOT_FOUND"
    again.take("email")
    again.allow(1)
    world.enqueue(b"x")
    assert len(again.jobs) == 1


def test_a_dead_worker_gets_nothing_more(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    Peer(world, "keeper", "k").ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
    world.enqueue(b"x")
    assert worker.jobs == []


def test_a_death_is_told_once(world: World) -> None:
    worker, keeper = Worker(world, "w1"), Peer(world, "keeper", "k")
    assert keeper.ask(m.Died(worker.identity, worker.secret, "SIGKILL")) == m.Ok()
    assert keeper.ask(m.Died(worker.identity, worker.secret, "SIGKILL")).code == "NOT_FOUND"


def test_the_death_of_a_runner_that_had_resumed_ends_its_leases(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    [job] = worker.jobs
    worker.disconnect()
    worker.resume(world, job)
    Peer(world, "keeper", "k").ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
    assert world.task(job.id).crashes == 1


def test_the_newest_connection_wins_and_the_older_one_is_closed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=2)
    world.enqueue(b"x")
    [job] = worker.jobs
    older = worker.session
    assert worker.resume(world, job).outcomes == bytes([m.KEPT])
    assert older.origin not in world.peers
    assert world.shared.consumers[worker.identity].origin == worker.session.origin
    with pytest.raises(SessionTaken, match="taken over"):
        older.receive(50, False, m.Credit(10), world.now_ms)


@pytest.mark.parametrize("message", [m.Heartbeat(), m.Consume(["email"], ["send_email"], 1), m.Credit(10), m.Get(bytes(16)), m.Bye()])
def test_a_connection_whose_session_was_taken_over_or_is_over_is_told_so_whatever_it_sends(world: World, message: Any) -> None:
    taken, over = Worker(world, "w1", "email", credit=1), Worker(world, "w2", "email", credit=1)
    loser = taken.session
    taken.resume(world)
    Peer(world, "keeper", "k").ask(m.Died(over.identity, over.secret, "SIGKILL"))
    with pytest.raises(SessionTaken, match="taken over"):
        loser.receive(50, False, message, world.now_ms)
    with pytest.raises(SessionOver, match="is over"):
        over.session.receive(50, False, message, world.now_ms)


def test_the_connection_of_a_worker_that_is_said_to_be_dead_is_closed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    Peer(world, "keeper", "k").ask(m.Died(worker.identity, worker.secret, "SIGKILL"))
    assert not worker.connected


def test_of_two_connections_that_resume_a_session_at_once_the_later_has_it_and_the_other_is_closed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    worker.disconnect()
    first, second = Worker(world, "w1"), Worker(world, "w1")
    for each in (first, second):
        each.say(m.Resume(worker.identity, worker.secret, 0))
    world.run()
    assert (first.connected, second.connected) == (False, True)
    assert world.shared.consumers[worker.identity].origin == second.session.origin


def test_a_session_that_ends_while_it_is_resumed_is_told_as_over(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    worker.disconnect()
    again, keeper = Worker(world, "w1"), Peer(world, "keeper", "k")
    again.say(m.Resume(worker.identity, worker.secret, 0))
    keeper.say(m.Died(worker.identity, worker.secret, "SIGKILL"))
    world.run()
    assert again.answers[again.seq].code == "SESSION_OVER" and again.session.closing


def test_between_resume_and_its_answer_nothing_is_delivered(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=10)
    worker.disconnect()
    world.enqueue(b"x")
    assert worker.jobs == []
    again = Worker(world, "w1")
    again.say(m.Resume(worker.identity, worker.secret, 0))
    with pytest.raises(OutOfOrder, match="not resumed yet"):
        again.say(m.Credit(5))


@pytest.mark.parametrize("first", [m.Consume(["email"], ["send_email"], 1), m.Credit(5)])
def test_resume_comes_before_consume_and_credit(world: World, first: Any) -> None:
    """Else what this connection was given under its own session would be nobody's."""
    worker = Worker(world, "w1", "email", credit=1)
    worker.disconnect()
    again = Worker(world, "w1")
    again.say(first)
    world.run()
    with pytest.raises(OutOfOrder, match="RESUME"):
        again.say(m.Resume(worker.identity, worker.secret, 0))


def test_a_connection_resumes_once(world: World) -> None:
    first, second = Worker(world, "w1", "email", credit=1), Worker(world, "w2", "email", credit=1)
    world.enqueue(b"x")
    for worker in (first, second):
        worker.disconnect()
    again = Worker(world, "w1")
    again.ask(m.Resume(first.identity, first.secret, 1, b"".join(first.held)))
    with pytest.raises(OutOfOrder, match="RESUME"):
        again.say(m.Resume(second.identity, second.secret, 0))


def test_a_worker_whose_old_connection_was_choked_gets_tasks_on_the_new_one(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.shared.consumers[worker.identity].choked = True
    worker.disconnect()
    worker.resume(world)
    worker.take("email")
    worker.allow(1)
    world.enqueue(b"x")
    assert len(worker.jobs) == 1


def test_a_connection_that_breaks_while_it_resumes_leaves_the_session_to_be_resumed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    [job] = worker.jobs
    worker.disconnect()
    broken = Worker(world, "w1")
    broken.say(m.Resume(worker.identity, worker.secret, 1, job.token))
    broken.disconnect()
    world.run()
    assert worker.resume(world, job).outcomes == bytes([m.KEPT])


# ---- bye -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["producer", "worker", "keeper"])
def test_an_orderly_end_is_answered(world: World, role: str) -> None:
    peer = Peer(world, role, "p")
    assert peer.ask(m.Bye()) == m.Ok()
    assert peer.session.closing


def test_a_session_that_said_goodbye_gets_nothing_and_cannot_be_resumed(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=5)
    worker.ask(m.Bye())
    world.enqueue(b"x")
    assert worker.jobs == []
    assert Worker(world, "w1").ask(m.Resume(worker.identity, worker.secret, 0)).code == "NOT_FOUND"


def test_requests_before_the_goodbye_are_still_answered(world: World) -> None:
    worker = Worker(world, "w1", "email", credit=1)
    world.enqueue(b"x")
    [job] = worker.jobs
    ack = worker.say(m.Ack([b"r"], job.id, job.token))
    worker.say(m.Bye())
    world.run()
    assert worker.answers[ack].outcomes == bytes([m.REPORT_OK])


def test_seqs_whose_hashes_fall_together_cost_little(world: World) -> None:
    """A number is its own hash, and the peer chooses the seq: as many requests as may wait, all with the same lower bits."""
    requests = Requests(1, world.house.ring)
    begun = time.perf_counter()
    for number in range(8_192):
        requests.ask(number << 19, m.Get(bytes(16), 1))
    assert len(requests.waiting) == 8_192
    assert time.perf_counter() - begun < 1


# ---- what is long is cut or refused before it costs anything -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "ok"), [("heartbeat", m.Beat), ("resume", m.Resumed)])
def test_more_tokens_than_a_worker_may_have_tasks_are_refused(world: World, kind: str, ok: type) -> None:
    def told(count: int) -> Any:
        worker = Worker(world, "w1")
        tokens = b"".join(n.to_bytes(8, "big") for n in range(1, count + 1))
        held = m.Heartbeat(0, tokens) if kind == "heartbeat" else m.Resume(worker.identity, worker.secret, 0, tokens)
        return worker.ask(held)

    assert type(told(LEASES_MAX)) is ok
    for count in (LEASES_MAX + 1, 10 * LEASES_MAX):
        refused = told(count)
        assert (refused.code, refused.field) == ("BAD_REQUEST", "tokens")


@pytest.mark.parametrize(("names", "shown"), [(100, 100), (101, 100), (1_000, 100)])
def test_a_worker_is_shown_with_the_first_names_of_what_it_takes_and_their_number(world: World, names: int, shown: int) -> None:
    worker = Worker(world, "w1")
    queues, types = [f"q{n:04}" for n in range(names)], [f"t{n:04}" for n in range(names)]
    worker.ask(m.Consume(queues, types[::-1], 1))
    [row] = world.client.ask(m.Inspect("workers")).rows
    assert (row["queues"], row["task_types"]) == (queues[:shown], types[:shown])
    assert (row["queues_count"], row["task_types_count"]) == (names, names)


def test_very_many_workers_are_shown_with_fewer_names_each(world: World) -> None:
    for n in range(600):
        Worker(world, f"w{n}").ask(m.Consume([f"q{n}" for n in range(100)], ["t"], 1))
    rows = world.client.ask(m.Inspect("workers")).rows
    assert len(rows) == 600 and {len(row["queues"]) for row in rows} == {50_000 // 600}
