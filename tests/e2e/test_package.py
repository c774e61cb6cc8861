"""The package as users get it: a wheel, an empty environment, and the two commands of the first page."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from programs import ON_FREE_PORTS, READY, SOURCE, Spawn, environment

INSTALL_S = 240


def run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_works_in_an_empty_environment(spawn: Spawn, tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", copy_of_source(tmp_path / "source"))
    (wheel,) = (tmp_path / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert "taskq/py.typed" in names
    assert not [name for name in names if not name.startswith(("taskq/", "taskq-"))]
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "--disable-pip-version-check", wheel)

    (tmp_path / "tasks.py").write_text("from taskq import App\napp = App()\n@app.task\nasync def double(number: int) -> int: return 2 * number\n")
    environ = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    broker = spawn([programs / "taskq-broker", "--shards", "4", *ON_FREE_PORTS], environ)
    address = broker.wait_for(READY)["tcp"]
    worker = spawn([programs / "taskq-worker", "--connect", address, "--app", "tasks"], environ)
    client = spawn([programs / "taskq", "enqueue", "double", "number=21", "--wait", "--broker", address], environ)
    assert client.end() == 0, client.errors
    assert "42" in "".join(client.said["stdout"])
    assert worker.stop() == 0, worker.errors
    assert broker.stop() == 0, broker.errors


def copy_of_source(folder: Path) -> Path:
    """What a build needs, elsewhere: a build leaves files beside its source."""
    shutil.copytree(SOURCE / "taskq", folder / "taskq", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, folder / name)
    return folder
