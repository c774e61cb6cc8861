"""What comes from elsewhere and is logged or printed cannot pass for anything else, and no payload is logged at all."""

from __future__ import annotations

import ast
import io
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.printable import UNFIT, VALUE_CHARACTERS_MAX, LogFormatter, printable, printable_lines

TASKQ = Path(__file__).parents[1] / "taskq"
LOGS = ("log", "logging.getLogger('taskq.broker')")
NASTY = {
    "a second line": "a\r\n2026-01-01 00:00:00 CRITICAL taskq.node all is lost",
    "colours": "\x1b[31mred\x1b[0m",
    "the title of the window": "\x1b]0;owned\x07",
    "a C1 control": "\x9b31m",
    "a cursor that goes back": "good\x08\x08\x08\x08evil",
    "writing from right to left": "\u202egnp.exe",
    "NUL": "a\0b",
    "line separators": "a\u2028b\u2029c\x85d",
    "what is not seen": "a\u200bb\ufeffc",
    "half a character": "a\ud800b",
}


def logged(*args: Any, name: str = "taskq.test", error: BaseException | None = None) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    handler.handle(logging.LogRecord(name, logging.WARNING, __file__, 1, args[0], args[1:], (type(error), error, None) if error else None))
    return stream.getvalue()


@pytest.mark.parametrize("name", NASTY)
def test_a_value_in_the_log_is_one_line_without_controls(name: str) -> None:
    for line in (logged("the queue %s is new", NASTY[name]), logged("the queue %s", ValueError(NASTY[name])), logged(NASTY[name])):
        assert line.endswith("\n") and not UNFIT.search(line[:-1])
        line.encode()


@pytest.mark.parametrize("name", NASTY)
def test_the_lines_of_an_error_cannot_pass_for_records(name: str) -> None:
    text = logged("it broke", error=ValueError(NASTY[name]))
    first, *rest = text.splitlines()
    assert first == "WARNING it broke" and rest
    assert all(line.startswith("    ") and not UNFIT.search(line) for line in rest)


def test_a_value_in_the_log_is_cut() -> None:
    assert len(logged("%s and %s", "x" * 10_000, b"y" * 10_000)) < 2 * VALUE_CHARACTERS_MAX + 50


def test_numbers_keep_their_formats_and_the_logs_of_others_their_lines() -> None:
    assert logged("%d of %g, %5.1f%%, %s", 3, 2.5, 99.95, None) == "WARNING 3 of 2.5, 100.0%, None\n"
    assert logged("a\nb %s", "x" * 1_000, name="myapp") == "WARNING a\nb " + "x" * 1_000 + "\n"


@given(st.text())
def test_what_is_printable_is_one_line_that_can_be_encoded(text: str) -> None:
    assert not UNFIT.search(printable(text))
    printable(text).encode()
    assert len(printable_lines(text).split("\n")) == len(text.split("\n"))


def test_common_text_is_left_alone() -> None:
    assert printable("Grüße, 你好, שלום, 👍 — “ok”") == "Grüße, 你好, שלום, 👍 — “ok”"


def calls() -> list[tuple[str, ast.Call]]:
    """Every log call in taskq, with its place."""
    nodes = [(path, node) for path in TASKQ.rglob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (f"{path.relative_to(TASKQ)}:{node.lineno}", node)
        for path, node in nodes
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in LOGS
    ]


def test_every_log_call_hands_its_values_over_apart_from_its_text() -> None:
    """Else the formatter could not cut them."""
    assert len(calls()) > 40
    assert not [place for place, call in calls() if not isinstance(call.args[0], (ast.Constant, ast.Name, ast.IfExp))]


def test_no_log_call_names_what_tasks_and_headers_carry() -> None:
    secret = {"payload", "payloads", "body", "head", "headers", "token", "tokens", "secret", "auth", "result", "data", "frame", "request"}
    for place, call in calls():
        names = {node.attr for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Attribute)}
        names |= {node.id for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Name)}
        told = [ast.unparse(arg) for arg in call.args if any(isinstance(node, ast.Name | ast.Attribute) for node in ast.walk(arg))]
        assert not names & secret or all("len(" in text or "type(" in text for text in told if set(text.replace("(", ".").split(".")) & secret), place


def test_nothing_but_the_program_configures_the_log() -> None:
    others = [path for path in TASKQ.rglob("*.py") if "basicConfig" in path.read_text()]
    assert others == [TASKQ / "printable.py"]
