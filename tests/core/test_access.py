"""What an access token allows: globs, scopes, and the table of what each message needs."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core.access import ADMIN, CONSUME, INSPECT, NEEDS, NOBODY, PRODUCE, READ, SCOPES, Grant, check, matches, scope_of, scope_text
from taskq.core.session import RULES
from taskq.errors import Forbidden
from taskq.ids import make_id, slot_of_queue

GLOBS = st.text("ab*", min_size=1, max_size=8)
NAMES = st.text("ab", min_size=1, max_size=8)


def grant(*scopes: str) -> Grant:
    return Grant("t", tuple(map(scope_of, scopes)))


# ---- globs -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "fits", "fits_not"),
    [
        ("email", ["email"], ["email2", "an-email", "e", ""]),
        ("email*", ["email", "email.eu"], ["emai", "my-email"]),
        ("*.eu", ["mail.eu", ".eu"], ["mail.eu.org", "eu"]),
        ("a*b*c", ["abc", "a-b-c", "abbcc"], ["acb", "abcd", "ab", "ac"]),
        ("aba*aba", ["abaaba"], ["aba", "ababa"]),
        ("*", ["a", ""], []),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_a_glob_fits_whole_names_only(glob: str, fits: list[str], fits_not: list[str]) -> None:
    assert [name for name in [*fits, *fits_not] if matches(glob, name)] == fits


@given(glob=GLOBS, name=NAMES)
def test_a_glob_means_what_the_same_pattern_means(glob: str, name: str) -> None:
    assert matches(glob, name) == (re.fullmatch(glob.replace("*", ".*"), name) is not None)


def test_no_glob_is_slow() -> None:
    """The worst that fits into a scope, against the longest name, a thousand times."""
    glob, name = ("a*" * 63) + "b", "a" * 128
    begun = time.perf_counter()
    assert not any(matches(glob, name) for _ in range(1_000))
    assert time.perf_counter() - begun < 1


# ---- scopes ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "scope"), [("read", ("read", "*")), ("produce:email*", ("produce", "email*")), ("consume:a:b", ("consume", "a:b"))])
def test_a_scope_is_a_word_and_queues(text: str, scope: tuple[str, str]) -> None:
    assert scope_of(text) == scope
    assert scope_text(scope) == text


@pytest.mark.parametrize(
    "text", ["", "write", "Produce", "produce:", "produce: ", "produce:a b", "produce:(a+)+$", "produce:" + "a" * 129, "read,produce"]
)
def test_what_is_no_scope_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"write produce, consume, read, admin|must be 1 to 128"):
        scope_of(text)


def test_admin_stands_for_every_scope_in_its_queues() -> None:
    some = grant("admin:a*")
    assert all(some.allows(scope, "abc") and not some.allows(scope, "b") for scope in SCOPES)
    assert not some.allows_everywhere(ADMIN) and grant("admin").allows_everywhere(READ) and grant("read:**").allows_everywhere(READ)


# ---- the table -------------------------------------------------------------------------------------------------------------------------


def test_every_frame_that_a_client_may_send_has_its_row_and_no_other() -> None:
    assert set(NEEDS) == set(RULES)


ID = make_id(1_700_000_000_000, slot_of_queue("email"), random.Random(1))
ASKED: list[tuple[Any, str]] = [
    (m.Hello(1, "worker"), ""),
    (m.Proof(b""), ""),
    (m.Heartbeat(), ""),
    (m.Bye(), ""),
    (enqueue_of(b"x", queue="email"), PRODUCE),
    (m.Cancel(ID), PRODUCE),
    (m.Consume(["email"], ["t"], 1), CONSUME),
    (m.Consume([], [], 0), CONSUME),
    (m.Declare(["t"], ["email"]), CONSUME),
    (m.Resume(bytes(16), bytes(32), 0), CONSUME),
    (m.Credit(1), CONSUME),
    (m.Ack([b""], ID, bytes(8)), CONSUME),
    (m.Fail(ID, bytes(8), [0], [0], [""], [""]), CONSUME),
    (m.Release(ID, bytes(8), [0]), CONSUME),
    (m.Keepalive(bytes(16), bytes(32), 0), CONSUME),
    (m.Died(bytes(16), bytes(32), ""), CONSUME),
    (m.Get(ID), READ),
    (m.Inspect("queues"), READ),
    (m.Inspect("workers"), READ),
    (m.Inspect("types"), ""),
    (m.Inspect("broker"), ADMIN),
]


def allowed(given: Grant, message: Any) -> bool:
    try:
        check(given, message)
    except Forbidden as refusal:
        assert refusal.field == "token"
        return False
    return True


def test_the_matrix_asks_for_every_message() -> None:
    assert {type(message) for message, _ in ASKED} == set(NEEDS)
    assert {message.what for message, _ in ASKED if type(message) is m.Inspect} >= set(INSPECT)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("message", "needed"), ASKED, ids=[repr(message)[:40] for message, _ in ASKED])
def test_a_message_goes_through_with_its_scope_and_with_no_other(message: Any, needed: str, scope: str) -> None:
    assert allowed(grant(scope), message) == (needed in ("", scope) or scope == ADMIN)
    assert allowed(NOBODY, message) == (needed == "")


def test_the_scope_must_be_for_the_queue_and_the_refusal_names_both() -> None:
    with pytest.raises(Forbidden, match=r"access token t does not have the scope produce for the queue 'images'"):
        check(grant("produce:email*", "consume"), enqueue_of(b"x", queue="images"))
    with pytest.raises(Forbidden, match=r"the scope consume for the queue 'images'"):
        check(grant("consume:email"), m.Consume(["email", "images"], ["t"], 1))
    with pytest.raises(Forbidden, match=r"the scope admin for all queues"):
        check(grant("admin:email"), m.Inspect("broker"))


# ---- what only the shard knows ---------------------------------------------------------------------------------------------------------


def may(world: World, *scopes: str) -> World:
    world.client.session.grant = grant(*scopes)
    return world


@pytest.mark.parametrize("is_cold", [False, True], ids=["in memory", "in the store"])
def test_a_task_is_shown_to_who_may_read_its_queue(world: World, is_cold: bool) -> None:
    (task_id,) = world.enqueue(b"x", queue="email")
    if is_cold:
        world.client.ask(m.Cancel(task_id))
        world.flushed()
        assert not world.in_memory(task_id)
    assert type(may(world, "read:email").client.ask(m.Get(task_id))) is m.TaskInfo
    reader = may(world, "read:images", "produce", "consume").client
    told, unknown = reader.ask(m.Get(task_id)), reader.ask(m.Get(bytes(16)))
    assert told.code == unknown.code == "NOT_FOUND"
    assert told.message == unknown.message.replace(bytes(16).hex(), task_id.hex())


def test_who_waits_for_a_task_that_it_may_not_read_is_told_at_once(world: World) -> None:
    (task_id,) = world.enqueue(b"x")
    assert may(world, "read:images").client.ask(m.Get(task_id, 60_000)).code == "NOT_FOUND"
    assert not world.shard.waiters


def test_a_task_is_cancelled_by_who_may_produce_into_its_queue(world: World) -> None:
    (task_id,) = world.enqueue(b"x", queue="email")
    told = may(world, "produce:images", "read").client.ask(m.Cancel(task_id))
    assert told.code == "FORBIDDEN" and "produce for the queue 'email'" in told.message
    assert world.get(task_id)["state"] == "pending"
    assert may(world, "produce:em*").client.ask(m.Cancel(task_id)).outcomes == bytes([m.CANCEL_DONE])


def test_a_cancel_that_is_refused_has_cancelled_nothing(world: World) -> None:
    """Also where its tasks lie in several slots, whose shards know nothing of each other."""
    (email,), (images,) = world.enqueue(b"x", queue="email"), world.enqueue(b"x", queue="images")
    told = may(world, "produce:email", "read").client.ask(m.Cancel(email + images))
    assert told.code == "FORBIDDEN" and "queue by queue" in told.message
    assert {world.get(email)["state"], world.get(images)["state"]} == {"pending"}
    assert may(world, "produce").client.ask(m.Cancel(email + images)).outcomes == bytes(2)


def test_lists_show_the_queues_and_workers_that_the_scope_is_for(world: World) -> None:
    for queue in ("email", "images"):
        world.enqueue(b"x", queue=queue)
    Worker(world, "of email", "email")
    Worker(world, "of both", "email", "images")
    Worker(world, "of none")
    may(world, "read:em*")
    assert [row["queue"] for row in world.client.ask(m.Inspect("queues")).rows] == ["email"]
    assert [row["name"] for row in world.client.ask(m.Inspect("workers")).rows] == ["of email"]
    may(world, "read")
    assert len(world.client.ask(m.Inspect("queues")).rows) == 2
    assert len(world.client.ask(m.Inspect("workers")).rows) == 3


# ---- a lease is its session's own ------------------------------------------------------------------------------------------------------


def reports(thief: Worker, job: Any) -> list[bytes]:
    return [thief.ack(job), thief.fail(job), thief.release(job), thief.ack(job, resent=True)]


def test_a_stolen_lease_token_is_worth_nothing_on_another_session(world: World) -> None:
    (task_id,) = world.enqueue(b"x")
    owner, thief = Worker(world, "owner", "email", credit=1), Worker(world, "thief", "email")
    (job,) = owner.jobs
    assert reports(thief, job) == [bytes([m.REPORT_LEASE_LOST])] * 4
    assert world.get(task_id)["state"] == "running"
    assert thief.beat(job).lost == job.token
    assert world.get(task_id)["state"] == "running", "a heartbeat of another session gives nothing up"
    assert owner.ack(job) == bytes([m.REPORT_OK])
    assert world.get(task_id)["state"] == "completed"


def test_a_producer_has_no_leases_to_report_on(world: World) -> None:
    world.enqueue(b"x")
    (job,) = Worker(world, "owner", "email", credit=1).jobs
    told = world.client.ask(m.Ack([b""], job.id, job.token))
    assert told.code == "FORBIDDEN"


def test_a_lease_token_goes_along_with_the_session_that_is_resumed(world: World) -> None:
    world.enqueue(b"x")
    owner, thief = Worker(world, "owner", "email", credit=1), Worker(world, "thief")
    (job,) = owner.jobs
    assert type(thief.ask(m.Resume(owner.identity, bytes(32), 1, job.token))) is m.Error, "without the secret"
    owner.disconnect()
    owner.resume(world, job)
    assert reports(Worker(world, "another", "email"), job)[0] == bytes([m.REPORT_LEASE_LOST])
    assert owner.ack(job) == bytes([m.REPORT_OK])


def test_a_lease_token_goes_along_with_the_session_through_a_restart(world: World) -> None:
    world.enqueue(b"x")
    owner = Worker(world, "owner", "email", credit=1)
    (job,) = owner.jobs
    world.restart()
    assert Worker(world, "thief", "email").ack(job) == bytes([m.REPORT_LEASE_LOST])
    owner.resume(world, job)
    assert owner.ack(job) == bytes([m.REPORT_OK])


def test_who_resumes_a_session_subscribes_with_its_own_rights(world: World) -> None:
    """The connection that takes a session over while the old one stands gets nothing for the old one's queues."""
    first = Worker(world, "w", "email", credit=1)
    again = Worker(world, "w")
    again.session.grant = grant("consume:images")
    assert type(again.ask(m.Resume(first.identity, first.secret, 0))) is m.Resumed
    again.allow(5)
    world.enqueue(b"x", queue="email")
    assert not again.jobs
    assert again.take("email").code == "FORBIDDEN"
