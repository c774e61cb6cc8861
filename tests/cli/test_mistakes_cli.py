"""Mistakes that people make with the three programs, each with what they say to it: the name that is wrong, and the way out."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import ON_FREE_PORTS, Program, Run, Spawn, Start, environment

PROGRAMS = Path(sys.executable).parent
TASKS = """from taskq import App
app = App()
@app.task
def send_email(to: str) -> str:
    return f"sent to {to}"
@app.task(max_attempts=2, backoff_base=3600, backoff_max=3600)
def broken() -> None:
    raise KeyError("no such order")
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], None]:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


@pytest.fixture
def worker(start: Start, broker: dict[str, str], write: Callable[[str, str], None]) -> Program:
    write("tasks.py", TASKS)
    program = start("worker", "--connect", broker["tcp"], "--app", "tasks")
    program.wait_for("new session", "stderr")
    return program


class TestTheWrongProgram:
    @pytest.mark.parametrize(
        ("words", "way_out"),
        [
            (["worker"], "taskq-worker --app MODULE"),
            (["worker", "--app", "tasks"], "taskq-worker --app MODULE"),
            (["broker"], "taskq-broker"),
            (["start"], "taskq-broker"),
            (["revoke", "17"], "taskq cancel ID"),
            (["status"], "taskq task ID"),
            (["send", "x"], "taskq enqueue"),
            (["workrs"], "Did you mean 'workers'"),
        ],
    )
    def test_a_command_of_elsewhere_is_told_where_it_is(self, run: Run, words: list[str], way_out: str) -> None:
        done = run("main", *words)
        assert done.returncode == 2
        assert way_out in done.stderr

    def test_python_dash_m_taskq_is_taskq(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "taskq", "--version"]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=20, check=True)
        assert done.stdout.startswith("taskq")

    @pytest.mark.parametrize("words", [["tasks"], ["--concurrency", "2", "tasks"], ["tasks:app"]], ids=" ".join)
    def test_a_worker_takes_its_module_with_app(self, run: Run, words: list[str]) -> None:
        done = run("worker", *words)
        assert done.returncode == 2
        assert f"--app {words[-1]}" in done.stderr


class TestTheWrongPort:
    def test_the_http_port_in_place_of_the_brokers_is_named_to_people(self, run: Run, broker: dict[str, str]) -> None:
        done = run("main", "--broker", broker["http"], "queues")
        assert done.returncode == 69
        assert broker["http"] in done.stderr
        assert "speaks HTTP" in done.stderr and "TCP address" in done.stderr
        assert "TLS" not in done.stderr and "version" not in done.stderr

    def test_the_http_port_in_place_of_the_brokers_is_named_in_the_workers_log(self, start: Start, broker: dict[str, str]) -> None:
        worker = start("worker", "--connect", broker["http"])
        assert "not connected" in worker.wait_for("speaks HTTP.*TCP address", "stderr").string
        assert worker.stop() == 0

    def test_a_broker_that_is_not_there_says_how_to_start_or_name_one(self, run: Run) -> None:
        done = run("main", "--broker", "127.0.0.1:1", "queues")
        assert done.returncode == 69
        assert "127.0.0.1:1: Connection refused" in done.stderr
        assert "taskq-broker" in done.stderr and "TASKQ_URL" in done.stderr


class TestTheApp:
    @pytest.mark.parametrize(
        ("reference", "way_out"),
        [
            ("tasks.py", "write --app tasks"),
            ("./tasks.py", "write --app tasks"),
            ("./tasks", "write --app tasks"),
            ("pkg/mail.py", "write --app pkg.mail"),
            ("pkg/mail.py:app", "write --app pkg.mail:app"),
            ("pkg\\mail.py", "write --app pkg.mail"),
            (".tasks", "write --app tasks"),
            ("/srv/shop/tasks.py", "start the worker in /srv/shop and write --app tasks"),
            ("tasks:app:more", "write for example --app tasks"),
            ("my tasks", "write for example --app tasks"),
            ("taks", "there is no module taks in .*; did you mean tasks"),
            ("nowhere.at_all", "there is no module nowhere in .*; start the worker in the folder that has it"),
            ("tasks.app", "tasks is a file and no package; write --app tasks, or --app tasks:NAME"),
            ("tasks:nope", "has no App named 'nope'; it has app"),
            ("tasks:ap", "has no App named 'ap'; it has app, did you mean app"),
            ("tasks:send_email", "has no App named 'send_email'; it has app"),
            ("empty", r"empty has no App; write `app = taskq\.App\(\)` in it"),
            ("two", "two has 2 Apps, one, other; write --app two:one"),
        ],
    )
    def test_a_reference_that_leads_to_no_app_is_mended(self, run: Run, write: Callable[[str, str], None], reference: str, way_out: str) -> None:
        write("tasks.py", TASKS)
        write("empty.py", "x = 1\n")
        write("two.py", "from taskq import App\none = App()\nother = App()\n")
        done = run("worker", "--connect", "127.0.0.1:1", "--app", reference)
        assert done.returncode == 78
        assert re.search(way_out, done.stderr), done.stderr
        assert "Traceback" not in done.stderr

    def test_an_import_that_fails_is_shown_from_the_users_own_line_on(self, run: Run, write: Callable[[str, str], None]) -> None:
        write("tasks.py", "import pandas_that_is_not_there\n")
        done = run("worker", "--connect", "127.0.0.1:1", "--app", "tasks")
        assert done.returncode == 78
        assert 'tasks.py", line 1' in done.stderr and "No module named 'pandas_that_is_not_there'" in done.stderr
        assert "importlib" not in done.stderr and "loading.py" not in done.stderr

    def test_an_app_whose_tasks_are_not_imported_is_told_to_import_them(
        self, start: Start, broker: dict[str, str], write: Callable[[str, str], None]
    ) -> None:
        write("house/__init__.py", "")
        write("house/app.py", "from taskq import App\napp = App()\n")
        worker = start("worker", "--connect", broker["tcp"], "--app", "house.app")
        worker.wait_for("the App of house.app has no tasks; import the modules of your tasks in house.app", "stderr")
        assert worker.stop() == 0

    @pytest.mark.parametrize("name", ["queue.py", "logging/__init__.py", "msgpack.py"])
    @pytest.mark.parametrize("command", ["taskq-worker --connect 127.0.0.1:1 --app tasks", "taskq dev tasks"])
    def test_a_file_with_the_name_of_a_module_of_the_worker_is_named(
        self, spawn: Spawn, write: Callable[[str, str], None], name: str, command: str
    ) -> None:
        write("tasks.py", TASKS)
        write(name, "")
        program, *words = command.split()
        addresses = {"TASKQ_LISTEN": "127.0.0.1:0", "TASKQ_HTTP": "127.0.0.1:0"}
        started = spawn([PROGRAMS / program, *words], {**environment(**addresses), "PYTHONPATH": ""})
        started.wait_for(rf"{name} in .* has the name of the module .* that the worker needs; give it another name", "stderr")
        assert started.end() == 78 if program == "taskq-worker" else started.stop() == 0
        assert "Traceback" not in started.errors


