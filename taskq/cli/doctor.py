"""`taskq doctor`: looks at the machine, the data folder and the broker, and says what is wrong and what to do.  It changes nothing.

Each row of CHECKS is a name and a function from the patient to a finding.  Exit code 0: all is well or merely worth a look; 1: something is wrong.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import click

from taskq.cli.backup import data_folder
from taskq.cli.flags import start_errors
from taskq.config import show_bytes

OK, LOOK, WRONG = "ok", "look", "wrong"
EXIT_WRONG = 1
SYNCS, SYNC_BYTES = 20, 4_096
SYNC_LOOK_S = 0.02
FREE_LOOK_BYTES, FREE_WRONG_BYTES = 2 << 30, 256 << 20
CLOCK_LOOK_S = 1.0
# a clock of before this release was never set
NOT_BEFORE_S = 1_767_225_600
# what remote file systems promise about locks and syncs is not what a journal needs
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs"})
VOLATILE = frozenset({"tmpfs", "ramfs", "overlay"})
# two connections that write or checkpoint at once can corrupt the WAL in these; a broker has exactly one
SQLITE_RACE = ((3, 7, 0), (3, 51, 2))
FILES_LOOK = 4_096
ASK_S = 2.0


@attrs.frozen
class Finding:
    """What a check found, in words for a person, and what to do about it."""

    status: str
    found: str
    advice: str = ""


@attrs.frozen
class Patient:
    """What is looked at: the data folder (which may not be there yet) and the broker's answer about itself, or why there is none."""

    data: Path
    broker: dict[str, Any] | None
    silence: str

    @property
    def place(self) -> Path:
        """The folder itself, or the nearest one above it that exists."""
        return next(path for path in (self.data.absolute(), *self.data.absolute().parents) if path.is_dir())


# ---- the checks --------------------------------------------------------------------------------------------------------------------


def check_broker(patient: Patient) -> Finding:
    about = patient.broker
    if about is None:
        return Finding(LOOK, f"no broker answers: {patient.silence}", "start it, or name it with --broker")
    said = f"taskq {about['version']}, pid {about['pid']}, {about['workers']} workers, durability {about['durability']}"
    if patient.data.is_dir() and Path(about["data"]) != patient.data.resolve():
        return Finding(LOOK, said, f"its data folder is {about['data']}: name that with --data")
    behind = about["journal_lsn"] - about["applied_lsn"]
    return Finding(OK, f"{said}; the store is {behind:,} records behind the journal")


def check_versions(patient: Patient) -> Finding:
    import sqlite3
    from importlib import metadata

    from taskq.version import VERSION

    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("msgpack", "uvloop", "aiosqlite") if _installed(name))
    found = f"taskq {VERSION}, Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {packages}"
    if patient.broker is not None and patient.broker["version"] != VERSION:
        return Finding(LOOK, found, f"the broker is taskq {patient.broker['version']}: restart it after an upgrade")
    low, high = SQLITE_RACE
    note = (
        ""
        if not low <= sqlite3.sqlite_version_info <= high
        else "; this SQLite needs the one connection that a broker has: open store.sqlite read-only"
    )
    return Finding(OK, found + note)


def _installed(name: str) -> bool:
    from importlib import metadata

    return any(True for _ in metadata.distributions(name=name))


def check_folder(patient: Patient) -> Finding:
    folder = patient.data
    if not folder.is_dir():
        return Finding(LOOK, f"{folder} is not there", "a broker makes it; if yours is elsewhere, name it with --data")
    mine, wrong = os.geteuid(), []
    for path in (folder, *sorted(folder.rglob("*"))):
        about = path.lstat()
        mode = stat.S_IMODE(about.st_mode)
        if stat.S_ISLNK(about.st_mode):
            wrong.append(f"{path.name} is a symbolic link")
        elif mode & 0o077:
            wrong.append(f"{path.name} has mode {mode:04o}")
        elif about.st_uid != mine and mine != 0:
            wrong.append(f"{path.name} belongs to user {about.st_uid}")
    if wrong:
        return Finding(WRONG, f"{folder}: {', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}",
                       f"chmod -R go= {folder}; it must belong to the broker's user alone")  # fmt: skip
    return Finding(OK, f"{folder} is private")


