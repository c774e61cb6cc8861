"""taskq side by side with other queues: the same work and the same number of tasks for all, in one run.

    python bench/peers/run.py [--only NAME,NAME] [--depths 100000,300000 | --tasks N] [--rounds 5] [--limit-s 600] [--json FILE] [--plot]

It installs what the peers need, says how long it will take, lets all peers take their turn in each round, and prints Markdown: medians with lowest …
highest, how many times better taskq is, the settings and which others were tried.  A peer that cannot start is named with the reason, one that is
stuck is cut, and the run goes on.  Everything that it started has ended when it ends, on Ctrl-C too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "load"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import attrs
import machine
from machine import commit

from peers import report
from peers.contract import Peer
from peers.install import ROOT, prepare, version
from peers.report import Cell
from peers.rows import PEERS
from peers.stages import measure, singles, slow

DEPTHS = "100000,300000"
START_S = 8.0
FAILURES_MAX = 2
JSON = ROOT / "bench" / "results" / "peers.json"
PLOT = ROOT / "docs" / "images" / "peers.svg"


@attrs.frozen
class Plan:
    peers: list[Peer]
    depths: list[int]
    rounds: int
    limit_s: float
    folder: str

    def depths_of(self, peer: Peer) -> list[int]:
        """A depth that a peer cannot reach is the one before it, which is not measured twice."""
        return [depth for i, depth in enumerate(self.depths) if i == 0 or peer.tasks(depth) > peer.tasks(self.depths[i - 1])]


def estimate_s(plan: Plan) -> float:
    """By the rough rates of the table, without installing."""
    return plan.rounds * sum(estimate_of(peer, depth, i == 0) for peer in plan.peers for i, depth in enumerate(plan.depths_of(peer)))


def estimate_of(peer: Peer, depth: int, whole: bool) -> float:
    tasks, rough = peer.tasks(depth), peer.rough
    seconds = START_S + tasks / rough.bulk + tasks / rough.drain + tasks / rough.end_to_end
    return seconds + (singles(tasks) / rough.one_by_one + slow(tasks) * 0.02 if whole else 0)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(plan: Plan, missing: Mapping[str, str]) -> dict[str, dict[int, Cell]]:
    found: dict[str, dict[int, Cell]] = {peer.name: {} for peer in plan.peers}
    for number in range(1, plan.rounds + 1):
        for depth in plan.depths:
            for peer in plan.peers:
                if peer.name in missing or depth not in plan.depths_of(peer):
                    continue
                cell = found[peer.name].setdefault(depth, Cell(peer.tasks(depth)))
                if len(cell.troubles()) >= FAILURES_MAX:
                    continue
                begun_s = time.monotonic()
                cell.rounds.append(measure(peer, cell.tasks, depth == plan.depths[0], plan.folder, plan.limit_s))
                trouble = cell.rounds[-1].trouble
                say(f"round {number} of {plan.rounds}, {peer.title}, {cell.tasks:,} tasks: {trouble or f'{time.monotonic() - begun_s:.0f} s'}")
    return found


def about(plan: Plan) -> dict[str, Any]:
    """What a reader has to know to compare."""
    return {
        "commit": commit(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "depths": plan.depths,
        "rounds": plan.rounds,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": machine.filesystem(plan.folder),
        "fdatasync_us": round(machine.fdatasync_us(plan.folder)),
        "echo_us": round(machine.echo_us()),
        "load_average": round(os.getloadavg()[0], 2),
    }


def print_report(plan: Plan, facts: Mapping[str, Any], found: report.Found, missing: Mapping[str, str], share: float) -> None:
    versions = versions_of(plan, missing)
    print(" ".join(f"{name}={value}" for name, value in facts.items()))
    if warning := crowded(facts, share):
        print(f"\n**{warning}**")
    for depth in plan.depths:
        print(f"\n## {depth:,} tasks: how many times better taskq is\n\n{report.ratios(plan.peers, found, depth)}")
        print(f"\n## {depth:,} tasks: medians, lowest … highest\n\n{report.medians(plan.peers, found, depth)}")
    print("\n## Notes\n")
    print("\n".join(f"* {line}" for line in report.notes(plan.peers, found, missing, plan.rounds)) or "None.")
    print(f"\n## Settings\n\n{report.settings(plan.peers, versions)}\n\n## Settings that were tried\n\n{report.tried(plan.peers)}", flush=True)


def versions_of(plan: Plan, missing: Mapping[str, str]) -> dict[str, str]:
    return {peer.name: ", ".join(map(version, peer.versions)) for peer in plan.peers if peer.name not in missing}


def crowded(facts: Mapping[str, Any], share: float) -> str:
    """Other load makes figures worthless; nobody should have to look for that."""
    if share <= machine.BUSY:
        return ""
    load = f"other programs used {share:.0%} of the CPUs meanwhile, load average {facts['load_average']} at the start"
    return f"This machine was not idle ({load}): trust the ratios a little, the rest not"


def parse(arguments: Sequence[str] | None) -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=f"Peers: {', '.join(PEERS)}.")
    parser.add_argument("--only", metavar="NAME,NAME", help="these peers (taskq is what the others are compared with)")
    parser.add_argument("--depths", default=DEPTHS, metavar="N,N", help="tasks that are pending when the worker starts")
    parser.add_argument("--tasks", type=int, metavar="N", help="one depth of so many tasks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-s", type=float, default=600.0, help="after so many seconds a stage of a peer is cut")
    parser.add_argument("--set", action="append", default=[], metavar="PEER.SETTING=VALUE", help="try another setting (VALUE is JSON or text)")
    parser.add_argument("--folder", default=".", help="on the disk to measure; temporary folders in it are removed afterwards")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"all raw figures; {JSON.relative_to(ROOT)} if all peers run at their settings")
    parser.add_argument("--plot", action="store_true", help=f"draw {PLOT.relative_to(ROOT)} (needs matplotlib)")
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        parser.error(f"--only: no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    try:
        depths = sorted({options.tasks} if options.tasks else {int(each) for each in options.depths.split(",")})
    except ValueError:
        parser.error(f"--depths: numbers with commas between them, not {options.depths!r}")
    if depths[0] < 100 or options.rounds < 1:
        parser.error("--depths, --tasks: at least 100 tasks; --rounds: at least 1")
    try:
        peers = [changed(PEERS[name], options.set) for name in PEERS if name in names]
    except ValueError as error:
        parser.error(f"--set: {error}")
    if options.json is None and not options.only and not options.set:
        options.json = JSON
    return Plan(peers, depths, options.rounds, options.limit_s, options.folder), options


def changed(peer: Peer, changes: Sequence[str]) -> Peer:
    """The peer with the settings of `--set` that are its own."""
    settings = dict(peer.settings)
    for change in changes:
        name, dot, rest = change.partition(".")
        setting, equals, value = rest.partition("=")
        if not dot or not equals or name not in PEERS or setting not in PEERS[name].settings:
            known = ", ".join(f"{each.name}.{key}" for each in PEERS.values() for key in each.settings)
            raise ValueError(f"{change!r} is not PEER.SETTING=VALUE with one of {known}")
        if name == peer.name:
            try:
                settings[setting] = json.loads(value)
            except ValueError:
                settings[setting] = value
    return attrs.evolve(peer, settings=settings)


STOPS = (signal.SIGINT, signal.SIGTERM)


def stop(number: int, frame: object) -> None:
    """Once: what is being ended must not be interrupted again."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    say("stopping what was started")
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    plan, options = parse(arguments)
    for number in STOPS:  # also where a shell has told us to ignore Ctrl-C
        signal.signal(number, stop)
    draw: Any = None
    if options.plot:
        try:
            from peers.plot import draw
        except ImportError as error:
            say(f"--plot: {error}; pip install matplotlib")
            return 2
    minutes = estimate_s(plan) / 60
    say(f"{len(plan.peers)} peers, {plan.rounds} rounds: about {minutes:,.0f} minutes on 2 idle cores; a stage is cut after {plan.limit_s:,.0f} s")
    try:
        needs = prepare(dict.fromkeys(need for peer in plan.peers for need in peer.needs), say)
        missing = {peer.name: "; ".join(needs[need] for need in peer.needs if need in needs) for peer in plan.peers}
        missing = {name: why for name, why in missing.items() if why}
        for name, why in missing.items():
            say(f"{name} does not start: {why}")
        facts, others = about(plan), machine.OtherLoad()
        found = run(plan, missing)
    except KeyboardInterrupt:
        say("stopped: everything that was started has ended, and nothing was written")
        return 130
    share = others.share()
    print_report(plan, facts, found, missing, share)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        versions = versions_of(plan, missing)
        everything = {"about": facts, "other_cpu_share": share, "peers": report.raw(plan.peers, found, missing, versions)}
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
        say(f"wrote {options.json}")
    if draw is not None:
        draw(plan.peers, found, plan.depths, PLOT)
        say(f"wrote {PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
