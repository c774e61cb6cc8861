"""The checker of the crash campaign is checked: each broken promise, planted in a small history, is found, and a true history is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from campaigns.kills_checker import MS, Row, Verdict, check

KILL = 1_000 * MS


@attrs.define
class History:
    """One task `a-1`, enqueued at 100 ms, run under token 7 from 110 ms to 120 ms, completed, and seen so at 130 ms.  Killed at 1,000 ms."""

    events: list[dict[str, Any]] = attrs.field(factory=list)
    runs: list[dict[str, Any]] = attrs.field(factory=list)
    rows: list[Row] = attrs.field(factory=list)
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        self.enqueue("a-1", "id1", 100)
        self.run("a-1", "id1", 7, 110, 120)
        self.call("get", 130, id="id1").update(state="completed", result=["a-1", 7])
        self.rows.append(Row("id1", "a-1", "quick", "completed", {"name": "a-1"}, ["a-1", 7], 1, outcomes=("completed",)))

    def call(self, op: str, at_ms: float, **asked: Any) -> dict[str, Any]:
        """A call and its answer, to which what was answered can be added."""
        self.calls += 1
        self.events.append({"producer": "a", "call": self.calls, "phase": "invoke", "at": at_ms * MS, "op": op, **asked})
        self.events.append({"producer": "a", "call": self.calls, "phase": "ok", "at": (at_ms + 1) * MS})
        return self.events[-1]

    def enqueue(self, name: str, task_id: str, at_ms: float, **asked: Any) -> dict[str, Any]:
        answer = self.call("enqueue", at_ms, kind="quick", tasks=[{"name": name}], **asked)
        answer.update(ids=[task_id], level="fsync")
        return answer

    def run(self, name: str, task_id: str, fence: int, begin_ms: float, end_ms: float | None = None, phase: str = "end") -> None:
        common = {"id": task_id, "name": name, "fence": fence, "attempt": 1}
        self.runs.append({"phase": "start", "at": begin_ms * MS, **common})
        if end_ms is not None:
            self.runs.append({"phase": phase, "at": end_ms * MS, **common})

    def change(self, **fields: Any) -> None:
        self.rows[0] = attrs.evolve(self.rows[0], **fields)

    def check(self, window_ms: int = 0) -> Verdict:
        return check(self.events, self.runs, self.rows, [KILL], window_ms)


def lose(history: History) -> None:
    history.enqueue("a-2", "id2", 500)


def run_unasked(history: History) -> None:
    history.run("b-9", "id9", 8, 500)


def store_unasked(history: History) -> None:
    history.rows.append(Row("id9", "b-9", "quick", "completed", {"name": "b-9"}))


def run_what_is_not_there(history: History) -> None:
    history.enqueue("a-2", "id2", 500)["phase"] = "unknown"
    history.run("a-2", "id2", 8, 510, 520)


def store_twice(history: History) -> None:
    history.rows.append(attrs.evolve(history.rows[0], id="id2"))


def acknowledge_two(history: History) -> None:
    history.enqueue("a-1", "id2", 300)
    store_twice(history)


def run_without_reason(history: History) -> None:
    history.runs.insert(0, {**history.runs[0], "fence": 6})


def run_twice_under_one_token(history: History) -> None:
    history.runs.append({**history.runs[0], "at": 400 * MS})


def accept_a_stale_token(history: History) -> None:
    history.run("a-1", "id1", 8, 115, 125)
    history.change(outcomes=("interrupted", "completed"))


def run_after_the_end_was_seen(history: History) -> None:
    history.run("a-1", "id1", 8, 500)
    history.change(outcomes=("interrupted", "completed"))


def change_the_result(history: History) -> None:
    history.run("a-1", "id1", 8, 115, 125)
    history.change(outcomes=("crashed", "completed"), result=["a-1", 8])


def undo_the_end(history: History) -> None:
    history.change(state="pending", result=None, outcomes=("interrupted",))


def undo_a_cancel(history: History) -> None:
    history.call("cancel", 500, id="id1").update(answer="cancelled")


def cancel_unasked(history: History) -> None:
    history.change(state="cancelled")
    del history.events[-2:]


def mix_up_results(history: History) -> None:
    history.change(result=["a-2", 7])


def complete_without_a_run(history: History) -> None:
    history.runs.pop()


def tear_the_payload(history: History) -> None:
    history.change(payload={"name": "a-1", "more": 1})


def run_too_early(history: History) -> None:
    history.events[0]["delay"] = 0.05


def fail_too_early(history: History) -> None:
    history.change(state="failed", attempts=2, crashes=2)
    del history.events[-2:]


def fail_too_often(history: History) -> None:
    history.change(attempts=7)


def get_stuck(history: History) -> None:
    history.change(state="running", result=None)
    del history.events[-2:]


def hide(history: History) -> None:
    history.call("get", 400, id="id1").update(phase="refused", code="NOT_FOUND")


def call_it_another(history: History) -> None:
    history.enqueue("a-1", "id1", 400).update(phase="refused", code="ID_CONFLICT")


PLANTED: list[tuple[Callable[[History], None], str]] = [
    (lose, "lost"),
    (run_unasked, "unexpected"),
    (store_unasked, "unexpected"),
    (run_what_is_not_there, "unexpected"),
    (store_twice, "double"),
    (acknowledge_two, "double"),
    (run_without_reason, "unexplained"),
    (run_twice_under_one_token, "unexplained"),
    (accept_a_stale_token, "stale"),
    (run_after_the_end_was_seen, "stale"),
    (change_the_result, "changed"),
    (undo_the_end, "changed"),
    (undo_a_cancel, "changed"),
    (hide, "changed"),
    (cancel_unasked, "wrong"),
    (mix_up_results, "wrong"),
    (complete_without_a_run, "wrong"),
    (tear_the_payload, "wrong"),
    (fail_too_early, "wrong"),
    (fail_too_often, "wrong"),
    (call_it_another, "wrong"),
    (run_too_early, "early"),
    (get_stuck, "stuck"),
]


def test_a_true_history_is_no_problem() -> None:
    verdict = History().check()
    assert verdict == Verdict(acknowledged=1, outcomes={"completed": 1})


@pytest.mark.parametrize(("plant", "rule"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_violation_is_found(plant: Callable[[History], None], rule: str) -> None:
    history = History()
    plant(history)
    verdict = history.check()
    assert getattr(verdict, rule) > 0
    assert verdict.problems


def test_a_run_again_after_a_crash_is_counted_and_no_problem() -> None:
    history = History()
    history.runs.insert(0, {**history.runs[0], "fence": 6, "at": 105 * MS})
    history.change(outcomes=("crashed", "completed"), crashes=1)
    verdict = history.check()
    assert (verdict.duplicated, verdict.problems) == (1, [])


def test_a_run_again_because_the_first_raised_is_a_retry() -> None:
    history = History()
    history.runs.clear()
    history.run("a-1", "id1", 6, 102, 103, "raise")
    history.run("a-1", "id1", 7, 110, 120)
    history.change(outcomes=("failed", "completed"))
    verdict = history.check()
    assert (verdict.retried, verdict.duplicated, verdict.problems) == (1, 0, [])


def test_an_enqueue_that_was_never_answered_may_be_there_or_not() -> None:
    history = History()
    for name in ("a-2", "a-3"):
        history.enqueue(name, "", 500)["phase"] = "unknown"
    history.rows.append(attrs.evolve(history.rows[0], id="id2", name="a-2", state="cancelled", payload={"name": "a-2"}))
    history.call("cancel", 600, id="id2").update(answer="cancelled")
    verdict = history.check()
    assert (verdict.recovered, verdict.lost, verdict.problems) == (1, 0, [])


def test_what_the_window_of_a_kill_costs_is_counted_and_measured() -> None:
    history = History()
    history.enqueue("a-2", "id2", 970)
    verdict = history.check(window_ms=100)
    assert (verdict.lost, verdict.lost_ms_max, verdict.problems) == (1, 29, [])
    assert history.check(window_ms=20).problems


def test_a_late_run_of_an_older_token_overlaps_and_changes_nothing() -> None:
    history = History()
    history.run("a-1", "id1", 6, 140)
    history.change(outcomes=("crashed", "completed"), crashes=1)
    assert not history.check().problems
