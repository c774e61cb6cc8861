"""The worker of another language, written from docs/protocol.md: it does what the document says, and so does the broker."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from programs import READY, Program, Spawn, Start

from taskq import Client, TaskFailed

FOLDER = Path(__file__).parents[2] / "examples" / "node"
RESULT_S = 30.0


@pytest.fixture
def broker(start: Start, tmp_path: Path) -> tuple[Program, str]:
    return listening(start, tmp_path)


def listening(start: Start, tmp_path: Path, address: str = "127.0.0.1:0") -> tuple[Program, str]:
    broker = start("broker", "--listen", address, "--http", "127.0.0.1:0", "--data", str(tmp_path / "data"), "--heartbeat", "0.5s", "--lease", "5s")
    return broker, broker.wait_for(READY)["tcp"]


@pytest.fixture
def node(spawn: Spawn, broker: tuple[Program, str]) -> Program:
    assert (FOLDER / "node_modules").is_dir(), "the example's package is missing: run `npm ci` in examples/node, as `make test` does"
    return spawn(["node", FOLDER / "worker.mjs", broker[1], "polyglot"])


def test_tasks_of_a_python_producer_are_run_by_a_worker_in_node(broker: tuple[Program, str], node: Program) -> None:
    with Client(broker[1], deadline=RESULT_S) as client:
        greeting = client.enqueue("node.greet", {"name": "wörld"}, queue="polyglot")
        sums = client.enqueue_many("node.add", [[number, 1] for number in range(1_000)], queue="polyglot")
        assert client.result(greeting, timeout=RESULT_S) == "hello wörld"
        assert [client.result(handle, timeout=RESULT_S) for handle in sums[::100]] == [number + 1 for number in range(0, 1_000, 100)]
        (row,) = client.workers()
        assert row["name"].startswith("node-")


def test_an_error_in_node_is_a_failed_attempt_with_its_message(broker: tuple[Program, str], node: Program) -> None:
    with Client(broker[1], deadline=RESULT_S) as client:
        handle = client.enqueue("node.fail", {"why": "no such user"}, queue="polyglot", max_attempts=1)
        with pytest.raises(TaskFailed, match="no such user"):
            client.result(handle, timeout=RESULT_S)


def test_a_task_in_node_goes_on_while_the_broker_is_killed_and_comes_back(
    start: Start, broker: tuple[Program, str], node: Program, tmp_path: Path
) -> None:
    program, address = broker
    with Client(address, deadline=RESULT_S) as client:
        handle = client.enqueue("node.wait", {"ms": 1_500}, queue="polyglot")
        running(client, handle)
        program.signal(signal.SIGKILL)
        program.end()
        listening(start, tmp_path, address)
        assert client.result(handle, timeout=RESULT_S) == "waited 1500 ms"
        attempts = client.get(handle).fields["attempts"]
        assert [attempt["outcome"] for attempt in attempts] == ["completed"]
        assert client.result(client.enqueue("node.greet", {"name": "again"}, queue="polyglot"), timeout=RESULT_S) == "hello again"


def test_a_task_in_node_that_is_cancelled_ends(broker: tuple[Program, str], node: Program) -> None:
    with Client(broker[1], deadline=RESULT_S) as client:
        handle = client.enqueue("node.wait", {"ms": 60_000}, queue="polyglot")
        running(client, handle)
        client.cancel(handle)
        ended(client, handle, "cancelled")


def test_a_worker_in_node_that_is_told_to_stop_finishes_what_it_runs(broker: tuple[Program, str], node: Program) -> None:
    with Client(broker[1], deadline=RESULT_S) as client:
        handle = client.enqueue("node.wait", {"ms": 500}, queue="polyglot")
        running(client, handle)
        assert node.stop() == 0
        assert client.result(handle, timeout=RESULT_S) == "waited 500 ms"


def running(client: Client, handle: object) -> None:
    ended(client, handle, "running")


def ended(client: Client, handle: object, state: str) -> None:
    until = time.monotonic() + RESULT_S
    while client.get(handle).state != state:
        assert time.monotonic() < until


def test_the_example_needs_nothing_but_msgpack() -> None:
    assert set(json.loads((FOLDER / "package.json").read_text())["dependencies"]) == {"@msgpack/msgpack"}
    imported = set(re.findall(r'^import .* from "([^"]+)"', (FOLDER / "worker.mjs").read_text(), re.M))
    assert imported == {"@msgpack/msgpack", "node:net", "node:os"}
