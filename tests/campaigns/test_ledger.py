"""The ledger adds up what counts for the code as it is, and only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from campaigns import ledger


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "FOLDER", tmp_path)
    monkeypatch.setattr(ledger, "code_of", lambda campaign: "now")


def test_pieces_of_a_campaign_are_added_up_by_mode() -> None:
    ledger.record("kills", mode="fsync", kills=10, lost=0)
    ledger.record("kills", mode="os", kills=5, lost=1)
    ledger.record("kills", mode="fsync", kills=7, lost=0, note="text")
    assert ledger.sums("kills", "mode") == {"fsync": {"kills": 17, "lost": 0}, "os": {"kills": 5, "lost": 1}}


def test_pieces_of_other_code_count_no_more(tmp_path: Path) -> None:
    ledger.record("kills", kills=10)
    file = tmp_path / "kills.jsonl"
    line = json.loads(file.read_text())
    assert line["commit"] and line["at"]
    file.write_text(json.dumps({**line, "code": "before"}) + "\n")
    ledger.record("kills", kills=3)
    assert ledger.sums("kills") == {"": {"kills": 3}}


def test_a_campaign_on_code_that_is_not_committed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ledger, "git", lambda *words: " M taskq/core/shard.py\n")
    with pytest.raises(RuntimeError, match="commit these first"):
        ledger.code_of("kills")


def test_every_watched_path_exists() -> None:
    missing = [path for watched in ledger.WATCHED.values() for path in watched if not (ledger.ROOT / path).exists()]
    assert not missing
