"""The gate: tokens as text and as they are kept, the check of a proof, the count of failures."""

from __future__ import annotations

import json
import random
import statistics
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest

from taskq.core import gate as module
from taskq.core.gate import ADDRESSES_MAX, FAILURES_MAX, WINDOW_MS, AccessToken, Failures, Gate, grant_of, name_of, text_of
from taskq.core.scram import Prover
from taskq.errors import AuthFailed

SECRET = bytes(range(32))
RNG = random.Random(7)


def made(name: str = "mailer", secret: bytes = SECRET, *scopes: str) -> tuple[str, AccessToken]:
    text = text_of(name, secret)
    return text, AccessToken.of(grant_of(name, scopes or ("produce",)), text, bytes(16), 1_700_000_000_000)


def gate_of(*tokens: AccessToken) -> Gate:
    known = {token.grant.name: token for token in tokens}
    return Gate(lambda: known, b"the broker's own")


def prove(gate: Gate, text: str, name: str = "") -> Any:
    """What the gate says to a client with this token."""
    client = Prover(name or name_of(text), text, RNG.randbytes)
    exchange = gate.begin(client.first(), RNG.randbytes(18))
    grant, signature = gate.end(exchange, client.final(exchange.challenge))
    assert client.confirms(signature)
    return grant


# ---- the text --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "mail_er-2", "x" * 64, "tq_", "_", "a:b.c"])
def test_the_name_stands_in_the_token(name: str) -> None:
    for secret in (SECRET, bytes(32), b"\xff" * 32):
        assert name_of(text_of(name, secret)) == name


@pytest.mark.parametrize(
    "text", ["", "tq_", "secret", "tq_mailer_short", "tq_" + "a" * 43, "xx_mailer_" + "a" * 43, "tq_ma iler_" + "a" * 43, "ü" * 60]
)
def test_what_is_no_token_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ValueError, match="has the form tq_NAME_") as caught:
        name_of(text)
    assert len(text) < 4 or text not in str(caught.value)


# ---- what is kept ----------------------------------------------------------------------------------------------------------------------


def test_a_token_is_kept_as_what_checks_it_and_not_as_what_it_is() -> None:
    text, token = made()
    kept = json.dumps(token.dump())
    assert AccessToken.load(json.loads(kept)) == token
    secret = text.removeprefix("tq_mailer_")
    for trace in (text, secret, SECRET.hex(), urlsafe_b64encode(text.encode()).decode()):
        assert trace not in kept
    assert "stored_key" not in repr(token) and "server_key" not in repr(token)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a b"}, {"name": 1}, {"scopes": []}, {"scopes": "read"}, {"scopes": ["write"]}, {"scopes": ["read"] * 65}, {"created_ms": "x"},
        {"iterations": 0}, {"iterations": True}, {"iterations": 10**9}, {"salt": ""}, {"stored_key": "AAAA"}, {"server_key": "!"}, {"salt": None},
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_kept_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"token|is no scope"):
        AccessToken.load({**made()[1].dump(), **changes})


# ---- the check -------------------------------------------------------------------------------------------------------------------------


def test_who_has_the_token_comes_in_with_its_scopes_and_nobody_else_does() -> None:
    text, token = made("mailer", SECRET, "produce:email*", "read")
    gate = gate_of(token, made("other", bytes(32))[1])
    assert prove(gate, text) is gate.bearer(text) is token.grant
    assert token.grant.scopes == (("produce", "email*"), ("read", "*"))
    for wrong, name in (
        (text_of("mailer", bytes(32)), ""),
        (text_of("nobody", SECRET), ""),
        (text, "other"),
        (text_of("other", bytes(32)), "mailer"),
    ):
        with pytest.raises(AuthFailed):
            prove(gate, wrong, name)
        if not name:
            with pytest.raises(AuthFailed):
                gate.bearer(wrong)
    for nonsense in ("", "x", text + "x", text[:-1], "ü", "tq_mailer_" + "\0" * 43):
        with pytest.raises(AuthFailed):
            gate.bearer(nonsense)


def test_a_token_that_is_revoked_in_the_middle_does_not_come_in() -> None:
    text, token = made()
    known = {"mailer": token}
    gate = Gate(lambda: known, b"key")
    client = Prover("mailer", text, RNG.randbytes)
    exchange = gate.begin(client.first(), RNG.randbytes(18))
    known.clear()
    with pytest.raises(AuthFailed):
        gate.end(exchange, client.final(exchange.challenge))


def test_a_name_that_is_not_known_has_a_salt_like_any_other_and_always_the_same() -> None:
    gate = gate_of(made()[1])

    def challenge(name: str) -> bytes:
        return gate.begin(b"n,,n=%b,r=12345678" % name.encode(), bytes(18)).challenge

    known, nobody, somebody = challenge("mailer"), challenge("nobody"), challenge("somebody")
    assert len(known) == len(nobody)
    assert nobody == challenge("nobody") != somebody
    assert nobody != Gate(dict, b"another broker").begin(b"n,,n=nobody,r=12345678", bytes(18)).challenge


def spread(left: Callable[[], Any], right: Callable[[], Any], tries: int = 5_000) -> float:
    """How the medians of both compare, taken in turns."""
    times: tuple[list[int], list[int]] = ([], [])
    for _ in range(tries):
        for taken, work in zip(times, (left, right), strict=True):
            begun = time.perf_counter_ns()
            work()
            taken.append(time.perf_counter_ns() - begun)
    return statistics.median(times[0]) / statistics.median(times[1])


def test_the_time_of_a_refusal_does_not_tell_whether_the_name_is_known() -> None:
    """10,000 tries over either door; a path that stops early is several times as fast."""
    gate = gate_of(*(made(f"name{number}", RNG.randbytes(32))[1] for number in range(100)))

    def refused(name: str, over: Callable[[str], Any]) -> Callable[[], None]:
        text = text_of(name, SECRET)

        def work() -> None:
            try:
                over(text)
            except AuthFailed:
                return
            raise AssertionError("a wrong token was taken")

        return work

    for over in (gate.bearer, lambda text: prove(gate, text)):
        assert 0.8 < spread(refused("name42", over), refused("nobody", over)) < 1.25


def test_the_time_of_a_refusal_does_not_tell_how_much_of_the_token_is_right() -> None:
    text, token = made()
    gate = gate_of(token)
    near, far = text[:-1] + "A", text_of("mailer", b"\xff" * 32)

    def refused(wrong: str) -> None:
        with pytest.raises(AuthFailed):
            gate.bearer(wrong)

    assert 0.8 < spread(lambda: refused(near), lambda: refused(far), 2_000) < 1.25


# ---- failures --------------------------------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_address_within_a_minute() -> None:
    failures = Failures()
    assert [failures.add("a", 0) for _ in range(FAILURES_MAX + 2)] == list(range(1, FAILURES_MAX + 3))
    assert failures.add("b", 0) == 1
    assert failures.add("a", WINDOW_MS - 1) == FAILURES_MAX + 3
    assert failures.add("a", WINDOW_MS) == 1


def test_a_flood_from_many_addresses_is_remembered_in_bounded_memory() -> None:
    failures = Failures()
    for number in range(10 * ADDRESSES_MAX):
        failures.add(f"192.0.2.{number}", 0)
    assert len(failures._counts) == ADDRESSES_MAX


def test_the_text_form_has_as_many_characters_as_it_says() -> None:
    assert len(urlsafe_b64encode(bytes(module.SECRET_BYTES)).rstrip(b"=")) == module.SECRET_CHARS
