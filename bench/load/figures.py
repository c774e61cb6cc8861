"""The figures of the load bench.  Each is measured on programs of its own, with a data folder of its own, and with default settings.

Where tasks run, a figure counts only if each task ran once, is kept as completed once, and no program complained.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import ceiling
from children import HERE, WAIT_S, Program, Rate

import taskq
from taskq import Client
from taskq.config import BrokerConfig
from taskq.core.task import COMPLETED
from taskq.storage.base import COLUMNS
from taskq.storage.sqlite import finished_row

QUEUE = "bench"
LOOK_S = 0.002
WARM_UP_TASKS = 2_000
POOL_WARM_UP_TASKS = 200
SINGLES_PART = 200
LOAD_S = 3.0
# of `sustained`: how many finished tasks a broker keeps, by the tasks of the fast figures (the default setting, by the default of the bench), and
# how often that many it finishes, so that it deletes two for each that it keeps
KEPT_PARTS, KEPT_TIMES = 10, 3
SLOW_PER_S = 5_000

Values = dict[str, float]


@attrs.frozen
class Settings:
    """What a bench was asked for.  `tasks` is the number of the fast figures, slow ones take a part of it; `folder` holds the data folders.
    `rate`: tasks/s of the newest end to end run, 0: there was none."""

    tasks: int
    payload_bytes: int
    durability: str
    shards: int
    pending: int
    folder: str
    finished_rows_max: int = BrokerConfig().finished_rows_max
    rate: float = 0.0

    def part(self, divisor: int) -> int:
        return max(20, self.tasks // divisor)


@attrs.frozen
class Broker:
    """A running broker.  `made`: how many tasks each producer was to enqueue.  `ran` is filled when a worker ends: how many it ran."""

    program: Program
    url: str
    data: Path
    payload_bytes: int
    made: list[int] = attrs.field(factory=list)
    ran: list[int] = attrs.field(factory=list)

    @contextmanager
    def worker(self, **more: str) -> Iterator[tuple[Program, int]]:
        """A worker that has a session, and the time when it got it; `more` goes into its environment."""
        tally = self.data.parent / "tally"
        tally.touch()
        environ = {**environment(), "BENCH_TALLY": str(tally), **more}
        with Program.installed("worker", "--connect", self.url, "--app", "tasks", environ=environ) as program:
            _, session_ns = program.wait_for_line("new session")
            yield program, session_ns
        self.ran.append(int(program.said(r"^runs=(\d+)$")[1]) + tally.stat().st_size)

    @contextmanager
    def producer(self, mode: str, tasks: int, *more: object) -> Iterator[Program]:
        """A producer that waits for its start."""
        self.made.append(tasks)
        with Program.python(HERE / "producer.py", mode, self.url, tasks, self.payload_bytes, *more) as program:
            program.wait_for("ready")
            yield program

    def produce(self, mode: str, tasks: int, *more: object) -> dict[str, Any]:
        with self.producer(mode, tasks, *more) as program:
            program.say("go")
            return program.last_words()


ID, STATE = COLUMNS.index("id"), COLUMNS.index("state")


@contextmanager
def broker(settings: Settings) -> Iterator[Broker]:
    """A broker with an empty data folder.  When it has ended, what its workers ran is compared with what it has kept."""
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="taskq-bench-") as folder:
        data = Path(folder) / "data"
        flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(data)]
        flags += ["--shards", str(settings.shards), "--durability", settings.durability]
        flags += ["--finished-rows-max", str(settings.finished_rows_max)]
        with Program.installed("broker", *flags, environ=environment()) as program:
            url = program.wait_for(r"^taskq-broker listening tcp=(\S+)")[1]
            running = Broker(program, url, data, settings.payload_bytes)
            yield running
        if running.ran:
            check_each_once(data / "store.sqlite", sum(running.made), sum(running.ran), settings.finished_rows_max)


def environment() -> dict[str, str]:
    """Ours without settings of other brokers, and with taskq importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_") or name == "TASKQ_LOOP"}
    return {**kept, "PYTHONPATH": str(Path(taskq.__file__).parents[1])}


