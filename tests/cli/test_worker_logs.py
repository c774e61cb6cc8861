"""What `taskq-worker` logs: its start, failed attempts, and what tasks log, alike in all pools; and that the application's own configuration wins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import Program, Start

from taskq import Client

WAIT_S = 20
TASKS = """
import logging, threading
from taskq import App, Retry
{configuration}
app = App()
log = logging.getLogger("shop")

def work(n):
    log.info("working on %s", n)
    if n == 1:
        raise ValueError(f"no order {{n}}")
    if n == 2:
        raise Retry(after=3600, reason="not yet")
    return threading.current_thread().name

@app.task(max_attempts=2, backoff_base=3600, backoff_max=3600)
async def in_loop(n): return work(n)

@app.task(max_attempts=2, backoff_base=3600, backoff_max=3600)
def in_thread(n): return work(n)

@app.task(pool="process", max_attempts=2, backoff_base=3600, backoff_max=3600)
def in_process(n): return work(n)

@app.task(timeout=0.2, max_attempts=1)
async def endless():
    import asyncio
    await asyncio.sleep(3600)

@app.task(max_attempts=1)
def unsendable(): return object()
"""
POOLS = ("in_loop", "in_thread", "in_process")
every_pool = pytest.mark.parametrize("task", POOLS)
# as an error tracker does it: a handler that wants the exception itself
TRACKER = """
logging.basicConfig(level="INFO")
class Tracker(logging.Handler):
    def emit(self, record):
        error = record.exc_info and record.exc_info[1]
        print("TRACKED", record.levelname, type(error).__name__, error, record.taskq_type, record.taskq_id, flush=True)
