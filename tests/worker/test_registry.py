"""What a task definition makes of payloads and of exceptions."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from taskq import serial
from taskq.app import define
from taskq.control import ArgumentsError, Control, Discard, Retry, Snooze
from taskq.core.messages import BYTES, DISCARD, JSON, MSGPACK, RETRY, RETRY_AFTER
from taskq.worker.failure import ERROR_BYTES_MAX, error_text
from taskq.worker.registry import TaskDefinition


def plain(to: str, copies: int = 1) -> None: ...
def nothing() -> None: ...
def positional(left: int, /, right: int = 2) -> None: ...
def several(*items: int) -> None: ...
def anything(to: str, **rest: int) -> None: ...
def only_named(*, to: str) -> None: ...


class TestArguments:
    @pytest.mark.parametrize(
        ("function", "payload", "expected"),
        [
            (plain, b'{"to":"a"}', ((), {"to": "a"})),
            (plain, b'["a",3]', (("a", 3), {})),
            (plain, b'"a"', (("a",), {})),
            (plain, b"null", ((None,), {})),
            (nothing, b"null", ((), {})),
            (nothing, b"{}", ((), {})),
            (positional, b"[1]", ((1,), {})),
            (several, b"[1,2,3]", ((1, 2, 3), {})),
            (anything, b'{"to":"a","b":1}', ((), {"to": "a", "b": 1})),
            (only_named, b'{"to":"a"}', ((), {"to": "a"})),
        ],
    )
    def test_a_payload_means_arguments(self, function: Callable[..., Any], payload: bytes, expected: Any) -> None:
        assert define(function, "t").arguments(payload, JSON) == expected

    def test_raw_bytes_are_the_only_argument(self) -> None:
        assert define(plain, "t").arguments(memoryview(b"\xff"), BYTES) == ((b"\xff",), {})

    @pytest.mark.parametrize(
        ("function", "payload", "words"),
        [
            (plain, b"{}", "missing a required argument: 'to'"),
            (plain, b'{"to":"a","bcc":"b"}', "unexpected keyword argument 'bcc'"),
            (plain, b"[1,2,3]", "too many positional"),
            (nothing, b"5", "too many positional"),
            (positional, b'{"left":1}', "left"),
            (plain, b"{", "not valid JSON"),
        ],
    )
    def test_a_payload_that_does_not_fit_is_discarded(self, function: Callable[..., Any], payload: bytes, words: str) -> None:
        definition = define(function, "t")
        with pytest.raises(ArgumentsError, match=words) as caught:
            definition.arguments(payload, JSON)
        verdict = definition.disposition(caught.value)
        assert (verdict.disposition, verdict.error_type) == (DISCARD, "ArgumentsError") and "does not fit t(" in verdict.error

    @pytest.mark.parametrize(
        ("function", "args", "kwargs", "value"),
        [
            (plain, ("a",), {"copies": 2}, {"to": "a", "copies": 2}),
            (plain, (), {"to": "a"}, {"to": "a"}),
            (positional, (1,), {}, [1]),
            (several, (1, 2), {}, [1, 2]),
            (anything, ("a",), {"b": 1}, {"to": "a", "b": 1}),
        ],
    )
    def test_a_call_becomes_a_payload_by_name_where_it_can(self, function: Callable[..., Any], args: Any, kwargs: Any, value: Any) -> None:
        definition = define(function, "t")
        payload = definition.payload(args, kwargs)
        assert serial.decode(payload, MSGPACK) == value
        assert definition.arguments(payload, MSGPACK) is not None

    def test_names_cannot_go_beside_positional_only_parameters(self) -> None:
        with pytest.raises(TypeError, match="arguments by name: flag"):
            define(lambda *items, flag: None, "t").payload((1,), {"flag": True})

    def test_a_result_that_cannot_be_sent_is_named(self) -> None:
        with pytest.raises(TypeError, match="the result of t cannot be serialised"):
            define(plain, "t").result(object())


class TestDisposition:
    @pytest.mark.parametrize(
        ("exception", "expected"),
        [
            (ValueError("x"), (RETRY, 0, "ValueError")),
            (Retry(), (RETRY, 0, "Retry")),
            (Retry(after="1m"), (RETRY_AFTER, 60_000, "Retry")),
            (Retry(after=0), (RETRY_AFTER, 0, "Retry")),
            (Discard("no"), (DISCARD, 0, "Discard")),
            (KeyError("k"), (DISCARD, 0, "KeyError")),
            (TimeoutError(), (RETRY, 0, "TimeoutError")),
        ],
    )
    def test_an_exception_means_a_disposition(self, exception: BaseException, expected: tuple[int, int, str]) -> None:
        assert define(plain, "t", no_retry_on=LookupError).disposition(exception)[:3] == expected

    def test_with_retry_on_only_those_are_retried_and_no_retry_on_wins(self) -> None:
        definition: TaskDefinition = define(plain, "t", retry_on=OSError, no_retry_on=FileNotFoundError)
        kinds = [definition.disposition(error).disposition for error in (OSError(), ConnectionError(), FileNotFoundError(), ValueError())]
        assert kinds == [RETRY, RETRY, DISCARD, DISCARD]

    def test_the_text_is_the_traceback_or_the_reason(self) -> None:
        try:
            raise ValueError("what happened")
        except ValueError as error:
            text = error_text(error)
        assert text.startswith("Traceback") and text.endswith("ValueError: what happened")
        assert error_text(Discard("no such user")) == "no such user"

    def test_a_long_text_loses_its_middle(self) -> None:
        text = error_text(ValueError("x" * 100_000 + "the end"))
        assert len(text.encode()) <= ERROR_BYTES_MAX and text.endswith("the end")

    def test_what_is_not_unicode_is_escaped(self) -> None:
        assert error_text(Discard("\ud800 is no character")) == "\\ud800 is no character"

    @pytest.mark.parametrize("error", [Retry("1m", "busy"), Discard("no"), Snooze(5), ArgumentsError("bad")])
    def test_control_exceptions_travel_between_processes(self, error: Control) -> None:
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and copy.__dict__ == error.__dict__ and str(copy) == str(error)


def test_the_pool_is_the_tasks_own_or_the_workers_or_follows_the_function() -> None:
    async def coroutine() -> None: ...

    assert [define(plain, "t").pool_for(default) for default in (None, "process", "async")] == ["thread", "process", "async"]
    assert define(plain, "t", pool="process").pool_for("thread") == "process"
    assert define(coroutine, "t").pool_for("process") == "async"