def check_disk(patient: Patient) -> Finding:
    about = os.statvfs(patient.place)
    free, size = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
    kind = file_system(patient.place)
    found = f"{show_gib(free)} of {show_gib(size)} free, {kind}"
    if kind in REMOTE:
        return Finding(WRONG, found, "put the data folder on a local disk: locks and syncs of a remote one do not hold")
    if free < min(FREE_WRONG_BYTES, size // 10):
        return Finding(WRONG, found, "free some space: the broker refuses new tasks, then stops")
    if kind in VOLATILE:
        return Finding(LOOK, found, f"{kind} does not survive a restart of the machine or container: put the data folder on a disk or volume")
    if free < FREE_LOOK_BYTES:
        return Finding(LOOK, found, "there should be room for a few hours of your tasks")
    return Finding(OK, found)


def file_system(path: Path) -> str:
    """The type of the file system that holds the path: that of the longest mount point above it."""
    mounts = Path("/proc/self/mounts")
    if not mounts.is_file():
        return "unknown file system"
    found, longest = "unknown file system", -1
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split()
        point = point.encode().decode("unicode_escape")
        if path.resolve().is_relative_to(point) and len(point) > longest:
            found, longest = kind, len(point)
    return found


def show_gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"


def check_sync(patient: Patient) -> Finding:
    """The time that one acknowledgement costs at least."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=patient.place) as file:
            times_s = sorted(_sync_times(file.fileno()))
    except OSError as error:
        return Finding(WRONG, f"{patient.place} cannot be written: {error.strerror}", "the broker's user needs rights in its data folder")
    median_s, worst_s = times_s[len(times_s) // 2], times_s[-1]
    found = f"fdatasync of {show_bytes(SYNC_BYTES)} takes {median_s * 1000:.2f} ms, at worst {worst_s * 1000:.1f} ms"
    if median_s > SYNC_LOOK_S:
        return Finding(LOOK, found, "each acknowledgement waits for one: use a faster disk, or durability os where a power loss may cost a second")
    return Finding(OK, found)


def _sync_times(fd: int) -> Iterator[float]:
    for _ in range(SYNCS):
        os.write(fd, bytes(SYNC_BYTES))
        began_s = time.perf_counter()
        os.fdatasync(fd)
        yield time.perf_counter() - began_s


def check_clock(patient: Patient) -> Finding:
    now_s = time.time()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < NOT_BEFORE_S:
        return Finding(WRONG, found, "set the clock: ids, delays and retention are made from it")
    newest_s = max((path.stat().st_mtime for path in patient.data.rglob("*")), default=0.0) if patient.data.is_dir() else 0.0
    if newest_s > now_s + CLOCK_LOOK_S:
        return Finding(LOOK, f"{found}; the data folder was written {newest_s - now_s:.0f} s later than that",
                       "the clock was set back: delayed tasks wait until it has caught up")  # fmt: skip
    return Finding(OK, found)


def check_files(patient: Patient) -> Finding:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{'unlimited' if hard == resource.RLIM_INFINITY else f'{hard:,}'} open files allowed"
    if hard != resource.RLIM_INFINITY and hard < FILES_LOOK:
        return Finding(LOOK, found, "each connection is an open file: raise it with ulimit -n or LimitNOFILE")
    return Finding(OK, found)


def check_store(patient: Patient) -> Finding:
    """Every page of the store, through a read-only connection."""
    import sqlite3

    from taskq.storage.integrity import integrity_check

    path = patient.data / "store.sqlite"
    if not path.is_file():
        return Finding(LOOK, f"{path} is not there", "a broker makes it; if yours is elsewhere, name it with --data")
    try:
        wrong = integrity_check(path)
    except sqlite3.OperationalError as error:
        return Finding(LOOK, f"{path} was not looked at: {error}", "it can be looked at while a broker runs")
    if wrong:
        return Finding(WRONG, f"{path}: {wrong[0]}", "keep a copy of the folder, then restore a backup")
    return Finding(OK, f"{path} is sound, {show_gib(path.stat().st_size)}")


CHECKS: dict[str, Callable[[Patient], Finding]] = {
    "broker": check_broker,
    "versions": check_versions,
    "data folder": check_folder,
    "disk": check_disk,
    "sync": check_sync,
    "clock": check_clock,
    "open files": check_files,
    "store": check_store,
}


# ---- the command -------------------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--data", metavar="PATH", default=None, help="The broker's data folder. [default: as the broker's; TASKQ_DATA]")
@click.option("--broker", "url", metavar="HOST:PORT", default=None, help="The broker. [default: localhost:7000; TASKQ_URL]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(context: click.Context, data: str | None, url: str | None, as_json: bool) -> None:
    """Look at disk, clock, versions, rights and the broker, and say what to do.

    Run it on the broker's machine as the broker's user.
    """
    from taskq.cli.tables import print_json

    with start_errors("taskq", EXIT_WRONG):
        broker, silence = ask(url or context.obj)
        patient = Patient(data_folder(data), broker, silence)
        findings = {name: check(patient) for name, check in CHECKS.items()}
    if as_json:
        print_json({name: attrs.asdict(finding) for name, finding in findings.items()})
    else:
        _show(findings)
    if any(finding.status == WRONG for finding in findings.values()):
        sys.exit(EXIT_WRONG)


def ask(url: str | None) -> tuple[dict[str, Any] | None, str]:
    """What the broker says of itself, or None and why."""
    from taskq.blocking import Client
    from taskq.errors import TaskqError

    try:
        with Client(url, deadline=ASK_S) as client:
            return client.broker(), ""
    except TaskqError as error:
        return None, error.message


def _show(findings: dict[str, Finding]) -> None:
    width = max(map(len, findings))
    for name, finding in findings.items():
        print(f"{finding.status:5}  {name.ljust(width)}  {finding.found}")
        if finding.advice:
            print(f"{'':5}  {'':{width}}  → {finding.advice}")
