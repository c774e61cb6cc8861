"""`taskq-worker` as a process: without an app, with one, and with one that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import Run, Start

from taskq.cli.worker import WorkerSettings
from taskq.config import load, settings_of
from taskq.worker.settings import WorkerConfig


def test_the_settings_become_the_keepers_config() -> None:
    environ = {"TASKQ_URL": "broker:7000", "TASKQ_QUEUES": "a, b", "TASKQ_RELOAD": "yes", "TASKQ_CONCURRENCY": "5"}
    settings = load(WorkerSettings, {"concurrency": "7", "drain": "1m", "pool": "process", "name": None}, environ)
    assert settings.config() == WorkerConfig("broker:7000", None, ("a", "b"), 7, "process", 60.0, True, "")


def test_the_defaults_are_those_of_the_worker() -> None:
    assert load(WorkerSettings, {}, {}).config() == WorkerConfig("localhost:7000")


def test_help_explains_every_setting(run: Run) -> None:
    text = " ".join(run("worker", "--help").stdout.split())
    for row in settings_of(WorkerSettings):
        assert f"{row.help} [default: {row.shown_default()}; {row.environment}]" in text


def test_connect_alone_is_enough_and_the_worker_says_that_it_is_idle(start: Start, run: Run, broker: dict[str, str]) -> None:
    worker = start("worker", "--connect", broker["tcp"], "--name", "idle")
    worker.wait_for("it can run no task type|can run no task type", "stderr")
    while not json.loads(run("main", "workers", "--json", TASKQ_URL=broker["tcp"]).stdout):
        assert worker.process.poll() is None
    assert worker.stop() == 0


def test_a_worker_that_never_got_in_has_nothing_to_wait_for_when_it_is_stopped(start: Start, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from taskq import App\napp = App()\n@app.task\ndef work() -> None: ...\n")
    worker = start("worker", "--connect", "127.0.0.1:1", "--app", "app", "--drain", "1h")
    worker.wait_for("not connected, trying again", "stderr")
    assert worker.stop() == 0


def test_an_app_that_cannot_be_imported_ends_it_with_the_import_error(start: Start, broker: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    worker = start("worker", "--connect", broker["tcp"], "--app", "broken")
    assert worker.end() != 0
    assert "No module named 'no_such_module'" in worker.errors


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--concurrency", "0"), 78, "concurrency (flag --concurrency)"),
        (("--pool", "fork"), 78, "auto, async, thread, process"),
        (("--connect", "nowhere:x"), 78, "broker address"),
        (("--nonsense",), 2, "--nonsense"),
    ],
)
def test_bad_settings_are_refused(run: Run, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = run("worker", *arguments)
    assert done.returncode == code
    assert text in done.stderr and "Traceback" not in done.stderr
