"""Outcomes become the fewest frames, within the limits of frames."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from taskq import ids
from taskq.core import messages as m
from taskq.worker.job import Handback, Job, Outcome
from taskq.worker.registry import TaskDefinition, Verdict
from taskq.worker.reports import FRAME_RESULT_BYTES, FRAME_TASKS_MAX, Reports, split_ack


def nothing() -> None: ...


DEFINITION = TaskDefinition("nothing", nothing)
OUTCOMES = st.one_of(
    st.integers(0, 400_000).map(bytes),
    st.integers(0, 2).map(lambda disposition: Verdict(disposition, 5, "E", "text")),
    st.integers(0, 9).map(Handback),
)


def job(number: int) -> Job:
    token = number.to_bytes(8, "big")
    return Job(bytes(8) + token, token, "default", DEFINITION, b"", m.MSGPACK, 1, 0, "async")


def collect(outcomes: list[Outcome], payload_bytes_max: int = FRAME_RESULT_BYTES) -> Reports:
    reports = Reports(payload_bytes_max)
    for number, outcome in enumerate(outcomes):
        reports.add(job(number), outcome)
    return reports


@given(st.lists(OUTCOMES, max_size=40))
def test_every_outcome_is_in_exactly_one_report_of_its_kind(outcomes: list[Outcome]) -> None:
    seen: dict[int, Outcome] = {}
    for message in collect(outcomes).take():
        tokens = [int.from_bytes(token, "big") for token in ids.split(message.tokens, 8)]
        if isinstance(message, m.Ack):
            assert len(tokens) == 1 or sum(map(len, message.payloads)) <= FRAME_RESULT_BYTES
            rows: list[Outcome] = [bytes(payload) for payload in message.payloads]
        elif isinstance(message, m.Fail):
            columns = zip(message.dispositions, message.delays_ms, message.error_types, message.errors, strict=True)
            rows = [Verdict(*row) for row in columns]
        else:
            rows = [Handback(delay_ms) for delay_ms in message.delays_ms]
        seen.update(zip(tokens, rows, strict=True))
    assert [seen[number] for number in range(len(outcomes))] == outcomes


def test_a_frame_holds_at_most_a_thousand_tasks() -> None:
    messages = collect([b"\xc0"] * 2_500).take()
    assert [len(message.tokens) // 8 for message in messages] == [FRAME_TASKS_MAX, FRAME_TASKS_MAX, 500]


def test_what_was_taken_is_not_taken_again() -> None:
    reports = collect([b"\xc0"])
    assert reports.take() and not reports.take()


def test_a_result_over_the_limit_of_the_broker_is_discarded_by_name() -> None:
    (message,) = collect([bytes(101)], payload_bytes_max=100).take()
    assert isinstance(message, m.Fail)
    assert message.dispositions == [m.DISCARD] and "nothing" in message.errors[0] and "101" in message.errors[0]


def test_a_refused_ack_is_split_into_single_ones() -> None:
    (message,) = collect([b"a", b"b"]).take()
    assert isinstance(message, m.Ack)
    first, second = split_ack(message)
    assert (first.payloads, second.payloads) == ([b"a"], [b"b"])
    assert first.tokens + second.tokens == message.tokens and first.ids + second.ids == message.ids
