"""Outcomes become the fewest frames, within the limits of frames; a report that is refused becomes one that is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import ids
from taskq.core import messages as m
from taskq.errors import BadRequest, InternalError, PayloadTooLarge
from taskq.protocol.codec import encode
from taskq.worker.failure import DELAY_MS_MAX, ERROR_BYTES_MAX
from taskq.worker.job import Handback, Job, Outcome
from taskq.worker.refused import Refusals, instead, is_last
from taskq.worker.registry import TaskDefinition, Verdict
from taskq.worker.reports import FRAME_BYTES, FRAME_TASKS_MAX, Report, Reports


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


def collect(outcomes: list[Outcome], payload_bytes_max: int = FRAME_BYTES) -> Reports:
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
            assert len(tokens) == 1 or sum(map(len, message.payloads)) <= FRAME_BYTES
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


TEXTS = st.text(st.characters(codec=None), max_size=3_000).map(lambda text: text * 3)


@given(st.lists(st.builds(Verdict, st.integers(0, 2), st.integers(0, 1 << 70), TEXTS, TEXTS), max_size=60), st.integers(64 << 10, 4 << 20))
def test_a_report_of_errors_is_no_larger_than_the_broker_takes(verdicts: list[Verdict], frame_bytes_max: int) -> None:
    reports = Reports()
    reports.heed({"frame_bytes_max": frame_bytes_max})
    for number, verdict in enumerate(verdicts):
        reports.add(job(number), verdict)
    messages = reports.take()
    assert sum(len(message.tokens) for message in messages) == 8 * len(verdicts)
    assert all(sum(map(len, encode(message))) <= frame_bytes_max for message in messages)


@pytest.mark.parametrize("frame_bytes_max", [128 << 10, 4 << 20, 65 << 20])
@pytest.mark.parametrize(
    "outcome",
    [
        Verdict(m.RETRY, DELAY_MS_MAX, "語" * 300, "語" * 4_000),
        Verdict(m.RETRY, 0, "E", "x" * 100_000),
        Handback(DELAY_MS_MAX),
        bytes(5_000),
    ],
)
def test_a_thousand_that_end_in_one_moment_are_cut_by_bytes(outcome: Outcome, frame_bytes_max: int) -> None:
    reports = Reports()
    reports.heed({"payload_bytes_max": 64 << 10, "frame_bytes_max": frame_bytes_max})
    for number in range(1_000):
        reports.add(job(number), outcome)
    messages = reports.take()
    assert b"".join(message.tokens for message in messages) == b"".join(job(number).token for number in range(1_000))
    assert all(sum(map(len, encode(message))) <= frame_bytes_max for message in messages)
    if isinstance(outcome, Verdict):
        assert all(len(text.encode()) <= ERROR_BYTES_MAX for message in messages for text in message.errors)  # type: ignore[union-attr]


# ---- what was refused


@pytest.mark.parametrize("outcome", [b"result", Verdict(m.RETRY_AFTER, 7, "E", "text"), Handback(9)])
def test_a_refused_report_is_split_into_single_ones(outcome: Outcome) -> None:
    (message,) = collect([outcome, outcome, outcome]).take()
    told = instead(message, PayloadTooLarge())
    assert told == [only for number in range(3) for only in single(number, outcome)]


def single(number: int, outcome: Outcome) -> list[Report]:
    reports = Reports()
    reports.add(job(number), outcome)
    return reports.take()


@pytest.mark.parametrize(
    ("outcome", "disposition", "delay_ms"),
    [(b"result", m.DISCARD, 0), (Handback(9), m.RETRY, 0), (Verdict(m.RETRY_AFTER, 7, "语", "what\n happened" * 1_000), m.RETRY_AFTER, 7)],
)
def test_a_report_that_cannot_be_taken_ends_in_a_failed_attempt_that_says_why(outcome: Outcome, disposition: int, delay_ms: int) -> None:
    (report,) = single(1, outcome)
    (failed,) = instead(report, BadRequest("the broker does not like it"))
    assert isinstance(failed, m.Fail) and (failed.ids, failed.tokens) == (report.ids, report.tokens)
    assert (failed.dispositions, failed.delays_ms, failed.error_types) == ([disposition], [delay_ms], ["BAD_REQUEST"])
    assert "does not like it" in failed.errors[0] and failed.errors[0].isascii() and len(failed.errors[0]) < 1_200
    assert is_last(failed) and instead(failed, BadRequest()) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sets(st.integers(0, 11), max_size=4))
def test_what_breaks_the_connection_is_found_among_what_was_on_its_way(kinds: list[int], guilty: set[int]) -> None:
    """A broker that ends the connection at each report with a guilty task in it; all else arrives once, the guilty ones as failed attempts."""
    outcomes: list[Outcome] = [[b"r", Verdict(0, 0, "E", "e"), Handback(), bytes(600_000)][kind] for kind in kinds]
    refusals, sent, told = Refusals(), collect(outcomes).take(), {}
    while sent:
        broken = any(_is_guilty(report, guilty) for report in sent)
        on_their_way, sent = sent, []
        for report in on_their_way:
            if broken:
                sent += refusals.refused(report, InternalError(), True)
            else:
                assert not set(_numbers(report)) & told.keys()
                told.update(dict.fromkeys(_numbers(report), report))
                sent += refusals.answered(report)
    assert sorted(told) == list(range(len(outcomes)))
    for number, outcome in enumerate(outcomes):
        report = told[number]
        assert is_last(report) if number in guilty else [report] == single(number, outcome) or len(report.tokens) > 8


def _numbers(report: Report) -> list[int]:
    return [int.from_bytes(token, "big") for token in ids.split(report.tokens, 8)]


def _is_guilty(report: Report, guilty: set[int]) -> bool:
    return not is_last(report) and bool(guilty.intersection(_numbers(report)))