class TestWaiting:
    def test_the_id_comes_first_and_the_result_alone_on_stdout(self, run: Run, worker: Program, broker: dict[str, str]) -> None:
        done = run("main", "--broker", broker["tcp"], "enqueue", "send_email", "to=a", "--wait")
        assert done.stdout == "sent to a\n"
        assert done.stderr.startswith("taskq: task ") and done.stderr.count("\n") == 1

    def test_a_misspelt_task_is_told_and_what_was_meant(self, start: Start, worker: Program, broker: dict[str, str]) -> None:
        waiting = start("main", "--broker", broker["tcp"], "enqueue", "send_emial", "to=a", "--wait")
        task_id = waiting.wait_for("task ([0-9a-f]{32})", "stderr")[1]
        waiting.wait_for("pending: no connected worker has task type send_emial; did you mean send_email", "stderr")
        waiting.signal(signal.SIGINT)
        assert waiting.end() == 130
        assert f"the task goes on; look at it with: taskq task {task_id}" in waiting.errors
        assert "Aborted" not in waiting.errors

    def test_a_misspelt_queue_is_told_and_what_was_meant(self, start: Start, worker: Program, broker: dict[str, str]) -> None:
        waiting = start("main", "--broker", broker["tcp"], "enqueue", "send_email", "to=a", "--queue", "defualt", "--wait")
        waiting.wait_for("no connected worker takes queue defualt; did you mean default", "stderr")

    def test_no_worker_at_all_is_told_and_how_to_start_one_and_then_the_task_ends(
        self, start: Start, broker: dict[str, str], write: Callable[[str, str], None]
    ) -> None:
        waiting = start("main", "--broker", broker["tcp"], "enqueue", "send_email", "to=a", "--wait")
        waiting.wait_for("no worker is connected; start one with taskq-worker --app MODULE", "stderr")
        write("tasks.py", TASKS)
        start("worker", "--connect", broker["tcp"], "--app", "tasks")
        waiting.wait_for("sent to a")
        assert waiting.end() == 0

    def test_a_task_that_keeps_failing_is_told_with_its_error(self, start: Start, worker: Program, broker: dict[str, str]) -> None:
        waiting = start("main", "--broker", broker["tcp"], "enqueue", "broken", "--wait")
        waiting.wait_for("retrying: waiting to be retried, due in .* the last attempt said KeyError: 'no such order'", "stderr")

    def test_taskq_task_says_what_was_meant_too(self, run: Run, worker: Program, broker: dict[str, str]) -> None:
        made = run("main", "--broker", broker["tcp"], "enqueue", "send_emial").stdout.strip()
        assert "did you mean send_email" in run("main", "--broker", broker["tcp"], "task", made).stdout


def test_a_broker_in_the_way_names_the_flags(run: Run, broker: dict[str, str]) -> None:
    done = run("broker", "--listen", broker["tcp"], "--http", ON_FREE_PORTS[3], "--data", "elsewhere")
    assert done.returncode != 0
    assert "--listen" in done.stderr


def test_a_data_folder_that_is_deleted_under_its_broker_is_said_without_a_trace(start: Start, tmp_path: Path) -> None:
    program = start("broker", *ON_FREE_PORTS, "--data", "data")
    program.wait_for("listening")
    shutil.rmtree(tmp_path / "data")
    assert program.end() == 74
    assert f"the data folder {tmp_path / 'data'} is gone" in program.errors and "start with another --data" in program.errors
    assert "Traceback" not in program.errors