def check_each_once(store: Path, made: int, ran: int, kept_max: int) -> None:
    """RuntimeError unless as many ran as were enqueued, none is left, and what is kept is completed, once: all of them, or the newest `kept_max`."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        rows = [finished_row(*row) for row in connection.execute("SELECT id, finished_ms, body, payload, result FROM finished")]
        left = connection.execute("SELECT count(*) FROM tasks").fetchone()[0]
    completed = [row[ID] for row in rows if row[STATE] == COMPLETED]
    if not made == ran >= len(rows) == len(completed) == len(set(completed)) >= min(ran, kept_max) or left:
        raise RuntimeError(
            f"of {made} tasks the workers ran {ran}, the broker has {len(completed)} completed ones with {len(set(completed))} ids, "
            f"{len(rows) - len(completed)} that ended otherwise and {left} that did not end"
        )


def finish(url: str, last: str) -> int:
    """The time when all tasks are completed, as durable as the broker promises."""
    with Client(url) as client:
        client.wait(last, timeout=WAIT_S)
        while any(row[state] for row in client.queues() for state in ("scheduled", "pending", "running", "retrying", "failed")):
            time.sleep(LOOK_S)
        return time.monotonic_ns()


def tasks_per_s(tasks: int, started_ns: int, ended_ns: int) -> Values:
    return {"tasks/s": tasks / (ended_ns - started_ns) * 1e9}


def spread_ms(us: list[float]) -> Values:
    cuts = statistics.quantiles(us, n=100, method="inclusive")
    return {"p50 ms": cuts[49] / 1000, "p99 ms": cuts[98] / 1000}


# ---- the figures -------------------------------------------------------------------------------------------------------------------


def enqueue(mode: str, divisor: int) -> Callable[[Settings], Values]:
    """No worker: from the first call to the last durable answer."""

    def measure(settings: Settings) -> Values:
        tasks = settings.part(divisor)
        with broker(settings) as running:
            found = running.produce(mode, tasks)
        return tasks_per_s(tasks, found["started_ns"], found["ended_ns"])

    return measure


def drain(settings: Settings) -> Values:
    """All tasks are pending when the worker comes: from its session to the last durable completion."""
    with broker(settings) as running:
        last = running.produce("batches", settings.tasks)["last"]
        with running.worker() as (_, session_ns):
            ended_ns = finish(running.url, last)
    return tasks_per_s(settings.tasks, session_ns, ended_ns)


def end_to_end(settings: Settings) -> Values:
    """Producer and worker at once: from the first enqueue to the last durable completion."""
    tasks = settings.tasks
    with broker(settings) as running, running.worker() as (worker, _), running.producer("batches", tasks) as producer:
        programs = {"broker": running.program, "worker": worker, "producer": producer}
        before = {name: program.cpu_s() for name, program in programs.items()}
        producer.say("go")
        found = producer.last_words(WAIT_S + tasks / SLOW_PER_S)
        ended_ns = finish(running.url, found["last"])
        cpu_us = {name: (program.cpu_s() - before[name]) / tasks * 1e6 for name, program in programs.items()}
    return _end_to_end(Rate(tasks_per_s(tasks, found["started_ns"], ended_ns)["tasks/s"], cpu_us))


def sustained(settings: Settings) -> Values:
    """End to end for so long that everything is paid: flushes, the rows of the store, and their deletion beyond those that are kept."""
    kept = KEPT_PARTS * settings.tasks
    return end_to_end(attrs.evolve(settings, tasks=KEPT_TIMES * kept, finished_rows_max=kept))


def bare(settings: Settings) -> Values:
    """The same without any of the rules: ceiling.py."""
    return _end_to_end(ceiling.measure(settings.folder, settings.tasks, settings.payload_bytes))


def _end_to_end(rate: Rate) -> Values:
    return {"tasks/s": rate.tasks_per_s, **{f"{name} CPU µs/task": us for name, us in rate.cpu_us.items()}}


def latency(mode: str) -> Callable[[Settings], Values]:
    def measure(settings: Settings) -> Values:
        with broker(settings) as running, running.worker():
            return spread_ms(running.produce(mode, settings.part(SINGLES_PART))["us"])

    return measure


def stages(settings: Settings) -> Values:
    """Where the time from the call to the start of the function goes: call → bytes leave, on the way and in the broker, bytes arrive → start."""
    with broker(settings) as running, running.worker(BENCH_STAGES="1"):
        found = running.produce("stages", settings.part(500))["stages_us"]
    return {f"{name} p50 µs": statistics.median(us) for name, us in found.items()}


def latency_at(share: float) -> Callable[[Settings], Values]:
    """At a share of the rate that end to end reached."""

    def measure(settings: Settings) -> Values:
        rate = share * (settings.rate or end_to_end(settings)["tasks/s"])
        tasks = max(100, min(settings.tasks, int(rate * LOAD_S)))
        with broker(settings) as running:
            with running.worker() as (worker, _):
                found = running.produce("at_rate", tasks, "delayed", rate)
                finish(running.url, found["last"])
            delays = worker.said(r"^delays p50_ms=(\S+) p99_ms=(\S+)$")
        reached = tasks_per_s(tasks, found["started_ns"], found["ended_ns"])
        return {"p50 ms": float(delays[1]), "p99 ms": float(delays[2]), **reached}

    return measure


def other_durability(durability: str, measure: Callable[[Settings], Values]) -> Callable[[Settings], Values]:
    return lambda settings: measure(attrs.evolve(settings, durability=durability))


def in_pool(task_type: str, divisor: int) -> Callable[[Settings], Values]:
    """End to end with a task of another pool, whose threads or processes are there already."""

    def measure(settings: Settings) -> Values:
        tasks = settings.part(divisor)
        with broker(settings) as running, running.worker():
            finish(running.url, running.produce("batches", POOL_WARM_UP_TASKS, task_type)["last"])
            found = running.produce("batches", tasks, task_type)
            return tasks_per_s(tasks, found["started_ns"], finish(running.url, found["last"]))

    return measure


def memory(settings: Settings) -> Values:
    """How much the broker grows by pending tasks, once they are in the store as well."""
    with broker(settings) as running, Client(running.url) as client:
        running.produce("batches", WARM_UP_TASKS)
        wait_for_store(client)
        before = running.program.rss_bytes()
        running.produce("batches", settings.pending)
        wait_for_store(client)
        return {"bytes/task": (running.program.rss_bytes() - before) / settings.pending}


def wait_for_store(client: Client) -> None:
    while True:
        row = client.broker()
        if row["applied_lsn"] == row["journal_lsn"]:
            return
        time.sleep(LOOK_S)


def worker_start(settings: Settings) -> Values:
    """From the command to the session."""
    with broker(settings) as running, running.worker() as (worker, session_ns):
        return {"ms": (session_ns - worker.started_ns) / 1e6}


@attrs.frozen
class Figure:
    title: str
    measure: Callable[[Settings], Values]


FIGURES: dict[str, Figure] = {
    "one_by_one": Figure("enqueue, one by one, blocking", enqueue("one_by_one", 50)),
    "coroutines": Figure("enqueue, one by one, 1,000 coroutines", enqueue("coroutines", 2)),
    "batches": Figure("enqueue, batches of 1,000", enqueue("batches", 1)),
    "drain": Figure("drain", drain),
    "ceiling": Figure("end to end, the bare data flow", bare),
    "end_to_end": Figure("end to end", end_to_end),
    "sustained": Figure("end to end, 30 times as many tasks", sustained),
    "threads": Figure("end to end, sync function in a thread", in_pool("thread_noop", 2)),
    "processes": Figure("end to end, sync function in a process", in_pool("process_noop", 10)),
    "latency": Figure("enqueue → start, at 100 tasks/s", latency("low_load")),
    "stages": Figure("the same, where the time goes", stages),
    "latency_os": Figure("the same, durability os", other_durability("os", latency("low_load"))),
    "latency_10": Figure("the same, at 10 % of end to end", latency_at(0.1)),
    "latency_70": Figure("the same, at 70 % of end to end", latency_at(0.7)),
    "round_trip": Figure("enqueue → result, one at a time", latency("round_trips")),
    "memory": Figure("memory of the broker for a pending task", memory),
    "worker_start": Figure("start of a worker", worker_start),
}
