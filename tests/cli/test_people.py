"""`taskq enqueue, task, queues, workers, cancel` against a real broker and a real worker: what they print and how they exit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from programs import Run, Start

from taskq.cli.people import payload_of, value_of

APP = """
import asyncio
from taskq import App, Discard
app = App()

@app.task
async def greet(name: str, times: int = 1) -> str:
    return "hello " * times + name

@app.task
async def refuse() -> None:
    raise Discard("no such user")

@app.task
async def sleep() -> None:
    await asyncio.sleep(3600)
"""


@pytest.fixture
def worker(start: Start, broker: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    start("worker", "--connect", broker["tcp"], "--app", "app", "--name", "w1", "--drain", "0")


@pytest.mark.usefixtures("worker")
def test_enqueue_and_wait_prints_the_result(run: Run, broker: dict[str, str]) -> None:
    done = run("main", "--broker", broker["tcp"], "enqueue", "greet", "name=you", "times=2", "--wait")
    assert (done.returncode, done.stdout) == (0, "hello hello you\n")
    assert re.fullmatch("taskq: task [0-9a-f]{32}\n", done.stderr)


@pytest.mark.usefixtures("worker")
def test_a_task_that_fails_is_shown_and_exits_with_1(run: Run, broker: dict[str, str]) -> None:
    done = run("main", "enqueue", "refuse", "--wait", TASKQ_URL=broker["tcp"])
    assert done.returncode == 1
    assert "no such user" in done.stdout and "failed" in done.stdout


def test_a_task_that_no_worker_knows_says_so(run: Run, broker: dict[str, str]) -> None:
    made = run("main", "enqueue", "send_email", "to=user@example.com", TASKQ_URL=broker["tcp"])
    task_id = made.stdout.strip()
    assert made.returncode == 0 and len(task_id) == 32
    shown = run("main", "task", task_id, "--broker", broker["tcp"])
    assert shown.returncode == 0
    assert "pending" in shown.stdout and '{"to": "user@example.com"}' in shown.stdout
    assert "no connected worker has task type send_email" in shown.stdout


def test_json_is_one_value_for_programs(run: Run, broker: dict[str, str]) -> None:
    made = json.loads(run("main", "enqueue", "t", "a=1", 'b={"c": [true]}', "d=x y", "--json", "--key", "k", TASKQ_URL=broker["tcp"]).stdout)
    assert made["outcome"] == "created" and made["durability"] == "fsync"
    again = json.loads(
        run("main", "enqueue", "t", "--payload", '{"a":1,"b":{"c":[true]},"d":"x y"}', "--key", "k", "--json", TASKQ_URL=broker["tcp"]).stdout
    )
    assert (again["id"], again["outcome"]) == (made["id"], "exists")
    shown = json.loads(run("main", "task", made["id"], "--json", TASKQ_URL=broker["tcp"]).stdout)
    assert shown["payload"] == {"a": 1, "b": {"c": [True]}, "d": "x y"}
    assert shown["key"] == "k" and shown["state"] == "pending"


@pytest.mark.usefixtures("worker")
def test_queues_and_workers_are_listed(run: Run, broker: dict[str, str]) -> None:
    assert run("main", "enqueue", "greet", "name=you", "--wait", TASKQ_URL=broker["tcp"]).returncode == 0
    queues = run("main", "queues", TASKQ_URL=broker["tcp"])
    assert queues.stdout.split()[:3] == ["queue", "pending", "running"] and "\ndefault " in queues.stdout
    workers = run("main", "workers", TASKQ_URL=broker["tcp"])
    assert workers.stdout.startswith("name") and "\nw1 " in workers.stdout and "greet" in workers.stdout
    [row] = json.loads(run("main", "workers", "--json", TASKQ_URL=broker["tcp"]).stdout)
    assert row["name"] == "w1" and set(row["task_types"]) == {"greet", "refuse", "sleep"}


@pytest.mark.usefixtures("worker")
def test_cancel_a_pending_task_a_running_one_and_one_that_has_ended(run: Run, broker: dict[str, str]) -> None:
    url = {"TASKQ_URL": broker["tcp"]}
    pending = run("main", "enqueue", "unknown_type", **url).stdout.strip()
    assert run("main", "cancel", pending, **url).stdout == "cancelled\n"
    late = run("main", "cancel", pending, **url)
    assert (late.returncode, late.stdout) == (1, "it has ended already\n")
    running = run("main", "enqueue", "sleep", **url).stdout.strip()
    while json.loads(run("main", "task", running, "--json", **url).stdout)["state"] != "running":
        pass
    asked = run("main", "cancel", running, "--json", **url)
    assert (asked.returncode, json.loads(asked.stdout)) == (0, {"id": running, "outcome": "requested"})


def test_what_is_not_there_exits_with_1_and_says_not_found(run: Run, broker: dict[str, str]) -> None:
    unknown = "0190000000008abc8" + "0" * 15
    for command in ("task", "cancel"):
        done = run("main", command, unknown, TASKQ_URL=broker["tcp"])
        assert done.returncode == 1 and done.stdout == ""
        assert "taskq: " in done.stderr and "never existed" in done.stderr


def test_a_broker_that_is_not_there_exits_with_69(run: Run) -> None:
    done = run("main", "--broker", "127.0.0.1:1", "queues")
    assert done.returncode == 69
    assert done.stderr.startswith("taskq: ") and "127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("enqueue",),
        ("enqueue", "t", "value"),
        ("enqueue", "t", "a=1", "--payload", "{}"),
        ("enqueue", "t", "--payload", "{"),
        ("enqueue", "no good name"),
        ("enqueue", "t", "--priority", "11"),
        ("enqueue", "t", "--delay", "soon"),
        ("task", "123"),
        ("--broker", "nowhere:x", "queues"),
        ("nonsense",),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_asks_nobody(run: Run, arguments: tuple[str, ...]) -> None:
    done = run("main", *arguments, TASKQ_URL="127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("true", True), ('"1"', "1"), ("you", "you"), ("", ""), ("[1,2]", [1, 2]), ("NaN", "NaN"), ("a=b", "a=b"), ("1 2", "1 2")],
)
def test_a_value_is_json_if_it_is_json_else_text(text: str, value: object) -> None:
    assert value_of(text) == value


def test_arguments_are_split_at_the_first_equals_sign_and_never_twice() -> None:
    assert payload_of(("a=b=c", "n=1"), None) == {"a": "b=c", "n": 1}
    assert payload_of((), None) == {}
    assert payload_of((), "[1]") == [1]
    with pytest.raises(click.UsageError, match="a is given twice"):
        payload_of(("a=1", "a=2"), None)
