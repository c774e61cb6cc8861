"""A disk that answers with an error: the broker ends and says nothing more, and nothing that it had acknowledged is lost."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest
from programs import IN_CODE, READY, Spawn, Start

from campaigns import disk_errors
from taskq import Client

ENDS = ("0.8TERM", "0.6TERM")
SEEDS = {disk_errors.FAULTS[seed % len(disk_errors.FAULTS)]: seed for seed in range(20, 28)}


@pytest.mark.parametrize("fault", SEEDS, ids=" ".join)
def test_an_error_of_the_disk_ends_the_broker_and_loses_nothing_that_was_acknowledged(fault: tuple[str, str]) -> None:
    outcome = disk_errors.run(SEEDS[fault], ENDS)
    assert not outcome.bad, outcome.words
    assert outcome.tasks or outcome.deaths


def test_what_was_written_and_not_acknowledged_is_found_by_its_id(start: Start, spawn: Spawn, tmp_path: Path) -> None:
    """The write was done and its sync failed: nobody knows, so nobody is told.  The client asks the next broker with the same id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--listen", address, "--http", "127.0.0.1:0", "--data", str(tmp_path / "data"))
    fault = ("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=60")
    broker = spawn([*fault, sys.executable, "-c", IN_CODE.format("broker"), *options])
    broker.wait_for(READY)
    created: list[bool] = []

    def produce() -> None:
        with Client(address, deadline=60) as client:
            while all(created):
                created.append(client.enqueue("work", len(created)).created)

    producer = threading.Thread(target=produce)
    producer.start()
    assert broker.end() == 70
    next_broker = start("broker", *options)
    next_broker.wait_for(READY)
    producer.join(60)
    assert created.count(False) == 1
    with Client(address) as client:
        assert client.queues()[0]["pending"] == len(created)
