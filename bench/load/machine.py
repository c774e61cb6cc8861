"""What the machine itself can do, and what else it was doing: the limits that no queue on it can beat, and the CPU that others took."""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from children import Program

import taskq
from taskq.version import VERSION

BLOCK_BYTES = 4_096
ECHO_BYTES = 150
SAMPLES = 300
BUSY = 0.1


def fdatasync_us(folder: str) -> float:
    """Median of: append 4 KiB, fdatasync."""
    block, samples = os.urandom(BLOCK_BYTES), []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SAMPLES):
            begin_ns = time.perf_counter_ns()
            file.write(block)
            os.fdatasync(file.fileno())
            samples.append(time.perf_counter_ns() - begin_ns)
    return statistics.median(samples) / 1000


def echo_us() -> float:
    """Median of: a small message over loopback TCP to another process and back, with blocking sockets."""
    with socket.create_server(("127.0.0.1", 0)) as server, Program.python(__file__, server.getsockname()[1]):
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            samples = []
            for _ in range(SAMPLES * 10):
                begin_ns = time.perf_counter_ns()
                connection.sendall(bytes(ECHO_BYTES))
                connection.recv(ECHO_BYTES, socket.MSG_WAITALL)
                samples.append(time.perf_counter_ns() - begin_ns)
    return statistics.median(samples) / 1000


def _echo(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(ECHO_BYTES, socket.MSG_WAITALL):
            connection.sendall(data)
        threading.Event().wait()


def filesystem(folder: str) -> str:
    """The kind of file system that the folder is on: a tmpfs has no disk to wait for."""
    path = os.path.realpath(folder)
    mounts = [part for part in psutil.disk_partitions(all=True) if os.path.commonpath([path, part.mountpoint]) == part.mountpoint]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def commit() -> str:
    """What of taskq is measured."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(taskq.__file__).parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe(folder: str) -> dict[str, Any]:
    """What a reader has to know to compare, of any bench."""
    return {
        "taskq": VERSION,
        "commit": commit(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "filesystem": filesystem(folder),
        "load_average": round(os.getloadavg()[0], 2),
    }


def limits_us(folder: str) -> dict[str, float]:
    return {"fdatasync of 4 KiB": fdatasync_us(folder), "loopback echo": echo_us()}


class OtherLoad:
    """The CPU time that others used since this was made, as a share of all."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._began = self._used_s()

    def share(self) -> float:
        busy_s, own_s = (now - before for now, before in zip(self._used_s(), self._began, strict=True))
        return max(0.0, busy_s - own_s) / ((time.monotonic() - self._began_s) * (os.cpu_count() or 1))

    @staticmethod
    def _used_s() -> tuple[float, float]:
        """(whole machine, this process and its ended children)"""
        times = psutil.cpu_times()
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        idle_s = times.idle + getattr(times, "iowait", 0.0)
        guests_s = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user and nice
        return sum(times) - idle_s - guests_s, sum(usage.ru_utime + usage.ru_stime for usage in own)


if __name__ == "__main__":
    _echo(int(sys.argv[1]))
