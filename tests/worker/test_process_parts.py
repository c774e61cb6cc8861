"""The small parts of which keeper, runner and children are made: the page, causes of death, finding the app and its directory, settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import hostile
import pytest

from taskq.errors import ConfigError
from taskq.worker.keeper import runs
from taskq.worker.loading import EXPLAINED_BYTES_MAX, explain, load_app
from taskq.worker.page import STEP, THREADS, Page
from taskq.worker.parent import cause_of_death
from taskq.worker.reload import app_directory
from taskq.worker.settings import WorkerConfig


def test_what_one_process_writes_on_the_page_the_other_reads() -> None:
    page = Page()
    code = "import sys; from taskq.worker.page import Page; Page(int(sys.argv[1])).received = 2**63 + 7"
    subprocess.run([sys.executable, "-c", code, str(page.fd)], pass_fds=[page.fd], check=True)
    assert page.received == 2**63 + 7
    page.clear()
    assert page.received == 0
    page.close()


@pytest.mark.parametrize("cell", [STEP, THREADS])
def test_a_page_is_overdue_after_one_of_its_deadlines(cell: int) -> None:
    page = Page()
    now_ns = time.monotonic_ns()
    assert not page.overdue(now_ns)
    page.cells[cell] = now_ns
    assert not page.overdue(now_ns) and page.overdue(now_ns + 1)
    page.close()


@pytest.mark.parametrize(("code", "cause"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (3, "exit code 3"), (-60, "signal 60")])
def test_a_death_has_a_cause_in_words(code: int, cause: str) -> None:
    assert cause_of_death(code) == cause


def test_this_process_runs_and_one_that_ended_does_not() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert runs(os.getpid()) and not runs(process.pid)
    process.wait()
    assert not runs(process.pid)


def test_settings_survive_the_way_to_the_runner() -> None:
    config = WorkerConfig("h:1", app="a.b:c", queues=("x", "y"), concurrency=3, pool="thread", drain_s=1.5, reload=True, name="n")
    assert WorkerConfig.load(config.dump()) == config


APP = "class App:\n    def __init__(self): self.tasks = {}\n"


@pytest.mark.parametrize(
    ("source", "reference", "found"),
    [
        ("one = App()\n", "", "one"),
        ("one = App()\nalias = one\n", "", "one"),
        ("one = App()\ntwo = App()\n", ":two", "two"),
        ("class Request:\n    def __getattr__(self, name): raise RuntimeError(name)\nrequest = Request()\none = App()\n", "", "one"),
    ],
)
def test_the_app_of_a_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reference: str, found: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loading_app.py").write_text(APP + source)
    monkeypatch.delitem(sys.modules, "loading_app", raising=False)
    app = load_app(f"loading_app{reference}")
    assert app is getattr(sys.modules["loading_app"], found)


@pytest.mark.parametrize(("source", "reference"), [("", ""), ("one = App()\ntwo = App()\n", ""), ("one = 1\n", ":one"), ("", ":none")])
def test_a_module_without_exactly_one_app_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reference: str) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "loading_app.py").write_text(APP + source)
    monkeypatch.delitem(sys.modules, "loading_app", raising=False)
    with pytest.raises(ConfigError, match="loading_app"):
        load_app(f"loading_app{reference}")


@pytest.mark.parametrize("name", hostile.RAISED)
def test_an_import_that_fails_is_explained_in_so_many_bytes_whatever_it_raises(name: str) -> None:
    try:
        raise hostile.RAISED[name][0]()
    except BaseException as error:
        told = explain(error)
    assert 0 < len(told.encode()) <= EXPLAINED_BYTES_MAX


def test_the_directory_of_an_app_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "bad_package").mkdir()
    (tmp_path / "bad_package" / "__init__.py").write_text("1 / 0\n")
    (tmp_path / "bad_module.py").write_text("1 / 0\n")
    assert app_directory("bad_package.tasks:app") == tmp_path / "bad_package"
    assert app_directory("bad_module") == tmp_path
    assert app_directory(None) == tmp_path
