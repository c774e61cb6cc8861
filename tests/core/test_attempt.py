"""Attempts: texts are cut by their bytes, and never through a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core.attempt import SHORT_CHARS, TEXTS_BYTES_MAX, Attempt, cut, lacks_texts, lean, with_texts


def attempt(number: int, error: str | None = "", *, ended_ms: int = 0) -> Attempt:
    return Attempt(number, "w1", number, ended_ms or number, "failed", "E", error)


@pytest.mark.parametrize(
    ("text", "bytes_max", "kept"),
    [
        ("e" * 10, 10, "e" * 10),
        ("e" * 11, 10, "e" * 10),
        ("e" * 100, 10, "e" * 10),
        ("\u00e9" * 5, 10, "\u00e9" * 5),
        ("\u00e9" * 6, 11, "\u00e9" * 5),
        ("\U0001f600" * 100, 10, "\U0001f600" * 2),
        ("a\U0001f600", 4, "a"),
        ("", 10, ""),
        ("e", 0, ""),
    ],
)
def test_a_text_is_cut_at_the_last_character_that_fits(text: str, bytes_max: int, kept: str) -> None:
    assert cut(text, bytes_max) == kept


@given(st.text(max_size=60), st.integers(0, 100))
def test_what_is_kept_is_the_longest_beginning_within_the_bytes(text: str, bytes_max: int) -> None:
    kept = cut(text, bytes_max)
    assert text.startswith(kept) and len(kept.encode()) <= bytes_max
    assert kept == text or len(text[: len(kept) + 1].encode()) > bytes_max


def test_a_text_that_fits_is_the_same_object() -> None:
    text = "e" * 16_384
    assert cut(text, 16_384) is text


def test_short_texts_stay_and_long_ones_leave() -> None:
    history = (attempt(1, "e" * SHORT_CHARS), attempt(2, "e" * (SHORT_CHARS + 1)), attempt(3))
    assert [each.error for each in lean(history)] == ["e" * SHORT_CHARS, None, ""]
    assert lacks_texts(lean(history)) and not lacks_texts(history)
    assert lean(history[:1]) is not None and lean((history[0],)) == (history[0],)


def test_texts_that_left_are_found_again_also_where_runs_look_alike() -> None:
    stored = (attempt(1, "gone from the history"), attempt(2, "two"), attempt(2, "two again"), attempt(3, "three"))
    history = (attempt(2, None), attempt(2, None), attempt(3, None), attempt(4, "four"))
    assert [each.error for each in with_texts(history, stored)] == ["two", "two again", "three", "four"]


def test_a_text_that_is_nowhere_is_empty() -> None:
    assert [each.error for each in with_texts((attempt(1, None), attempt(2, "b")), ())] == ["", "b"]


def test_the_newest_texts_are_whole_and_the_oldest_are_cut_first() -> None:
    part = TEXTS_BYTES_MAX * 2 // 5
    history = tuple(attempt(number, str(number) * part) for number in range(1, 6))
    assert [len(each.error or "") for each in with_texts(history, ())] == [0, 0, TEXTS_BYTES_MAX - 2 * part, part, part]
