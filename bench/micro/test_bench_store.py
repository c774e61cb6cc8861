"""What a commit and a read of the SQLite store cost, with an idle event loop and beside a thread that never lets the GIL go by itself."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.ids import make_id
from taskq.storage.base import Row, WriteBatch
from taskq.storage.sqlite import SqliteStore

ROWS = 1_000
PENDING, COMPLETED = 2, 5
RNG = random.Random(1)


class Bench:
    """A store and the loop that it lives on; every call takes new seqs."""

    def __init__(self, path: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = SqliteStore(path)
        self.seq = 0
        self.run(self.store.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def rows(self, state: int, keyed: bool = False, payload_bytes: int = 300) -> list[Row]:
        first, self.seq = self.seq + 1, self.seq + ROWS
        payload = memoryview(bytes(payload_bytes))
        return [
            (
                seq,
                make_id(1_700_000_000_000 + seq, 7, RNG),
                "email",
                "send",
                state,
                5,
                seq,
                0,
                0,
                f"k{seq}" if keyed else None,
                payload,
                b"",
                b"m" * 40,
            )
            for seq in range(first, first + ROWS)
        ]

    def close(self) -> None:
        self.run(self.store.close())
        self.loop.close()


@pytest.fixture(params=["idle", "busy"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            for _ in range(1_000):
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)  # as the broker's command line does
    thread = threading.Thread(target=spin)
    if request.param == "busy":
        thread.start()
    bench = Bench(tmp_path / "store.db")
    yield bench
    bench.close()
    over.set()
    if thread.ident is not None:
        thread.join()
    sys.setswitchinterval(interval)


@pytest.mark.parametrize(("keyed", "payload_bytes"), [(False, 300), (True, 300), (False, 9_000)], ids=["bare", "keyed", "large"])
def test_finish_1000(benchmark: Any, bench: Bench, keyed: bool, payload_bytes: int) -> None:
    def setup() -> tuple[tuple[WriteBatch], dict[str, Any]]:
        return (WriteBatch(meta={"applied_lsn": bench.seq}, finish=bench.rows(COMPLETED, keyed, payload_bytes)),), {}

    benchmark.pedantic(lambda batch: bench.run(bench.store.commit(batch)), setup=setup, rounds=20, warmup_rounds=2)


def test_put_1000_and_delete_1000(benchmark: Any, bench: Bench) -> None:
    def setup() -> tuple[tuple[WriteBatch], dict[str, Any]]:
        former = range(bench.seq - ROWS + 1, bench.seq + 1)
        return (WriteBatch(put=bench.rows(PENDING), delete=list(former)),), {}

    benchmark.pedantic(lambda batch: bench.run(bench.store.commit(batch)), setup=setup, rounds=20, warmup_rounds=2)


def test_line_1000(benchmark: Any, bench: Bench) -> None:
    bench.run(bench.store.commit(WriteBatch(put=bench.rows(PENDING))))
    rows = benchmark.pedantic(lambda: bench.run(bench.store.line("email", 5, "send", PENDING, 0, ROWS)), rounds=20, warmup_rounds=2)
    assert len(rows) == ROWS


def test_find_100_ids(benchmark: Any, bench: Bench) -> None:
    rows = bench.rows(COMPLETED)
    bench.run(bench.store.commit(WriteBatch(finish=rows)))
    ids = [row[1] for row in rows[::10]]
    found = benchmark.pedantic(lambda: bench.run(bench.store.find(ids, [])), rounds=20, warmup_rounds=2)
    assert len(found) == 100
