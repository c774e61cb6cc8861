"""Columns, and the numbers by which records are known in journals for ever."""

from __future__ import annotations

from taskq.core import records as r


def test_a_column_of_one_counts_for_all() -> None:
    assert list(r.column([7], 3)) == [7, 7, 7]


def test_a_full_column_stays_as_it_is() -> None:
    values = [1, 2, 3]
    assert r.column(values, 3) is values


def test_the_kinds_of_records_are_fixed_for_ever() -> None:
    names = {kind: cls.__name__ for kind, cls in r.KINDS.items()}
    assert names == {1: "Admitted", 2: "Granted", 3: "Completed", 4: "Ended", 5: "Promoted", 6: "Dropped", 7: "CancelAsked"}
