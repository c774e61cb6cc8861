"""A damaged data folder is repaired or refused, never silently wrong; and the check would see it if it were."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from campaigns import corruption
from taskq.storage import sqlite

MUTATIONS = 75
pytestmark = pytest.mark.xdist_group("corruption")


@pytest.fixture(scope="module", params=["clean-stop", "kill"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> corruption.Folder:
    return corruption.make(tmp_path_factory.mktemp("folder"), request.param, 1)


def test_a_damaged_folder_is_repaired_or_refused_and_never_silently_wrong(folder: corruption.Folder, tmp_path: Path) -> None:
    rng = random.Random(1)
    verdicts = [corruption.spoil(folder, tmp_path / "spoiled", rng) for _ in range(MUTATIONS)]
    assert [verdict for verdict in verdicts if verdict.kind == "wrong"] == []
    assert sum(verdict.kind == "refused" for verdict in verdicts) > MUTATIONS // 3


def test_the_newest_segment_may_be_cut_anywhere(folder: corruption.Folder, tmp_path: Path) -> None:
    """What is cut is gone without a word from anything but the log: nothing vouches for the newest batches.  More than them is refused."""
    rng = random.Random(2)
    kinds = {corruption.judge(folder, corruption.cut_tail, tmp_path / str(number), rng).kind for number in range(15)}
    assert kinds <= {"repaired", "refused", "harmless"}


def test_rows_that_are_not_as_they_were_written_would_be_seen(folder: corruption.Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not look at its seals hands out wrong rows, and the check says so."""
    monkeypatch.setattr(sqlite, "unsealed_live", lambda row, pack: (*row[:12], row[12][:-4]))
    monkeypatch.setattr(sqlite, "unsealed_finished", lambda id_, finished_ms, sealed, payload, result: sealed[:-4])
    rng = random.Random(3)
    verdicts = [corruption.judge(folder, flip_store, tmp_path / str(number), rng) for number in range(40)]
    assert any(verdict.kind == "wrong" for verdict in verdicts)


def flip_store(folder: Path, older: Path, rng: random.Random) -> str:
    path = folder / "store.sqlite"
    data = bytearray(path.read_bytes())
    data[at := rng.randrange(len(data))] ^= 1
    path.write_bytes(data)
    return f"a bit at {at} of {path.name}"
