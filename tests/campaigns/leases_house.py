"""One broker with its workers, as real processes in a folder of their own, and the file in which the tasks wrote what they did."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from programs import IN_CODE, READY, SOURCE, Program, environment

from taskq import Client

POLL_S = 0.02
# for what a busy machine needs beyond the lease, like the start of a process
SLACK_S = 20.0


@attrs.frozen
class Size:
    """Seconds: the lease, how long a task holds the GIL, the broker is stopped, is away; and how many leases a restart has to keep."""

    lease_s: float
    hold_s: int
    stop_s: float
    away_s: float
    leases: int


FULL = Size(15.0, 120, 40.0, 60.0, 1_000)
SMALL = Size(3.0, 8, 8.0, 6.0, 200)


@attrs.frozen
class Run:
    """One run of a task, by its own account."""

    task: str
    attempt: int
    fence: int
    pid: int
    at_s: float
    ended: bool


class House:
    def __init__(self, folder: Path, size: Size) -> None:
        self.folder, self.size = folder, size
        self.programs: list[Program] = []
        self.address = "127.0.0.1:0"
        self.runs_file = folder / "runs"
        self.runs_file.touch()

    # ---- programs

    def _start(self, name: str, *arguments: str) -> Program:
        environ = environment(LEASES_RUNS=str(self.runs_file), PYTHONPATH=os.pathsep.join([str(SOURCE), str(Path(__file__).parent)]))
        command = [sys.executable, "-c", IN_CODE.format(name), *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, cwd=self.folder, env=environ, text=True, start_new_session=True, **streams)  # type: ignore[call-overload]
        self.programs.append(Program(process))
        return self.programs[-1]

    def broker(self) -> Program:
        """Start it, or start it again at the same address with the same data."""
        lease_s = self.size.lease_s
        times = ("--lease", f"{lease_s:g}s", "--heartbeat", f"{lease_s / 3:g}s", "--drain", "0.5s")
        broker = self._start("broker", "--listen", self.address, "--http", "127.0.0.1:0", "--data", str(self.folder / "data"), *times)
        self.address = broker.wait_for(READY)["tcp"]
        return broker

    def worker(self, name: str, *queues: str, concurrency: int = 50) -> Program:
        """Start a worker for these queues; it is connected on return."""
        options = ("--name", name, "--concurrency", str(concurrency), "--drain", "1s", "--queues", ",".join(queues))
        worker = self._start("worker", "--connect", self.address, "--app", "leases_app", *options)
        worker.wait_for("new session", "stderr")
        return worker

    def command(self, *words: str) -> str:
        """What `taskq …` says."""
        command = [sys.executable, "-c", IN_CODE.format("main"), *words, "--broker", self.address]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True).stdout

    def close(self) -> None:
        for program in self.programs:
            program.discard()

    @contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.address, deadline=60) as client:
            yield client

    # ---- what the tasks wrote

    def runs(self) -> list[Run]:
        found = []
        lines = [line.split() for line in self.runs_file.read_text().splitlines()]
        ended = {(task, fence) for what, task, _, fence, _, _ in lines if what == "end"}
        for what, task, attempt, fence, pid, at_s in lines:
            if what == "start":
                found.append(Run(task, int(attempt), int(fence), int(pid), float(at_s), (task, fence) in ended))
        return found

    def runs_of(self, task_id: str) -> list[Run]:
        """In the order in which they were started; each under a higher fence than the one before."""
        runs = [run for run in self.runs() if run.task == task_id]
        fences = [run.fence for run in runs]
        assert fences == sorted(set(fences)), f"the fences of {task_id} do not rise: {fences}"
        return runs

    def started(self, task_id: str, times: int = 1) -> Run:
        """Wait for the n-th run of a task."""
        return self.wait(lambda: self.runs_of(task_id)[times - 1 :], f"run {times} of {task_id}")[0]

    def wait(self, look: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
        """The first answer that is something."""
        end_s = time.monotonic() + (self.size.lease_s * 3 + SLACK_S if seconds is None else seconds)
        while time.monotonic() < end_s:
            if found := look():
                return found
            time.sleep(POLL_S)
        raise AssertionError(f"waited in vain for {what}; stderr of the programs: {[program.errors[-2_000:] for program in self.programs]}")

    def confirmed(self, client: Client, name: str) -> None:
        """Wait for the next sign of life of this worker, which confirms what it was delivered."""
        agos_ms = [-1]

        def heard() -> bool:
            agos_ms.append(next((row["heard_ms_ago"] for row in client.workers() if row["name"] == name), -1))
            return 0 <= agos_ms[-1] < agos_ms[-2]

        self.wait(heard, f"a sign of life of {name}")


def outcomes(client: Client, task_id: str) -> list[str]:
    return [attempt["outcome"] for attempt in client.get(task_id).fields["attempts"]]
