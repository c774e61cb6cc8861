"""The parts of the demo: its index is idempotent, and the whole cleans up after itself when it is interrupted.  `make demo` runs all of it."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
from programs import SOURCE, Spawn, environment

DEMO = SOURCE / "examples" / "demo"


@pytest.fixture
def search_index() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_search_index", DEMO / "search_index.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_file_that_is_indexed_twice_is_there_once(search_index: ModuleType, tmp_path: Path) -> None:
    file = str(tmp_path / "index.sqlite")
    search_index.create(file)
    with search_index.opened(file) as index:
        for source in (b'"""Sorted lists."""\nold_name = 1\n', b'"""Sorted lists."""\nnew_name = 1\n'):
            search_index.put(index, search_index.tokenised("bisect.py", source))
        assert search_index.paths(index) == ["bisect.py"]
        assert search_index.written_again(index) == 1
        assert search_index.search(index, "new_name", 5) == [("bisect.py", "Sorted lists.")]
        assert search_index.search(index, "old_name", 5) == []


@pytest.mark.parametrize("source", [b"def broken(:\n", b"# -*- coding: nonsense -*-\nword\n", b"\xff\xfe\x00", b"", b"'''never closed"])
def test_a_file_that_is_no_python_is_indexed_by_its_words(search_index: ModuleType, source: bytes) -> None:
    assert search_index.tokenised("x.py", source).path == "x.py"


def test_ctrl_c_leaves_no_process_and_no_file(spawn: Spawn, tmp_path: Path) -> None:
    demo = spawn([sys.executable, DEMO / "run.py"], environment(TMPDIR=str(tmp_path)))
    broker = int(demo.wait_for(r"taskq-broker listening .* pid=(\d+)")[1])
    worker = int(demo.wait_for(r"worker demo-1 is connected, pid (\d+)")[1])
    demo.signal(signal.SIGINT)
    assert demo.end() == 130, demo.errors
    assert list(tmp_path.iterdir()) == []
    for pid in (broker, worker):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
