"""What one journal batch costs: packing and writing it (level os), and making it durable (level fsync)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.storage.journal import FileJournal

SHAPES: dict[str, list[list[bytes | memoryview]]] = {
    "1 record of 1 task": [[b"h" * 80, b"p" * 300]],
    "1 record of 1,000 tasks": [[b"h" * 20_000, *[b"p" * 300] * 1_000]],
    "1,000 records of 1 task": [[b"h" * 80, b"p" * 300]] * 1_000,
    "16 payloads of 64 KiB": [[b"h" * 400, *[memoryview(bytes(65_536))] * 16]],
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FileJournal]:
    journal = FileJournal(tmp_path)
    assert list(journal.read(0)) == []
    journal.start(1, 1)
    yield journal
    journal.close(empty=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_write(benchmark: Any, journal: FileJournal, shape: str) -> None:
    records = SHAPES[shape]
    benchmark.pedantic(lambda: journal.write(journal.end_lsn + 1, records), rounds=100, warmup_rounds=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_write_and_sync(benchmark: Any, journal: FileJournal, shape: str) -> None:
    records = SHAPES[shape]

    def step() -> None:
        journal.write(journal.end_lsn + 1, records)
        journal.sync()

    benchmark.pedantic(step, rounds=100, warmup_rounds=3)


def test_read(benchmark: Any, tmp_path: Path) -> None:
    """Recovery of 50,000 records of 380 bytes."""
    journal = FileJournal(tmp_path)
    assert list(journal.read(0)) == []
    journal.start(1, 1)
    for _ in range(100):
        journal.write(journal.end_lsn + 1, [[b"h" * 80, b"p" * 300]] * 500)
    journal.close()
    assert benchmark.pedantic(lambda: sum(len(batch.records) for batch in FileJournal(tmp_path).read(0)), rounds=5) == 50_000
