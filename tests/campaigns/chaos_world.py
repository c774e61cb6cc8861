"""A world of the chaos campaign: a broker, and workers behind networks of their own (`chaos_proxy.py`), all of them real programs.

A round enqueues tasks of all pools while misfortunes happen; then all of them end, and every task that was acknowledged must become final within
BOUND_S, and every worker must run a task that only it can take.  What does not is stuck.  At the end no task may be lost, have been completed twice,
or have the result of another.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from programs import Program

from campaigns.chaos_proxy import Proxy
from campaigns.leases_house import POLL_S, House, Size
from taskq import Client
from taskq.errors import BrokerUnavailable, NotFound, ResultTimeout
from taskq.worker.stall import STALL_S

LEASE_S = 2.0
WORKERS = 2
CONCURRENCY = 4
# what a round lasts before it is healed, sometimes longer than a stall of a worker, and how much happens in it; more waits than has a slot
PLAY_S = (3.0, 3.0, 8.0)
MISFORTUNES_MAX = 4
BURSTS, BURST_TASKS = 4, 12
# a lease, the restart of a runner that died again and again, and all tasks of a round once more, on a busy machine
BOUND_S = 60.0
ENQUEUE_S = 60.0
HOLES_S = (1.0, 2.0, 3.0, 4.0, 4.0, 6.0, 6.0, 12.0, 30.0)
# task → the seconds that it may take, how often in proportion; of shorter ones workers would fetch so many that none has no credit left
TASKS: dict[str, tuple[Sequence[float], int]] = {
    "nap": ((0.1, 0.3, 1.0, 3.0), 16),
    "sit": ((0.1, 0.3, 1.0, 3.0), 12),
    "part": ((0.1, 0.3), 4),
    "block": ((0.5, 3.0, 7.0), 1),
}
# in so many rounds all slots are taken when it begins, by one of these: how many in each worker, and for how long
FULL: dict[str, tuple[int, float]] = {
    "nap": (CONCURRENCY, 3 * LEASE_S),
    "sit": (CONCURRENCY, 3 * LEASE_S),
    "part": (2, 3 * LEASE_S),
    "block": (1, STALL_S + LEASE_S),
}
FULL_ROUNDS, FULL_S = 0.6, 3.0


@attrs.define
class Outcome:
    """What a world has seen; all but `settle_s_max` and `problems` are counts."""

    seed: int
    rounds: int = 0
    acknowledged: int = 0
    completed: int = 0
    dead_letters: int = 0
    stuck: int = 0
    lost: int = 0
    doubled: int = 0
    named: int = 0
    misfortunes: Counter[str] = attrs.field(factory=Counter)
    settle_s_max: float = 0.0
    problems: list[str] = attrs.field(factory=list)

    def facts(self) -> dict[str, Any]:
        """For the ledger."""
        counts = attrs.asdict(self, filter=lambda field, _: field.name not in ("seed", "misfortunes", "settle_s_max", "problems"))
        return {"seed": str(self.seed), **counts, **self.misfortunes, "settle_s_max": self.settle_s_max}

    def __str__(self) -> str:
        what = ", ".join(f"{count} {name}" for name, count in sorted(self.misfortunes.items()))
        text = (
            f"seed {self.seed}: {self.rounds} rounds ({what}), {self.acknowledged} acknowledged, {self.completed} completed, "
            f"{self.dead_letters} dead letters, {self.stuck} stuck, {self.lost} lost, {self.doubled} twice, {self.named} named; "
            f"at rest after at most {self.settle_s_max:.1f} s"
        )
        return "\n".join([text, *(f"    {problem}" for problem in self.problems)])


class Site(House):
    """Workers reach the broker only through their own proxies."""

    def worker_at(self, name: str, address: str) -> Program:
        options = ("--name", name, "--concurrency", str(CONCURRENCY), "--drain", "1s", "--queues", f"load,{name}")
        return self._start("worker", "--connect", address, "--app", "chaos_app", *options)


class World:
    """See the module."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(f"chaos {seed}")
        self.outcome = Outcome(seed)
        self.site = Site(folder, Size(LEASE_S, 0, 0.0, 0.0, 0))
        self.brokers = [self.site.broker()]
        self.names = [f"w{number}" for number in range(WORKERS)]
        self.proxies = [Proxy(self.site.address, random.Random(f"{seed} {name}")) for name in self.names]
        self.workers: list[Program] = []
        self.numbers: dict[str, int] = {}
        self._stopped: list[int] = []

    def live(self, rounds: int) -> Outcome:
        """So many rounds, or until one of them does not come to rest."""
        try:
            self.workers = [self.site.worker_at(*pair) for pair in self._places()]
            for worker in self.workers:
                worker.wait_for("new session", "stderr")
            with Client(self.site.address, deadline=ENQUEUE_S) as client:
                while self.outcome.rounds < rounds and not self.outcome.problems:
                    self._round(client)
                self._check(client)
        finally:
            self._close()
        return self.outcome

    def _places(self) -> list[tuple[str, str]]:
        return [(name, proxy.address) for name, proxy in zip(self.names, self.proxies, strict=True)]

    # ---- a round

    def _round(self, client: Client) -> None:
        self.outcome.rounds += 1
        play_s = self.rng.choice(PLAY_S)
        names = self.rng.choices(list(MISFORTUNES), [weight for weight, _ in MISFORTUNES.values()], k=self.rng.randrange(1, MISFORTUNES_MAX + 1))
        fates = sorted((self.rng.uniform(0.0, play_s), name, self.rng.randrange(1 << 30)) for name in names)
        bursts = sorted(self.rng.uniform(0.0, play_s / 2) for _ in range(BURSTS))
        ids = self.fill(client, self.rng.choice(list(FULL))) if self.rng.random() < FULL_ROUNDS else []
        with ThreadPoolExecutor(1) as other:
            playing = other.submit(self._play, fates, time.monotonic())
            began_s = time.monotonic()
            for at_s in bursts:
                time.sleep(max(0.0, began_s + at_s - time.monotonic()))
                ids += self._enqueue(client)
            playing.result()
        self._heal()
        self._rest(client, ids)

    def _enqueue(self, client: Client) -> list[str]:
        ids = []
        weights = [weight for _, weight in TASKS.values()]
        for name in self.rng.choices(list(TASKS), weights, k=BURST_TASKS):
            ids += self._send(client, name, self.rng.choice(TASKS[name][0]), "load")
        return ids

    def fill(self, client: Client, task: str) -> list[str]:
        """Long tasks take all slots, so that no worker has credit left; what comes after them waits."""
        slots, seconds = FULL[task]
        ids = [task_id for _ in range(slots * WORKERS) for task_id in self._send(client, task, seconds, "load")]
        end_s = time.monotonic() + FULL_S
        while sum(row["running"] for row in client.workers()) < len(ids) and time.monotonic() < end_s:
            time.sleep(POLL_S)
        return ids

    def _send(self, client: Client, name: str, seconds: float, queue: str) -> list[str]:
        number = len(self.numbers)
        with suppress(BrokerUnavailable):  # it may exist or not; nobody was told
            task_id = client.enqueue(name, {"number": number, "seconds": seconds}, queue=queue).id
            self.numbers[task_id] = number
            self.outcome.acknowledged += 1
            return [task_id]
        return []

    def _play(self, fates: list[tuple[float, str, int]], began_s: float) -> None:
        for at_s, name, seed in fates:
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            MISFORTUNES[name][1](self, random.Random(seed))
            self.outcome.misfortunes[name] += 1

    # ---- what ends with it

    def _heal(self) -> None:
        for pid in self._stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()
        for proxy in self.proxies:
            proxy.heal()
        if self.brokers[-1].process.poll() is not None:
            self.brokers.append(self.site.broker())
        for at, place in enumerate(self._places()):
            if self.workers[at].process.poll() is not None:
                self.workers[at] = self.site.worker_at(*place)

    def _rest(self, client: Client, ids: list[str]) -> None:
        """Each worker has to run a task that only it can take, so that none stands unseen while others work."""
        began_s = time.monotonic()
        for name in self.names:
            ids += self._send(client, "nap", 0.0, name)
        for task_id in ids:
            with suppress(ResultTimeout):
                client.wait(task_id, timeout=max(0.1, began_s + BOUND_S - time.monotonic()))
        rest_s = time.monotonic() - began_s
        self.outcome.settle_s_max = max(self.outcome.settle_s_max, round(rest_s, 1))
        stuck = [task_id for task_id in ids if not client.get(task_id).is_final]
        self.outcome.stuck += len(stuck)
        if stuck:
            rows = [{name: row[name] for name in ("name", "running", "delivered", "room", "heard_ms_ago")} for row in client.workers()]
            self.outcome.problems += [f"round {self.outcome.rounds}: {len(stuck)} tasks are not final after {rest_s:.0f} s; workers: {rows}"]
            self.outcome.problems += [str(client.get(task_id).fields) for task_id in stuck[:5]]

    def _check(self, client: Client) -> None:
        """What became of every task that was acknowledged."""
        outcome = self.outcome
        for task_id, number in self.numbers.items():
            try:
                info = client.get(task_id)
            except NotFound:
                outcome.lost += 1
                outcome.problems.append(f"task {task_id} was acknowledged and is gone")
                continue
            ended = [attempt["outcome"] for attempt in info.fields["attempts"]]
            outcome.completed += info.state == "completed"
            outcome.dead_letters += info.state == "failed"
            if ended.count("completed") > 1 or (info.state == "completed" and info.result != number):
                outcome.doubled += 1
                outcome.problems.append(f"task {task_id} (number {number}): {ended}, result {info.result!r}")

    def _close(self) -> None:
        self._heal()
        for program in self.site.programs:
            program.discard()
        said = [line for broker in self.brokers for line in broker.said["stderr"]]
        self.outcome.named = sum("is connected and runs nothing" in line for line in said)
        for proxy in self.proxies:
            proxy.close()

    # ---- whom it may meet

    def stop_for_a_while(self, pids: list[int]) -> None:
        """They stand still until the round is healed."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._stopped.append(pid)


def runner_of(worker: Program) -> list[int]:
    """The process with the user's code, if there is one now."""
    with suppress(OSError):
        pid = worker.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# ---- misfortunes


