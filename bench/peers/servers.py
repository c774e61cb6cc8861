"""The servers of the peers, each an instance of our own in a temporary folder, on a free port of 127.0.0.1, ended with the block that uses it.

Instances of the system are never used.  Where a program refuses to run as root it runs as an ordinary user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from queue import Empty

import figures

from .contract import Child, Context, PeerTrouble, Server, until
from .install import program

START_S = 60.0
Serve = Callable[[Context], AbstractContextManager[Server]]
ORDINARY_USERS = ("postgres", "nobody")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def serving(command: list[str], port: int, data: Path | None) -> Iterator[Server]:
    """A server that takes connections on the port."""
    with Child(command) as child:
        until(lambda: answers(port), lambda: f"{child.name} does not listen", (child,), START_S)
        yield Server(port, (child,), data)


@contextmanager
def taskq(context: Context) -> Iterator[Server]:
    """The broker of the load bench: default settings, durability fsync, but for the finished tasks that it keeps: a third of those that it finishes,
    so that it has to delete as a broker has that runs for long."""
    kept = max(1, context.tasks // 3)
    settings = figures.Settings(context.tasks, 0, context.settings["durability"], context.settings["shards"], 0, str(context.folder), kept)
    with figures.broker(settings) as running:
        yield Server(int(running.url.rsplit(":", 1)[1]), (running.program,), running.data)


def redis(*extra: str) -> Serve:
    """In memory only, unless `extra` says otherwise."""

    @contextmanager
    def serve(context: Context) -> Iterator[Server]:
        port = free_port()
        command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(context.folder), "--save", "", *extra]
        with serving(command, port, None) as server:
            yield server

    return serve


@contextmanager
def postgres(context: Context) -> Iterator[Server]:
    """A cluster that syncs each commit; its buffers and its log are large enough for the backlog."""
    port, data = free_port(), context.folder / "pg"
    prefix = _as_ordinary_user(context.folder)
    made = subprocess.run(
        [*prefix, program("initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
        capture_output=True, text=True, cwd="/", check=False,
    )  # fmt: skip
    if made.returncode:
        raise PeerTrouble(f"initdb: {made.stderr.strip() or made.stdout.strip()}")
    flags = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", **POSTGRES}
    command = [*prefix, program("postgres"), "-D", str(data), *(word for name, value in flags.items() for word in ("-c", f"{name}={value}"))]
    with Child(command, cwd=Path("/")) as child:
        with suppress(Empty, RuntimeError):
            child.wait_for("database system is ready to accept connections", START_S)
        child.check()
        until(lambda: answers(port), lambda: f"{child.name} does not listen", (child,), START_S)
        yield Server(port, (child,), data)


POSTGRES = {
    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "512MB", "max_wal_size": "8GB",
    "checkpoint_timeout": "30min", "wal_buffers": "64MB", "jit": "off", "max_connections": 50,
}  # fmt: skip


def _as_ordinary_user(folder: Path) -> list[str]:
    """Postgres refuses root: the words before the command, and a folder that this user may write to.  The kernel ends it with us all the same."""
    if os.geteuid() != 0:
        return []
    for name in ORDINARY_USERS:
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            folder.parent.chmod(0o711)
            setpriv = shutil.which("setpriv")
            if setpriv is None:
                raise PeerTrouble("setpriv (util-linux) is not installed, and Postgres refuses to run as root")
            return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig=KILL", "--"]
    raise PeerTrouble(f"Postgres refuses to run as root, and there is none of the users {', '.join(ORDINARY_USERS)}")


@contextmanager
def nats(context: Context) -> Iterator[Server]:
    port, data = free_port(), context.folder / "nats"
    with serving([program("nats-server"), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(data)], port, data) as server:
        yield server


@contextmanager
def gearman(context: Context) -> Iterator[Server]:
    port = free_port()
    command = [program("gearmand"), "--listen", "127.0.0.1", "--port", str(port), "--log-file", "none", "--threads", str(context.settings["threads"])]
    with serving(command, port, None) as server:
        yield server


def beanstalkd(synced: bool) -> Serve:
    """The binlog off, or on with a sync for each write."""

    @contextmanager
    def serve(context: Context) -> Iterator[Server]:
        port = free_port()
        log = ["-b", str(context.folder), "-f0"] if synced else []
        command = [program("beanstalkd"), "-l", "127.0.0.1", "-p", str(port), *log]
        with serving(command, port, context.folder if synced else None) as server:
            yield server

    return serve
