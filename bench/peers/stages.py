"""One peer at one depth, measured stage by stage from outside, the same for all: what a round of the table is made of.

    one server
      no worker      one_by_one → bulk → bytes per pending task
      a worker       drain → end_to_end (it is warm, and nothing is pending)
      another one    worker_start (one task waits for it) → latency at low load → round trips

Finished tasks are counted by the size of a file in shared memory (contract.py).  More marks than tasks are no figure but a failure: something ran
twice.  Figures of stages that were finished stay when a later one fails.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import attrs
import psutil
from figures import tasks_per_s
from machine import OtherLoad

from .contract import CLIENTS, Child, Context, Peer, PeerTrouble, Server, size, until

SHARED_MEMORY = "/dev/shm"
STAMP = struct.Struct("=qq")
ONE_BY_ONE_MAX = 2_000
SLOW_MAX = 500
SLOW_MIN = 20
ACK_S = 1.0  # after the last task has run, its worker may still have to say so
QUIET_S = 0.5
QUIET_MAX_S = 5.0
QUIET_PART = 0.01

Values = dict[str, float]


@attrs.frozen
class Measured:
    """What was found, and why the rest was not."""

    values: Values
    trouble: str = ""


def slow(tasks: int) -> int:
    """How many tasks the slow stages take."""
    return min(SLOW_MAX, max(SLOW_MIN, tasks // 200))


def singles(tasks: int) -> int:
    """How many are enqueued one by one: a part of the backlog."""
    return min(ONE_BY_ONE_MAX, max(SLOW_MIN, tasks // 50))


def measure(peer: Peer, tasks: int, whole: bool, folder: str, limit_s: float) -> Measured:
    """`whole`: all stages; otherwise only those that depend on the depth (bulk, drain, end to end, bytes)."""
    values: Values = {}
    others = OtherLoad()
    try:
        with _folders(folder) as (data, marks):
            context = Context(data, tasks, limit_s, peer.settings)
            with peer.serve(context) as server:
                _stages(Bench(peer, server, marks, limit_s), tasks, whole, values)
    except PeerTrouble as trouble:
        return Measured(values, str(trouble))
    except Exception as error:  # whatever one peer does, the others have their turn
        return Measured(values, f"{type(error).__name__}: {error}")
    values["other CPU share"] = others.share()
    return Measured(values)


@contextmanager
def _folders(folder: str) -> Iterator[tuple[Path, Path]]:
    """An empty folder on the disk to measure, and the name of a file in shared memory."""
    shared = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else None
    with tempfile.TemporaryDirectory(dir=shared, prefix="taskq-peers-") as memory:
        outer = tempfile.mkdtemp(dir=os.path.abspath(folder), prefix="taskq-bench-")
        try:
            data = Path(outer) / "data"
            data.mkdir()
            yield data, Path(memory) / "marks"
        finally:
            shutil.rmtree(outer, ignore_errors=True)


def _stages(bench: Bench, tasks: int, whole: bool, values: Values) -> None:
    first = 0
    if whole:
        first = singles(tasks)
        values |= {"one_by_one": _rate(first, bench.produce("one_by_one", 0, first))}
    before = bench.footprint()
    values |= {"bulk": _rate(tasks, bench.produce("bulk", first, tasks))}
    values |= {name: (after - old) / tasks for (name, after), old in zip(bench.footprint().items(), before.values(), strict=True)}
    with bench.worker() as worker:
        done = first + tasks
        values |= {"drain": bench.drain(worker, done)}
        with bench.producer("bulk", done, tasks) as producer:
            producer.say("go")
            found = bench.words(producer)
            ended_ns = bench.wait(done + tasks, worker)
        values |= {"end_to_end": tasks_per_s(tasks, found["started_ns"], ended_ns)["tasks/s"]}
        time.sleep(ACK_S)
    bench.check_marks(done + tasks)
    if whole:
        bench.marks.unlink()
        _slow_stages(bench, done + tasks, slow(tasks), values)


def _slow_stages(bench: Bench, first: int, tasks: int, values: Values) -> None:
    bench.produce("one_by_one", first, 1)
    with bench.worker(stamps=True) as worker:
        bench.wait(STAMP.size, worker)
        values |= {"worker_start": (bench.stamps()[first] - worker.started_ns) / 1e6}
        sent_ns = bench.produce("low_load", first + 1, tasks)["sent_ns"]
        bench.wait((1 + tasks) * STAMP.size, worker)
        started_ns = bench.stamps()
        values |= _percentiles("latency", [(started_ns[first + 1 + i] - sent) / 1000 for i, sent in enumerate(sent_ns)])
        if "result" not in bench.peer.without:
            values |= _percentiles("result", bench.produce("round_trips", first + 1 + tasks, tasks)["us"])


def _rate(tasks: int, found: dict[str, Any]) -> float:
    return tasks_per_s(tasks, found["started_ns"], found["ended_ns"])["tasks/s"]


def _percentiles(name: str, us: list[float]) -> Values:
    cuts = statistics.quantiles(us, n=100, method="inclusive")
    return {f"{name}_p50": cuts[49] / 1000, f"{name}_p99": cuts[98] / 1000}


@attrs.frozen
class Bench:
    """A peer with a running server, and the file that its tasks mark."""

    peer: Peer
    server: Server
    marks: Path
    limit_s: float

    # ---- programs

    @contextmanager
    def worker(self, stamps: bool = False) -> Iterator[Child]:
        with self._client("work", stamps=stamps, results=stamps) as child:
            yield child

    @contextmanager
    def producer(self, mode: str, first: int, tasks: int) -> Iterator[Child]:
        with self._client("produce", mode, str(first), str(tasks), results=mode == "round_trips") as child:
            self._hear(child, "^ready$")
            yield child

    def produce(self, mode: str, first: int, tasks: int) -> dict[str, Any]:
        with self.producer(mode, first, tasks) as producer:
            producer.say("go")
            return self.words(producer)

    def words(self, producer: Child) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._hear(producer, r"^\{.*\}$"))
        return found

    def _hear(self, child: Child, pattern: str) -> str:
        try:
            return child.wait_for(pattern, self.limit_s)[0]
        except Empty:
            raise PeerTrouble(f"cut after {self.limit_s:,.0f} s: {child.name} is stuck{child.said()}") from None
        except RuntimeError:
            raise PeerTrouble(f"{child.name} ended before it was done{child.said()}") from None

    def _client(self, *arguments: str, stamps: bool = False, results: bool = False) -> Child:
        told = {
            "BENCH_PORT": str(self.server.port),
            "BENCH_SETTINGS": json.dumps(dict(self.peer.settings)),
            "BENCH_MARKS": str(self.marks),
            "BENCH_STAMPS": str(int(stamps)),
            "BENCH_RESULTS": str(int(results)),
        }
        return Child([*self.peer.client, *arguments], {**os.environ, **self.peer.environ(), **told}, CLIENTS)

    # ---- marks

    def wait(self, marks: int, worker: Child) -> int:
        """The time when there are so many bytes."""
        return until(lambda: size(self.marks) >= marks, lambda: f"{size(self.marks):,} of {marks:,} tasks had run", (worker,), self.limit_s)

    def drain(self, worker: Child, marks: int) -> float:
        """Tasks a second, from the first look at which a task had run to the last task."""
        begun_ns = self.wait(1, worker)
        already = size(self.marks)
        ended_ns = self.wait(marks, worker)
        if already >= marks:  # over at the first look: all that is known is the time since the worker's command
            return tasks_per_s(marks, worker.started_ns, ended_ns)["tasks/s"]
        return tasks_per_s(marks - already, begun_ns, ended_ns)["tasks/s"]

    def check_marks(self, marks: int) -> None:
        if size(self.marks) != marks:
            raise PeerTrouble(f"{marks:,} tasks ran {size(self.marks):,} times")

    def stamps(self) -> dict[int, int]:
        """n → when its function began."""
        return dict(STAMP.iter_unpack(self.marks.read_bytes()))

    # ---- bytes

    def footprint(self) -> Values:
        """Bytes of the server's memory and files, once neither moves by more than a hundredth."""
        deadline_s = time.monotonic() + QUIET_MAX_S
        now = self._bytes()
        while time.monotonic() < deadline_s:
            time.sleep(QUIET_S)
            before, now = now, self._bytes()
            if all(abs(now[name] - before[name]) <= before[name] * QUIET_PART for name in now):
                break
        return now

    def _bytes(self) -> Values:
        processes = [each for program in self.server.programs for each in _tree(program.pid)]
        found: Values = {"memory": sum(map(_own_bytes, processes))}
        if self.server.data is not None:
            found["disk"] = sum(size(Path(folder) / name) for folder, _, names in os.walk(self.server.data) for name in names)
        return found


def _tree(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _own_bytes(process: psutil.Process) -> int:
    """Memory that is shared by several processes counts once."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