def kill_worker(world: World, rng: random.Random) -> None:
    program = rng.choice(world.workers)
    with suppress(ProcessLookupError):
        os.killpg(program.process.pid, signal.SIGKILL)
    program.process.wait()


def kill_runner(world: World, rng: random.Random) -> None:
    for pid in runner_of(rng.choice(world.workers)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def stop_worker(world: World, rng: random.Random) -> None:
    program = rng.choice(world.workers)
    world.stop_for_a_while([program.process.pid, *runner_of(program)])


def stop_runner(world: World, rng: random.Random) -> None:
    world.stop_for_a_while(runner_of(rng.choice(world.workers)))


def stop_broker(world: World, rng: random.Random) -> None:
    """Its clients wait, so it goes on by itself."""
    broker = world.brokers[-1].process
    broker.send_signal(signal.SIGSTOP)
    time.sleep(rng.choice([0.5, 1.5, 4.0]))
    broker.send_signal(signal.SIGCONT)


def restart_broker(world: World, rng: random.Random) -> None:
    broker = world.brokers[-1]
    broker.signal(rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
    broker.process.wait()
    world.brokers.append(world.site.broker())


def cut(world: World, rng: random.Random) -> None:
    for proxy in rng.sample(world.proxies, rng.randrange(1, WORKERS + 1)):
        proxy.cut()


def black_hole(world: World, rng: random.Random) -> None:
    """Long ones last as long as they take: a heal would end them."""
    seconds = rng.choice(HOLES_S)
    for proxy in rng.sample(world.proxies, rng.randrange(1, WORKERS + 1)):
        proxy.hole(seconds)
    time.sleep(seconds)


def lose_frames(world: World, rng: random.Random) -> None:
    rng.choice(world.proxies).lose(rng.randrange(1, 4))


def double_frames(world: World, rng: random.Random) -> None:
    rng.choice(world.proxies).double(rng.randrange(1, 4))


# how often in proportion, and what
MISFORTUNES: dict[str, tuple[int, Callable[[World, random.Random], None]]] = {
    "kill_worker": (2, kill_worker),
    "kill_runner": (2, kill_runner),
    "stop_worker": (3, stop_worker),
    "stop_runner": (3, stop_runner),
    "stop_broker": (2, stop_broker),
    "restart_broker": (2, restart_broker),
    "cut": (2, cut),
    "black_hole": (5, black_hole),
    "lose_frames": (3, lose_frames),
    "double_frames": (2, double_frames),
}


def run_world(seed: int, rounds: int) -> Outcome:
    """A world in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix=f"taskq-chaos-{seed}-", ignore_cleanup_errors=True) as folder:
        return World(seed, Path(folder)).live(rounds)
