"""What the peers need, and how it gets here: Python packages into .peers, npm packages into .peers/node, programs by Debian's package manager.

Nothing is installed that the peers of this run do not need.  Installing a server on Debian may start and enable a service: it is kept from
starting, and disabled again if it was this install that brought it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from importlib.metadata import distributions
from pathlib import Path

import attrs

from .contract import HERE, PeerTrouble

ROOT = HERE.parents[1]
PEERS = ROOT / ".peers"
PYTHON = PEERS / "bin" / "python"
ARQ_PYTHON = PEERS / "arq" / "bin" / "python"  # inside, since its redis-py is older than the one that others need
NODE = PEERS / "node"
POLICY = Path("/usr/sbin/policy-rc.d")
NO_START = "#!/bin/sh\nexit 101\n"
INSTALL_S = 900.0


@attrs.frozen
class Debian:
    """A program: its package, the service that the package may bring, what says its version."""

    package: str
    service: str = ""
    version: tuple[str, ...] = ()


PROGRAMS = {
    "redis-server": Debian("redis-server", "redis-server", ("redis-server", "--version")),
    "postgres": Debian("postgresql", "postgresql", ("postgres", "--version")),
    "initdb": Debian("postgresql", "postgresql"),
    "sidekiq": Debian("ruby-sidekiq", "", ("ruby", "-e", "require 'sidekiq/version'; puts Sidekiq::VERSION")),
    "ruby": Debian("ruby", "", ("ruby", "--version")),
    "nats-server": Debian("nats-server", "nats-server", ("nats-server", "--version")),
    "gearmand": Debian("gearman-job-server", "gearman-job-server", ("gearmand", "--version")),
    "beanstalkd": Debian("beanstalkd", "beanstalkd", ("beanstalkd", "-v")),
    "node": Debian("nodejs", "", ("node", "--version")),
    "npm": Debian("npm"),
}
SETTLED = "/usr/lib/postgresql/*/bin"


def find(name: str) -> str | None:
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/games", *sorted(glob(SETTLED), key=_number, reverse=True)]
    return shutil.which(name, path=os.pathsep.join(folders))


def _number(folder: str) -> int:
    return int(found[0]) if (found := re.findall(r"\d+", folder)) else 0


def program(name: str) -> str:
    """Its path; PeerTrouble if it is not there."""
    if (path := find(name)) is None:
        raise PeerTrouble(f"{name} is not installed (Debian's package {PROGRAMS[name].package})")
    return path


def prepare(needs: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """Install what is missing.  For each need that is not met: why."""
    wanted = dict.fromkeys(needs)
    missing: dict[str, str] = {}
    programs = [name for name in wanted if name in PROGRAMS] + (["node", "npm"] if "npm packages" in wanted else [])
    if packages := sorted({PROGRAMS[name].package for name in programs if find(name) is None}):
        say(f"installing {', '.join(packages)}")
        trouble = _apt(packages)
        missing |= {name: f"{name} is not installed: {trouble}" for name in programs if find(name) is None}
    for name, install in ENVIRONMENTS.items():
        if name in wanted:
            try:
                install(say)
            except (PeerTrouble, OSError, subprocess.TimeoutExpired) as trouble:
                missing[name] = f"{name} could not be installed: {trouble}"
    return missing


# ---- Debian


def _apt(packages: list[str]) -> str:
    """Why it did not work, if it did not."""
    command = f"apt-get install {' '.join(packages)}"
    services = {each.service for each in PROGRAMS.values() if each.package in packages and not _is_there(each.package)} - {""}
    if os.geteuid() != 0:
        return f"only root can install it ({command})"
    if shutil.which("apt-get") is None:
        return f"there is no apt-get here ({command} is what Debian would do)"
    try:
        with _no_service_starts():
            _run(["apt-get", "update", "-qq"])
            _run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages], {"DEBIAN_FRONTEND": "noninteractive"})
    except (PeerTrouble, OSError, subprocess.TimeoutExpired) as trouble:
        return f"{command}: {trouble}"
    finally:
        _disable(services)
    return "its package does not bring it"


def _is_there(package: str) -> bool:
    """A service that was there before is none of ours."""
    return subprocess.run(["dpkg-query", "-W", package], capture_output=True, timeout=60, check=False).returncode == 0


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks this program before it starts a service.  One that is there already decides for itself."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text(NO_START)
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def _disable(services: Iterable[str]) -> None:
    for service in services:
        for command in (["systemctl", "disable", "--now", service], ["update-rc.d", service, "disable"]):
            if shutil.which(command[0]):
                subprocess.run(command, capture_output=True, timeout=60, check=False)


# ---- environments


def _python(python: Path, pinned: Path) -> Callable[[Callable[[str], None]], None]:
    """A virtual environment with exactly what the file pins."""

    def install(say: Callable[[str], None]) -> None:
        folder = python.parents[1]
        stamp = folder / "installed.txt"
        if _same(stamp, pinned):
            return
        say(f"installing Python packages into {folder.relative_to(ROOT)}")
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary", "-r", str(pinned)])
        shutil.copy(pinned, stamp)

    return install


def _node(say: Callable[[str], None]) -> None:
    pinned = HERE / "node" / "package-lock.json"
    stamp = NODE / "installed.json"
    if _same(stamp, pinned):
        return
    say("installing npm packages into .peers/node")
    NODE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "node" / name, NODE / name)
    _run([program("npm"), "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=NODE)
    shutil.copy(pinned, stamp)


ENVIRONMENTS: dict[str, Callable[[Callable[[str], None]], None]] = {
    "Python packages": _python(PYTHON, HERE / "requirements.txt"),
    "arq": _python(ARQ_PYTHON, HERE / "requirements-arq.txt"),
    "npm packages": _node,
}


def _same(stamp: Path, pinned: Path) -> bool:
    return stamp.exists() and stamp.read_bytes() == pinned.read_bytes()


def _run(command: list[str], environ: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
    ended = subprocess.run(
        command,
        env={**os.environ, **(environ or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-3:]
        raise PeerTrouble(f"{Path(command[0]).name} ended with exit code {ended.returncode}: {' / '.join(said)}")


# ---- versions


def version(what: str) -> str:
    """`celery 5.7.0`: of a Python package in .peers (`pip:NAME`) or .peers/arq, of an npm package (`npm:NAME`), or of a program."""
    kind, _, name = what.rpartition(":")
    found = {"": _of_program, "pip": _of_package(PYTHON), "arq": _of_package(ARQ_PYTHON), "npm": _of_npm}[kind](name)
    return f"{name} {found or 'of unknown version'}"


def _of_package(python: Path) -> Callable[[str], str]:
    folders = glob(str(python.parents[1] / "lib" / "python*" / "site-packages"))
    return lambda name: next((each.version for each in distributions(name=name, path=folders)), "")


def _of_npm(name: str) -> str:
    file = NODE / "node_modules" / name / "package.json"
    return str(json.loads(file.read_text())["version"]) if file.exists() else ""


def _of_program(name: str) -> str:
    command = PROGRAMS[name].version
    if not command or (path := find(command[0])) is None:
        return ""
    said = subprocess.run([path, *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    return found[0] if (found := re.findall(r"\d+(?:\.\d+)+", said.stdout + said.stderr)) else ""