logging.getLogger().addHandler(Tracker(logging.ERROR))
"""
DICT_CONFIG = """
import logging.config
logging.config.dictConfig({"version": 1, "formatters": {"own": {"format": "OWN %(levelname)s %(name)s %(taskq_type)s %(message)s"}},
    "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}}, "root": {"handlers": ["own"], "level": "INFO"}})
"""
HANDLER = """
own = logging.StreamHandler()
own.setFormatter(logging.Formatter("OWN %(levelname)s %(name)s %(taskq_type)s %(message)s"))
logging.getLogger().addHandler(own)
logging.getLogger().setLevel("INFO")
"""
BAD_HANDLER = """
class Bad(logging.Handler):
    def emit(self, record): raise SystemExit
logging.getLogger("taskq.worker.tasks").addHandler(Bad())
"""
Begin = Callable[..., Program]


@pytest.fixture
def begin(start: Start, broker: dict[str, str], tmp_path: Path) -> Begin:
    """A worker for TASKS with this configuration of the application."""

    def begin(configuration: str = "", *flags: str) -> Program:
        (tmp_path / "shop.py").write_text(TASKS.format(configuration=configuration))
        worker = start("worker", "--connect", broker["tcp"], "--app", "shop", "--concurrency", "7", *flags)
        worker.wait_for("session", "stderr")
        return worker

    return begin


@pytest.fixture
def client(broker: dict[str, str]) -> Any:
    with Client(broker["tcp"]) as client:
        yield client


def options(max_attempts: int = 2) -> Any:
    return {"max_attempts": max_attempts, "retry": (3600, 1.0, 3600)}


def test_the_start_line_has_what_the_worker_does(begin: Begin) -> None:
    worker = begin("", "--queues", "default,other")
    line = worker.wait_for("starts with broker", "stderr").string
    for part in (
        "queues default, other,",
        "concurrency 7,",
        "pools async, process, thread,",
        "5 task types: endless, in_loop, in_process, in_thread",
    ):
        assert part in line


def test_a_queue_that_is_misspelt_is_told_at_the_start(begin: Begin) -> None:
    begin("", "--queues", "defualt").wait_for("WARNING .* no task of the app is for queue defualt; did you mean default", "stderr")


@every_pool
def test_a_failure_says_its_message_its_traceback_and_when_it_is_tried_again(begin: Begin, client: Client, task: str) -> None:
    worker = begin()
    handle = client.enqueue(task, {"n": 1}, **options())
    label = rf"task {handle.id} \({task}, attempt 1\)"
    said = "failed with ValueError: no order 1; it is tried again within 3600 s, as attempt 2 of 2"
    worker.wait_for(f"^\\S+ \\S+ ERROR taskq.worker.tasks.* {label}: {said}$", "stderr")
    worker.wait_for("^    Traceback", "stderr")
    worker.wait_for(r"^      .*raise ValueError", "stderr")


@every_pool
def test_the_last_attempt_says_that_the_task_failed_for_good(begin: Begin, client: Client, task: str) -> None:
    worker = begin()
    client.enqueue(task, {"n": 1}, **options(1))
    worker.wait_for("ERROR .*failed with ValueError: no order 1; it failed for good, after 1 attempts", "stderr")


def test_what_never_was_an_exception_of_the_task_is_said_too(begin: Begin, client: Client) -> None:
    worker = begin()
    client.enqueue("endless", max_attempts=1)
    worker.wait_for("ERROR .*endless, attempt 1.*failed with TimeoutError: .*longer than its timeout.*failed for good", "stderr")
    client.enqueue("unsendable")
    worker.wait_for("ERROR .*unsendable.*failed with TypeError: the result of unsendable cannot be serialised.*it failed for good", "stderr")
    client.enqueue("in_thread", {"m": 1})
    worker.wait_for(r"ERROR .*in_thread.*failed with .*the payload does not fit in_thread\(n\).*it failed for good", "stderr")


@every_pool
def test_a_retry_that_the_task_asked_for_is_a_warning(begin: Begin, client: Client, task: str) -> None:
    worker = begin()
    client.enqueue(task, {"n": 2}, **options())
    worker.wait_for("WARNING .*failed with Retry: not yet; it is tried again in 3600 s, as attempt 2 of 2", "stderr")


@every_pool
def test_what_a_task_logs_is_shown_with_its_id_and_type(begin: Begin, client: Client, task: str) -> None:
    worker = begin()
    handle = client.enqueue(task, {"n": 7})
    worker.wait_for(rf"^\S+ \S+ INFO shop\[\d+\] \({task} {handle.id}\) working on 7$", "stderr")


@every_pool
def test_in_json_each_line_is_an_object(begin: Begin, client: Client, task: str) -> None:
    worker = begin("", "--log-format", "json")
    handle = client.enqueue(task, {"n": 1}, **options(1))
    failed = json.loads(worker.wait_for("it failed for good", "stderr").string)
    assert (failed["level"], failed["logger"], failed["task_id"], failed["task_type"]) == ("ERROR", "taskq.worker.tasks", handle.id, task)
    assert failed["exception"].endswith("ValueError: no order 1")
    assert worker.stop() == 0
    records = [json.loads(line) for line in worker.errors.splitlines()]
    own = next(record for record in records if record["logger"] == "shop")
    assert (own["message"], own["task_id"], own["task_type"]) == ("working on 1", handle.id, task)
    assert "task_id" not in next(record for record in records if record["message"].startswith("starts with"))


@every_pool
def test_at_level_error_only_failures_are_said(start: Start, broker: dict[str, str], tmp_path: Path, client: Client, task: str) -> None:
    (tmp_path / "shop.py").write_text(TASKS.format(configuration=""))
    worker = start("worker", "--connect", broker["tcp"], "--app", "shop", "--log-level", "error")
    client.enqueue(task, {"n": 1}, **options(1))
    worker.wait_for("it failed for good", "stderr")
    assert worker.stop() == 0
    assert "INFO" not in worker.errors and "working on" not in worker.errors


@every_pool
@pytest.mark.parametrize(
    ("configuration", "shown"),
    [
        ("logging.basicConfig(level='INFO', format='OWN %(levelname)s %(name)s %(taskq_type)s %(message)s')", "OWN"),
        (DICT_CONFIG, "OWN"),
        (DICT_CONFIG.replace('"version": 1', '"version": 1, "disable_existing_loggers": False'), "OWN"),
        (HANDLER, "OWN"),
    ],
    ids=["basicConfig", "dictConfig", "dictConfig that keeps loggers", "a handler"],
)
def test_the_configuration_of_the_application_wins(begin: Begin, client: Client, configuration: str, shown: str, task: str) -> None:
    worker = begin(configuration)
    client.enqueue(task, {"n": 1}, **options(1))
    worker.wait_for(f"^{shown} INFO shop {task} working on 1$", "stderr")
    worker.wait_for(f"^{shown} ERROR taskq.worker.tasks {task} .*failed with ValueError", "stderr")
    assert sum("working on 1" in line for line in worker.said["stderr"]) == 1


@every_pool
def test_a_tracker_that_listens_to_logging_gets_the_exception_itself(begin: Begin, client: Client, task: str) -> None:
    worker = begin(TRACKER)
    handle = client.enqueue(task, {"n": 1}, **options())
    worker.wait_for(f"^TRACKED ERROR ValueError no order 1 {task} {handle.id}$")


def test_a_handler_that_raises_fails_no_task(begin: Begin, client: Client) -> None:
    worker = begin(BAD_HANDLER)
    assert client.wait(client.enqueue("in_thread", {"n": 1}, **options(1)), WAIT_S).error.endswith("ValueError: no order 1")
    worker.wait_for("failed with ValueError, which could not be logged", "stderr")
