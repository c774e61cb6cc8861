"""The leases campaign: leases depend on the worker being alive, never on how long a task takes.  Real programs, real signals.

    python tests/campaigns/leases.py [--only NAME …] [--small] [--record]        all scenarios side by side, since they mostly wait

A scenario starts its own broker and workers and returns how many runs it saw, how many of them were one too many (`doubled`), and how many tasks
had no proper end (`lost`).  What it finds wrong it raises.  The tasks themselves write down their runs; the broker's answers are compared with that.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from programs import Program

from campaigns.leases_house import FULL, SMALL, House, Size, outcomes
from taskq import Client
from taskq.node import GRACE_OF_LEASE
from taskq.worker.keeper import runs

# a lease that ends is seen in one pass and acted upon in the next
PASSES_S = 1.5
# a runner starts again, on a busy machine
RESTART_S, START_S = 8.0, 3.0
NEIGHBOURS = 20
WORKERS = 4

Scenario = Callable[[House], Counter[str]]


def tally(house: House, client: Client, ids: Sequence[str], expected: int = 1, state: str = "completed") -> Counter[str]:
    """Wait for the end of these tasks, and count: each should have run so often."""
    ended = [client.wait(task_id, timeout=house.size.lease_s * 4 + 60) for task_id in ids]
    counted = Counter(run.task for run in house.runs())
    doubled = sum(max(0, counted[task_id] - expected) for task_id in ids)
    lost = sum(info.state != state for info in ended)
    assert not doubled and not lost, f"{doubled} runs too many, {lost} of {len(ids)} tasks not {state}"
    return Counter(runs=sum(counted[task_id] for task_id in ids), doubled=doubled, lost=lost)


def send(program: Program, whom: str, number: signal.Signals, runner: int) -> None:
    """A signal to the whole worker, to its runner or to its keeper."""
    keeper = program.process.pid
    for pid in {"whole": (keeper, runner), "runner": (runner,), "keeper": (keeper,)}[whom]:
        os.kill(pid, number)


# ---- scenarios


def held_gil(house: House) -> Counter[str]:
    """A task that lets no other code of its process run for minutes keeps its lease, runs once, and its result counts."""
    house.broker()
    pools = ("async", "thread", "process")
    for pool in pools:
        house.worker(pool, pool)
    with house.client() as client:
        handles = [client.enqueue(f"hold_{pool}", {"seconds": house.size.hold_s}, queue=pool) for pool in pools]
        for handle in handles:
            held_s, turns = client.result(handle, timeout=house.size.hold_s + 60)
            assert held_s > house.size.hold_s - 1 and turns <= 1, f"the GIL was not held: {held_s} s, {turns} turns of another thread"
            assert outcomes(client, handle.id) == ["completed"]
        return tally(house, client, [handle.id for handle in handles])


def stopped_broker(house: House) -> Counter[str]:
    """A broker that stands still ends no lease for it, whatever ran meanwhile; a worker that died meanwhile loses its own."""
    broker = house.broker()
    house.worker("alive", "alive")
    dying = house.worker("dying", "dying")
    gate = house.folder / "gate"
    with house.client() as client:
        ids = [client.enqueue("wait_at", {"path": str(gate)}, queue="alive").id for _ in range(20)]
        quick = [client.enqueue("linger", {"seconds": house.size.stop_s / 2}, queue="alive").id for _ in range(5)]
        orphan = client.enqueue("until", {"path": str(gate)}, queue="dying").id
        for task_id in (*ids, *quick, orphan):
            house.started(task_id)
        house.confirmed(client, "dying")
    house.worker("heir", "dying")
    broker.signal(signal.SIGSTOP)
    os.killpg(dying.process.pid, signal.SIGKILL)
    time.sleep(house.size.stop_s)
    broker.signal(signal.SIGCONT)
    woken_s = time.time()
    again = house.started(orphan, 2)
    assert again.at_s - woken_s < 2 * house.size.lease_s + PASSES_S, "the lease of the dead worker should have ended"
    time.sleep(house.size.lease_s + PASSES_S)
    gate.touch()
    with house.client() as client:
        counts = tally(house, client, [*ids, *quick])
        assert all(outcomes(client, task_id) == ["completed"] for task_id in (*ids, *quick))
        return counts + tally(house, client, [orphan], 2)


def stopped_worker(house: House) -> Counter[str]:
    """A worker that stands still past its lease loses it: its late report is refused, the second run wins, and the worker goes on afterwards."""
    house.broker()
    with house.client() as client:
        jobs = [_stop(house, client, whom) for whom in ("whole", "runner", "keeper")]
        heir = house.worker("heir", *(whom for whom, *_ in jobs))
        counts: Counter[str] = Counter()
        for whom, program, task_id, runner in jobs:
            counts += _continue(house, client, whom, program, task_id, runner)
        assert heir.process.poll() is None
        return counts


def _stop(house: House, client: Client, whom: str) -> tuple[str, Program, str, int]:
    program = house.worker(whom, whom, f"own-{whom}")
    task_id = client.enqueue("until", {"path": str(house.folder / whom)}, queue=whom).id
    run = house.started(task_id)
    house.confirmed(client, whom)
    send(program, whom, signal.SIGSTOP, run.pid)
    return whom, program, task_id, run.pid


def _continue(house: House, client: Client, whom: str, program: Program, task_id: str, runner: int) -> Counter[str]:
    """Its task may end the very moment that it goes on.  A runner without a keeper renews itself, so that one keeps its lease."""
    keeps = whom == "keeper"
    if keeps:
        time.sleep(house.size.lease_s + 2 * PASSES_S)
        winner = house.runs_of(task_id)[-1].pid
    else:
        winner = house.started(task_id, 2).pid
    assert (winner == runner) == keeps
    (house.folder / f"{whom}.{runner}").touch()
    if not keeps:
        send(program, whom, signal.SIGCONT, runner)
        house.wait(lambda: house.runs_of(task_id)[0].ended, "the late end of the first run")
        program.wait_for("its lease was lost before the report came|leases are lost", "stderr")
        assert client.get(task_id).state == "running", "a late report was accepted"
    (house.folder / f"{whom}.{winner}").touch()
    assert client.result(task_id, timeout=60) == winner
    if keeps:
        send(program, whom, signal.SIGCONT, runner)
    assert client.result(client.enqueue("who", queue=f"own-{whom}"), timeout=60) == runner, "the worker should go on"
    assert outcomes(client, task_id) == (["completed"] if keeps else ["crashed", "completed"])
    return tally(house, client, [task_id], 1 if keeps else 2)


def killed_worker(house: House) -> Counter[str]:
    """The tasks of a worker that is killed run again within a lease, however long they take."""
    house.broker()
    counts: Counter[str] = Counter()
    with house.client() as client:
        for whom in ("whole", "runner", "keeper"):
            counts += _kill(house, client, whom)
    return counts


def _kill(house: House, client: Client, whom: str) -> Counter[str]:
    """One task would take ten minutes, the other a second.  The death of a runner is told by its keeper, that of a keeper takes its runner along."""
    program = house.worker(whom, whom)
    long = client.enqueue("until", {"path": str(house.folder / whom)}, queue=whom).id
    runner = house.started(long).pid
    house.confirmed(client, whom)
    short = client.enqueue("linger", {"seconds": 1.0}, queue=whom).id
    house.started(short)
    killed_s = time.time()
    send(program, whom, signal.SIGKILL, runner)
    house.wait(lambda: not runs(runner), "the death of the runner")
    (house.folder / whom).touch()
    if whom != "runner":
        house.worker(f"{whom}-heir", whom)
    late_s = max(house.started(task_id, 2).at_s for task_id in (long, short)) - killed_s
    limit_s = max(house.size.lease_s, house.size.lease_s * GRACE_OF_LEASE + PASSES_S + START_S) if whom != "runner" else RESTART_S
    assert late_s < limit_s, f"{whom}: run again after {late_s:.1f} s"
    counts = tally(house, client, [long, short], 2)
    assert outcomes(client, long) == ["crashed", "completed"]
    assert outcomes(client, short) in (["crashed", "completed"], ["undelivered", "completed"])
    return counts + Counter({f"{whom}_late_ms": round(late_s * 1000)})


def three_crashes(house: House) -> Counter[str]:
    """A task that kills its worker three times is a dead letter that tells the cause; its neighbours are not."""
    house.broker()
    causes = {"leave": "exit code 3", "fault": "SIGSEGV", "kill": "SIGKILL"}
    for how in (*causes, "poison"):
        house.worker(how, how)
    with house.client() as client:
        bad = {how: client.enqueue("die", {"how": how}, queue=how).id for how in causes}
        poison = client.enqueue("die", {"how": "kill", "delay": 0.5}, queue="poison").id
        good = [client.enqueue("linger", {"seconds": 0.6}, queue="poison").id for _ in range(NEIGHBOURS)]
        counts = tally(house, client, [*bad.values(), poison], 3, "failed")
        for how, task_id in bad.items():
            attempts = client.get(task_id).fields["attempts"]
            told = [(attempt["outcome"], attempt["error_type"], attempt["error"]) for attempt in attempts]
            assert told == [("crashed", "WorkerLost", causes[how])] * 3
            assert causes[how] in house.command("task", task_id)
        return counts + tally(house, client, good, 3)


def restarted_broker(house: House) -> Counter[str]:
    """Running leases outlive the broker, however it ends: the workers resume, and nothing runs twice."""
    broker = house.broker()
    for number in range(WORKERS):
        house.worker(f"w{number}", "default", concurrency=house.size.leases // WORKERS)
    gate = house.folder / "gate"
    with house.client() as client:
        ids = [handle.id for handle in client.enqueue_many("wait_at", [{"path": str(gate)}] * house.size.leases)]
        house.wait(lambda: len(house.runs()) >= len(ids), "all runs")
    for number in (signal.SIGTERM, signal.SIGKILL):
        broker.signal(number)
        broker.end()
        broker = house.broker()
        with house.client() as client:
            house.wait(lambda client=client: sum(row["running"] for row in client.workers()) == len(ids), "the workers to resume")
        time.sleep(house.size.lease_s + PASSES_S)
        assert len(house.runs()) == len(ids), "tasks run twice"
    gate.touch()
    with house.client() as client:
        return tally(house, client, ids)


def away_broker(house: House) -> Counter[str]:
    """Results of tasks that end while there is no broker are delivered afterwards, and count once."""
    broker = house.broker()
    house.worker("w", "default")
    gate = house.folder / "gate"
    with house.client() as client:
        ids = [client.enqueue("wait_at", {"path": str(gate)}).id for _ in range(20)]
        for task_id in ids:
            house.started(task_id)
    broker.signal(signal.SIGKILL)
    broker.end()
    gate.touch()
    house.wait(lambda: all(run.ended for run in house.runs()), "the tasks to end")
    time.sleep(house.size.away_s)
    house.broker()
    with house.client() as client:
        counts = tally(house, client, ids)
        time.sleep(house.size.lease_s + PASSES_S)
        assert all(outcomes(client, task_id) == ["completed"] for task_id in ids)
        return counts + tally(house, client, ids) - counts


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (held_gil, stopped_broker, stopped_worker, killed_worker, three_crashes, restarted_broker, away_broker)
}


# ---- running them


def play(name: str, size: Size) -> Counter[str]:
    """One scenario; what it counted, and its seconds."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"taskq-{name}-", ignore_cleanup_errors=True) as folder:
        house = House(Path(folder), size)
        try:
            counts = SCENARIOS[name](house)
        finally:
            house.close()
    return Counter({"runs": 0, "doubled": 0, "lost": 0, **counts, "seconds": round(time.monotonic() - began_s)})


def play_all(names: Sequence[str], size: Size) -> dict[str, Counter[str] | BaseException]:
    """Side by side; what each counted, or why it failed."""
    found: dict[str, Counter[str] | BaseException] = {}
    with ThreadPoolExecutor(len(names)) as pool:
        for name, future in [(name, pool.submit(play, name, size)) for name in names]:
            error = future.exception()
            found[name] = future.result() if error is None else error
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), help="these scenarios")
    parser.add_argument("--small", action="store_true", help="the sizes of the test suite")
    parser.add_argument("--record", action="store_true", help="write the figures to the ledger")
    options = parser.parse_args()
    found = play_all(options.only, SMALL if options.small else FULL)
    failed = 0
    for name, counts in found.items():
        if isinstance(counts, BaseException):
            failed += 1
            print(f"{name:18} FAILED {counts}")
            continue
        print(f"{name:18} " + ", ".join(f"{what} {number:,}" for what, number in counts.items()))
        if options.record:
            from campaigns import ledger

            # delays are no numbers to add up
            ledger.record("leases", mode=name, **{what: float(number) if what.endswith("_ms") else number for what, number in counts.items()})
    return 1 if failed else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
