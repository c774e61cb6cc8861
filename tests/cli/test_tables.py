"""How answers look: plain tables, cells, JSON."""

from __future__ import annotations

import json

import pytest

from taskq.cli.tables import CELL_CHARACTERS_MAX, Column, aligned, cell, print_json, print_table, print_text

COLUMNS = (Column("name", "name"), Column("tasks", "tasks", number=True))


def test_numbers_stand_on_the_right_and_text_on_the_left() -> None:
    assert aligned(COLUMNS, [["email", "5"], ["a", "12,000"]]) == ["name    tasks", "email       5", "a      12,000"]


def test_a_table_without_rows_is_its_heading() -> None:
    assert aligned(COLUMNS, []) == ["name  tasks"]


@pytest.mark.parametrize(
    ("value", "key", "text"),
    [
        (None, "", "-"),
        ("", "", "-"),
        ([], "", "-"),
        (["a", "b"], "", "a, b"),
        (0, "started_ms", "-"),
        (3, "", "3"),
        ({"to": "ü"}, "", '{"to": "ü"}'),
        ("one\ntwo\n", "", "one ⏎ two"),
        (b"\x00\xff", "", '"00ff"'),
    ],
)
def test_a_cell_is_one_line(value: object, key: str, text: str) -> None:
    assert cell(value, key) == text


def test_a_long_cell_is_cut() -> None:
    assert len(cell("x" * 1_000)) == CELL_CHARACTERS_MAX


def test_a_moment_is_local_time_to_the_second() -> None:
    assert len(cell(1_700_000_000_000, "enqueued_ms")) == len("2023-11-14 22:13:20")


def test_json_has_bytes_as_hex_digits(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"id": b"\x01\xab", "text": "ü"})
    assert json.loads(capsys.readouterr().out) == {"id": "01ab", "text": "ü"}


def test_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [{"name": "[red]x", "tasks": 1}])
    assert "[red]x" in capsys.readouterr().out


def test_a_result_that_is_text_moves_no_cursor_in_a_pipe_either(capsys: pytest.CaptureFixture[str]) -> None:
    print_text("first\n\tsecond \x1b]0;owned\x07 \x9b31m \u202e")
    assert capsys.readouterr().out == "first\n\tsecond \\x1b]0;owned\\x07 \\x9b31m \\u202e\n"
