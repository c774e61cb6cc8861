"""The checker of the crash campaign: what producers were told, what workers ran and what the store holds, and whether these can be true together.

It is pure: lists in, a verdict out, one look at each task.  `Kill.at` and all moments are nanoseconds of one monotonic clock.

    lost         acknowledged, and not in the store                                       none, or those of the window before a kill (memory)
    unexpected   in the store or run, and nobody asked for it                             none
    recovered    in the store, though the answer never came                               counted
    duplicated   runs of a task beyond its first, and not because the one before raised   counted; each must be an attempt that the broker knows
    stale        completed by a token although a newer one had been given out             none, or as above
    other rules  no two tasks for one name; final states and results as they were shown; no run before its time; every task ends
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

Lines = Sequence[Mapping[str, Any]]

MS = 1_000_000
FINAL = ("completed", "failed", "cancelled", "expired")
CRASHES_MAX = 3
HISTORY_MAX = 20
# the broker counts whole milliseconds
EARLY_MS = 2
NEVER_REFUSED = ("ID_CONFLICT", "KEY_CONFLICT", "ID_TOO_OLD", "BAD_REQUEST", "INTERNAL")
PROBLEMS_MAX = 20


@attrs.frozen
class Row:
    """A task as it stands in the store at the end.  `runs`: the attempts that the broker knows, `outcomes` how they ended."""

    id: str
    name: str
    kind: str
    state: str
    payload: Mapping[str, Any]
    result: Any = None
    attempts: int = 0
    max_attempts: int = 6
    crashes: int = 0
    outcomes: tuple[str, ...] = ()


@attrs.define
class Verdict:
    """What was counted, and in `problems` what must not be."""

    acknowledged: int = 0
    lost: int = 0
    unexpected: int = 0
    recovered: int = 0
    retried: int = 0
    duplicated: int = 0
    unexplained: int = 0
    stale: int = 0
    double: int = 0
    changed: int = 0
    wrong: int = 0
    early: int = 0
    stuck: int = 0
    forgiven: int = 0
    lost_ms_max: int = 0
    outcomes: dict[str, int] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    def line(self) -> str:
        return f"lost {self.lost}, duplicated {self.duplicated}, unexpected {self.unexpected}, stale accepted {self.stale}"


@attrs.define
class _Task:
    """What producers asked and were told about the tasks of one name."""

    kind: str
    payload: Mapping[str, Any]
    not_before: int
    ids: dict[str, int] = attrs.field(factory=dict)


class Checker:
    """`window_ms`: what a kill may cost, 0 in every mode but memory."""

    def __init__(self, events: Lines, runs: Lines, rows: Sequence[Row], kills: Sequence[int], window_ms: int) -> None:
        self.verdict = Verdict()
        self._kills, self._window = sorted(kills), window_ms * MS
        self._rows = {row.id: row for row in rows}
        self._all_rows = rows
        self._tasks: dict[str, _Task] = {}
        self._shown: list[tuple[str, int, str, Any]] = []
        self._cancels: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._missed: list[str] = []
        self._starts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        self._ended: dict[str, set[int]] = defaultdict(set)
        self._raised: dict[str, set[int]] = defaultdict(set)
        self._read_events(events)
        for run in runs:
            if run["phase"] == "start":
                self._starts[run["id"]].append(run)
            elif run["phase"] == "end":
                self._ended[run["id"]].add(run["fence"])
            else:
                self._raised[run["id"]].add(run["fence"])

    def check(self) -> Verdict:
        self._check_acknowledged()
        self._check_existence()
        for row in self._all_rows:
            self._check_row(row)
        for row in self._rows.values():
            self._check_runs(row, self._starts.get(row.id, []))
        self._check_shown()
        return self.verdict

    # ---- the histories

    def _read_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        asked: dict[tuple[str, int], Mapping[str, Any]] = {}
        for event in events:
            call = event["producer"], event["call"]
            if event["phase"] == "invoke":
                asked[call] = event
                if event["op"] == "enqueue":
                    self._asked(event)
                elif event["op"] == "cancel":
                    self._cancels[event["id"]].append(("unknown", event["at"]))
            elif event["phase"] == "ok":
                self._answered(asked[call], event)
            elif event["phase"] == "refused":
                self._refused(asked[call], event)

    def _asked(self, event: Mapping[str, Any]) -> None:
        for payload in event["tasks"]:
            not_before = event["at"] + int(event.get("delay", 0) * 1000) * MS
            self._tasks.setdefault(payload["name"], _Task(event["kind"], payload, not_before))

    def _answered(self, asked: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        if asked["op"] == "enqueue":
            for payload, task_id in zip(asked["tasks"], event["ids"], strict=True):
                task = self._tasks[payload["name"]]
                self.verdict.acknowledged += not task.ids
                task.ids[task_id] = event["at"]  # the last answer counts: it was given after what it vouches for
        elif asked["op"] == "cancel":
            self._cancels[asked["id"]].append((event["answer"], event["at"]))
        else:
            self._shown.append((asked["id"], event["at"], event["state"], event.get("result")))

    def _refused(self, asked: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        code = event["code"]
        if code == "NOT_FOUND":
            self._missed.append(asked["id"])
        elif code in NEVER_REFUSED:
            self._break("wrong", f"{asked['op']} of {asked.get('id') or asked['tasks'][0]['name']} was refused with {code}")

    # ---- the rules

    def _check_acknowledged(self) -> None:
        for name, task in self._tasks.items():
            for task_id, at in task.ids.items():
                if task_id not in self._rows:
                    self._lose(at, f"{name} ({task_id}) was acknowledged and is not there")
            kept = [task_id for task_id in task.ids if task_id in self._rows]
            if len(kept) > 1:
                self._break("double", f"{name} was acknowledged as {len(kept)} tasks: {kept}")
        for task_id in self._missed:
            if task_id in self._rows and not self._window:
                self._break("changed", f"{task_id} was acknowledged, then not found, and is there at the end")

    def _lose(self, at: int, problem: str) -> None:
        self.verdict.lost += 1
        if self._forgiven(at):
            distance = min(max(0, kill - at) for kill in self._kills if kill + self._window >= at) // MS
            self.verdict.lost_ms_max = max(self.verdict.lost_ms_max, distance)
        else:
            self._problem(problem)

    def _check_existence(self) -> None:
        names: dict[str, str] = {}
        for row in self._all_rows:
            if row.name not in self._tasks:
                self._break("unexpected", f"{row.name} ({row.id}) is in the store, and nobody enqueued it")
            elif not self._tasks[row.name].ids:
                self.verdict.recovered += 1
            if row.name in names:
                self._break("double", f"{row.name} is in the store twice, as {names[row.name]} and {row.id}")
            names[row.name] = row.id
        for task_id, starts in self._starts.items():
            if starts[0]["name"] not in self._tasks:
                self._break("unexpected", f"{starts[0]['name']} ({task_id}) has run, and nobody enqueued it")
            elif task_id not in self._rows and not self._forgiven(starts[-1]["at"]):
                self._break("unexpected", f"{starts[0]['name']} ({task_id}) has run and is not there")

    def _check_row(self, row: Row) -> None:
        task = self._tasks.get(row.name)
        if task is not None and (row.payload != task.payload or row.kind != task.kind):
            self._break("wrong", f"{row.name} was enqueued as {task.kind} {task.payload} and is {row.kind} {row.payload}")
        if row.state not in FINAL and row.kind != "shelved":
            self._break("stuck", f"{row.name} ({row.id}) is {row.state} at the end")
        if row.attempts > row.max_attempts:
            self._break("wrong", f"{row.name} used {row.attempts} of {row.max_attempts} attempts")
        if row.state == "failed" and row.attempts < row.max_attempts and row.crashes < CRASHES_MAX:
            self._break("wrong", f"{row.name} failed after {row.attempts} of {row.max_attempts} attempts and {row.crashes} crashes")
        if row.state == "completed" and row.kind in ("doomed", "shelved"):
            self._break("wrong", f"{row.name} ({row.kind}) is completed")
        if row.state == "cancelled" and row.id not in self._cancels:
            self._break("wrong", f"{row.name} is cancelled, and nobody asked for it")
        for outcome in row.outcomes:
            self.verdict.outcomes[outcome] = self.verdict.outcomes.get(outcome, 0) + 1

    def _check_runs(self, row: Row, starts: Sequence[Mapping[str, Any]]) -> None:
        fences = [start["fence"] for start in starts]
        retries = len(self._raised[row.id] - set(sorted(fences)[-1:]))
        self.verdict.retried += retries
        self.verdict.duplicated += max(0, len(fences) - 1 - retries)
        unknown = len(fences) - len(row.outcomes) if len(row.outcomes) < HISTORY_MAX else 0
        if len(set(fences)) < len(fences):
            self._break("unexplained", f"{row.name} ran twice under one token: {fences}")
        elif unknown > 0 and unknown > sum(self._forgiven(start["at"]) for start in starts):
            self._break("unexplained", f"{row.name} ran {len(fences)} times, the broker knows of {row.outcomes}")
        task = self._tasks.get(row.name)
        if starts and task is not None and min(start["at"] for start in starts) < task.not_before - EARLY_MS * MS:
            self._break("early", f"{row.name} ran {(task.not_before - min(start['at'] for start in starts)) / MS:.1f} ms before its time")
        if row.state == "completed":
            self._check_result(row, starts)

    def _check_result(self, row: Row, starts: Sequence[Mapping[str, Any]]) -> None:
        name, fence = row.result if isinstance(row.result, (list, tuple)) and len(row.result) == 2 else (None, 0)
        if name != row.name:
            self._break("wrong", f"{row.name} has the result {row.result!r}")
        elif fence not in self._ended[row.id]:
            self._break("wrong", f"{row.name} is completed by token {fence}, whose run never ended")
        newer = [start for start in starts if start["fence"] > fence]
        if newer and not all(self._forgiven(start["at"]) for start in newer):
            self._break("stale", f"{row.name} is completed by token {fence}, and token {newer[-1]['fence']} was given out")

    def _check_shown(self) -> None:
        for task_id, at, state, result in self._shown:
            row = self._rows.get(task_id)
            if row is None or state not in FINAL or (row.state, row.result) == (state, result):
                continue
            if not self._forgiven(at):
                self._break("changed", f"{row.name} was shown as {state} {result!r} and is {row.state} {row.result!r}")
        for task_id, answers in self._cancels.items():
            row = self._rows.get(task_id)
            for answer, at in answers:
                if answer == "cancelled" and row is not None and row.state != "cancelled" and not self._forgiven(at):
                    self._break("changed", f"{row.name} was cancelled and is {row.state}")

    # ---- words

    def _forgiven(self, at: int) -> bool:
        """Whether it happened in the window of a kill.  An answer may be read after the death of who gave it."""
        near = self._window > 0 and any(abs(kill - at) <= self._window for kill in self._kills)
        self.verdict.forgiven += near
        return near

    def _break(self, rule: str, problem: str) -> None:
        setattr(self.verdict, rule, getattr(self.verdict, rule) + 1)
        self._problem(problem)

    def _problem(self, problem: str) -> None:
        if len(self.verdict.problems) < PROBLEMS_MAX:
            self.verdict.problems.append(problem)


def check(events: Lines, runs: Lines, rows: Sequence[Row], kills: Sequence[int] = (), window_ms: int = 0) -> Verdict:
    return Checker(events, runs, rows, kills, window_ms).check()
