"""A world of the crash campaign: one data folder with a broker, two workers and two producers, all of them real processes.

Each cycle kills one of them with SIGKILL, at a random moment under load or, a broker, at a named step (`failing_broker.POINTS`), and starts it
again.  After its cycles the world comes to rest, the broker is stopped in order, and the checker looks at the producers' histories, the runs
that the workers wrote down and every row of the store.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from programs import READY, WAIT_S, Program, environment

from campaigns.failing_broker import POINTS
from campaigns.kills_checker import Row, Verdict, check
from campaigns.survivors import all_rows
from taskq import AsyncClient, serial
from taskq.core.task import STATES, Task, describe
from taskq.storage.rows import task_of
from taskq.storage.sqlite import SqliteStore

TESTS = Path(__file__).parents[1]
# what a kill may cost in each mode: the acknowledgements of so long before it
WINDOW_MS = {"fsync": 0, "os": 0, "memory": 500}
VICTIMS = (("broker", 80), ("worker", 12), ("producer", 8))
AT_A_STEP = 0.6
RANDOM_S = 0.5
STEP_S = 1.5
REST_S = 60.0
WORKERS = PRODUCERS = 2
LOOPS = ("uvloop", "asyncio")
LOOK_S = 0.002
FLOWS_BYTES = 200
SAMPLE_TASKS = 100
SETTINGS = ("--shards", "3", "--lease", "2s", "--heartbeat", "0.5s", "--journal-segment-bytes", "64KiB", "--log-level", "warning")


@attrs.frozen
class Outcome:
    """One world."""

    mode: str
    seed: int
    kills: int
    seconds: float
    victims: Counter[str]
    steps: Counter[str]
    verdict: Verdict

    @property
    def problems(self) -> list[str]:
        return self.verdict.problems

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        counts = attrs.asdict(self.verdict, filter=lambda field, _: field.name not in ("outcomes", "problems", "lost_ms_max"))
        counted = {"kills": self.kills, **self.victims, "seconds": round(self.seconds), **counts, "problems": len(self.problems)}
        lists = {"lost_ms_max": [self.verdict.lost_ms_max], "steps": sorted(self.steps), "seed": str(self.seed)}
        return {"mode": self.mode, **counted, **lists}

    def __str__(self) -> str:
        verdict, steps = self.verdict, sum(self.steps.values())
        victims = ", ".join(f"{count} {name}" for name, count in sorted(self.victims.items()))
        text = (
            f"{self.mode} seed {self.seed}: {self.kills} kills ({victims}; {steps} at a named step) in {self.seconds:.0f} s, "
            f"{verdict.acknowledged:,} acknowledged: {verdict.line()}; recovered {verdict.recovered}"
        )
        if verdict.lost:
            text += f", lost up to {verdict.lost_ms_max} ms before a kill"
        return "\n".join([text, *(f"    {problem}" for problem in self.problems)])


class World:
    """See the module."""

    def __init__(self, mode: str, seed: int, folder: Path, plant: str = "") -> None:
        self.mode, self.seed, self.plant = mode, seed, plant
        self.rng = random.Random(f"{mode} {seed}")
        self.folder, self.data = folder, folder / "data"
        self.runs, self.histories, self.logs = folder / "runs", folder / "histories", folder / "logs"
        for path in (self.runs, self.histories, self.logs):
            path.mkdir()
        self.deaths = folder / "deaths"
        self.kills: list[int] = []
        self.victims, self.steps = Counter[str](), Counter[str]()
        self.tcp = self.http = "127.0.0.1:0"
        self.programs: list[Program] = []
        self.step = ""
        self.broker: Program
        self._started = 0
        self.began = time.monotonic()

    # ---- its processes

    def launch(self, name: str, *arguments: str, **environ: str) -> Program:
        """A program of the world; what it logs goes to a file."""
        self._started += 1
        with (self.logs / f"{self._started:03}-{name}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=environment(PYTHONPATH=os.pathsep.join((str(TESTS), str(TESTS.parent))), KILLS_RUNS=str(self.runs), **environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        program = Program(process, {"stdout": []})
        self.programs.append(program)
        return program

    def start_broker(self) -> None:
        """Start it, again if a step kills it on its way."""
        while True:
            step, self.step = self.step, ""
            environ = {"TASKQ_DEATHS": str(self.deaths), "TASKQ_PLANT": self.plant, "TASKQ_LOOP": LOOPS[self.seed % len(LOOPS)]}
            if step:
                at = self.rng.randint(1, POINTS[step].often)
                environ["TASKQ_FAILPOINT"] = f"{step}:{at}"
            addresses = ("--listen", self.tcp, "--http", self.http, "--data", str(self.data), "--durability", self.mode)
            self.broker = self.launch("broker", "-m", "campaigns.failing_broker", *addresses, *SETTINGS, **environ)
            try:
                ready = self.broker.wait_for(READY)
            except AssertionError:
                code = self.broker.end()
                if not step or code != -signal.SIGKILL:
                    raise AssertionError(f"the broker did not start, exit code {code}:\n{self.last_log('broker')}") from None
                self.killed("broker", step)
                continue
            self.tcp, self.http = ready["tcp"], ready["http"]
            self.step = step
            return

    def start_worker(self) -> Program:
        return self.launch("worker", "-c", "from taskq.cli import worker; worker()",
                           "--connect", self.tcp, "--app", "campaigns.kills_app", "--queues", "load", "--concurrency", "20")  # fmt: skip

    def start_producer(self) -> Program:
        name = f"p{self._started}"
        return self.launch("producer", "-m", "campaigns.kills_producer", "--tcp", self.tcp, "--http", self.http,
                           "--name", name, "--seed", str(self.rng.getrandbits(32)), "--history", str(self.histories / name))  # fmt: skip

    def last_log(self, name: str) -> str:
        return sorted(self.logs.glob(f"*-{name}"))[-1].read_text()[-2_000:]

    # ---- its life

    def live(self, kills: int) -> Outcome:
        """All of it.  A broker that ends by itself or does not come back is a problem like any other."""
        try:
            self.start_broker()
            self.workers = [self.start_worker() for _ in range(WORKERS)]
            self.producers = [self.start_producer() for _ in range(PRODUCERS)]
            while sum(self.victims.values()) < kills:
                self.cycle()
            verdict = self.rest()
        except AssertionError as error:
            verdict = Verdict(problems=[str(error)])
        finally:
            for program in self.programs:
                program.discard()
        return Outcome(self.mode, self.seed, sum(self.victims.values()), time.monotonic() - self.began, self.victims, self.steps, verdict)

    def cycle(self) -> None:
        self.wait_for_load()
        if self.step:
            self.die_at_the_step()
            return
        victim = self.rng.choices(*zip(*VICTIMS, strict=True))[0]
        self.pass_time(self.rng.uniform(0, RANDOM_S))
        if victim == "broker":
            self.kill_broker()
        elif victim == "worker":
            self.kill_worker(self.rng.randrange(WORKERS))
        else:
            at = self.rng.randrange(PRODUCERS)
            self.producers[at].discard()
            self.killed("producer")
            self.producers[at] = self.start_producer()

    def die_at_the_step(self) -> None:
        """The broker is about to kill itself; if its step is not reached in time, it is killed as at random."""
        step = self.step
        if step == "lease-ended":
            self.kill_worker(self.rng.randrange(WORKERS))
        with suppress(subprocess.TimeoutExpired):
            self.broker.process.wait(STEP_S)
            assert self.broker.process.returncode == -signal.SIGKILL, f"the broker ended by itself:\n{self.last_log('broker')}"
            self.killed("broker", step)
            self.restart_broker()
            return
        self.kill_broker()

    def kill_broker(self) -> None:
        self.kills.append(time.monotonic_ns())
        self.broker.signal(signal.SIGKILL)
        code = self.broker.process.wait(WAIT_S)
        assert code == -signal.SIGKILL, f"the broker had ended by itself, exit code {code}:\n{self.last_log('broker')}"
        self.killed("broker")
        self.restart_broker()

    def restart_broker(self) -> None:
        self.step = self.rng.choice(list(POINTS)) if self.rng.random() < AT_A_STEP else ""
        self.start_broker()

    def kill_worker(self, at: int) -> None:
        """The runner, which its keeper reports; the keeper, whose runner dies silently; or both at once."""
        keeper = self.workers[at].process.pid
        with suppress(ProcessLookupError, FileNotFoundError):
            children = list(map(int, Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()))
            for pid in self.rng.choice((children, [keeper], [*children, keeper])):
                os.kill(pid, signal.SIGKILL)
        self.killed("worker")
        with suppress(subprocess.TimeoutExpired):
            self.workers[at].process.wait(0.05)
            self.workers[at] = self.start_worker()

    def killed(self, victim: str, step: str = "") -> None:
        self.victims[victim] += 1
        if step:
            self.steps[step] += 1

    def pass_time(self, seconds: float) -> None:
        """A random moment; a broker that ends meanwhile ends it."""
        with suppress(subprocess.TimeoutExpired):
            self.broker.process.wait(seconds)

    def wait_for_load(self) -> None:
        """Until every producer has written something, so that it has found the broker."""
        sizes = [self._history_bytes(each) for each in self.producers]
        self._until(lambda: all(self._history_bytes(each) > size + FLOWS_BYTES for each, size in zip(self.producers, sizes, strict=True))
                    or self.broker.process.poll() is not None)  # fmt: skip

    def _history_bytes(self, producer: Program) -> int:
        arguments = producer.process.args
        assert isinstance(arguments, list)
        path = Path(arguments[-1])
        return path.stat().st_size if path.exists() else 0

    def _until(self, done: Callable[[], bool], seconds: float = WAIT_S) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"nothing happens:\n{self.last_log('producer')}\n{self.last_log('broker')}"
            time.sleep(LOOK_S)

    # ---- its end

    def rest(self) -> Verdict:
        """Let everything end, stop the broker in order, and check."""
        if self.step:
            self.kill_broker_for_good()
        self.wait_for_load()
        for producer in self.producers:
            producer.signal(signal.SIGTERM)
        for producer in self.producers:
            code = producer.end()
            assert code == 0, f"a producer ended with {code}:\n{self.last_log('producer')}"
        shown = asyncio.run(self.drain())
        code = self.broker.stop()
        assert code == 0, f"the broker stopped with {code}:\n{self.last_log('broker')}"
        assert not list((self.data / "journal").iterdir()), "a clean stop leaves an empty journal"
        rows = asyncio.run(read_rows(self.data / "store.sqlite"))
        deaths = [int(line) for line in self.deaths.read_text().split()] if self.deaths.exists() else []
        events, runs = list(lines_of(self.histories)), list(lines_of(self.runs))
        verdict = check(events, runs, rows, [*self.kills, *deaths], WINDOW_MS[self.mode])
        by_id = {row.id: row for row in rows}
        verdict.problems += [f"{task_id} is shown as {state}, and stored as {by_id[task_id].state}"
                             for task_id, state in shown.items() if by_id[task_id].state != state]  # fmt: skip
        return verdict

    def kill_broker_for_good(self) -> None:
        """An armed broker makes room for one that lives."""
        self.broker.discard()
        self.kills.append(time.monotonic_ns())
        self.killed("broker")
        self.step = ""
        self.start_broker()

    async def drain(self) -> dict[str, str]:
        """Until no task waits or runs, or long enough; some ids with the state that a reader is shown."""
        deadline = time.monotonic() + REST_S
        async with AsyncClient(self.tcp) as client:
            while time.monotonic() < deadline:
                rows = [row for row in await client.queues() if row["queue"] == "load"]
                if not any(row[state] for row in rows for state in ("scheduled", "pending", "running", "retrying")):
                    break
                await asyncio.sleep(0.05)
            known = sorted({task_id for event in lines_of(self.histories) for task_id in event.get("ids", ())})
            sample = self.rng.sample(known, min(SAMPLE_TASKS, len(known)))
            found = await asyncio.gather(*(client.get(task_id) for task_id in sample), return_exceptions=True)
        return {info.id: info.state for info in found if not isinstance(info, BaseException)}


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all files, without one that a kill has cut."""
    for path in sorted(folder.iterdir()):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                yield json.loads(line)


async def read_rows(path: Path) -> list[Row]:
    """Every task of a store that nobody else uses."""
    store = SqliteStore(path)
    await store.open()
    try:
        return [row_of(task_of(row)) for row in await all_rows(store)]
    finally:
        await store.close()


def row_of(task: Task) -> Row:
    payload = serial.decode(task.payload, task.options.encoding)
    result = serial.decode(task.result, task.result_encoding) if len(task.result) else None
    return Row(
        id=task.id.hex(),
        name=payload["name"],
        kind=task.options.task_type,
        state=STATES[task.state],
        payload=payload,
        result=result,
        attempts=task.attempts,
        max_attempts=task.options.max_attempts,
        crashes=task.crashes,
        outcomes=tuple(attempt["outcome"] for attempt in describe(task)["attempts"]),
    )


def run_world(mode: str, seed: int, kills: int, plant: str = "") -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix=f"taskq-kills-{mode}-"))
    outcome = World(mode, seed, folder, plant).live(kills)
    if not outcome.problems or plant:
        shutil.rmtree(folder)
    else:
        outcome.problems.append(f"everything is in {folder}")
    return outcome
