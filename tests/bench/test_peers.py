"""The table of peers and its runner, without any peer's package: the arithmetic, what is said when something fails, and taskq's own row for real.

The peers themselves are run by `make bench-peers`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from peers import contract, install, report, stages
from peers import run as runner
from peers.contract import Context, Peer, PeerTrouble, Rough, Server
from peers.report import Cell, Spread
from peers.rows import PEERS
from peers.stages import Measured

BENCH = Path(contract.__file__).parent
WAIT_S = 60.0
NAMES = {
    "taskq", "celery", "dramatiq", "rq", "saq", "arq", "huey", "bullmq", "sidekiq", "graphile-worker", "pg-boss", "nats", "gearman", "beanstalkd",
    "beanstalkd-fsync",
}  # fmt: skip
# runs all tasks that it is told to, and says what it is asked for; settings make it misbehave
CLIENT = """
import json, os, pathlib, sys, time
settings = json.loads(os.environ["BENCH_SETTINGS"])
ran = pathlib.Path(os.environ["BENCH_MARKS"])
waiting = ran.with_name("waiting")
if sys.argv[1] == "work":
    if settings.get("worker") == "ends":
        sys.exit("MemoryError: no room")
    while True:
        try:
            count = int(waiting.read_text())
            waiting.unlink()
        except (FileNotFoundError, ValueError):
            time.sleep(0.001)
            continue
        if settings.get("worker") != "stuck":
            with ran.open("ab") as file:
                file.write(b"x" * count * settings.get("runs", 1))
mode, first, tasks = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
before = int(waiting.read_text()) if waiting.exists() else 0
waiting.with_suffix(".new").write_text(str(before + tasks))
started_ns = time.monotonic_ns()
os.rename(waiting.with_suffix(".new"), waiting)
print(json.dumps({"started_ns": started_ns, "ended_ns": time.monotonic_ns()}), flush=True)
"""


@contextmanager
def no_server(context: Context) -> Iterator[Server]:
    yield Server(0)


def pretender(folder: Path, **settings: object) -> Peer:
    (folder / "client.py").write_text(CLIENT)
    client = (sys.executable, str(folder / "client.py"))
    return Peer("pretender", "Pretender", "none", no_server, client, (), (), Rough(1, 1, 1, 1), settings)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing settles in a pretender."""
    monkeypatch.setattr(stages, "QUIET_S", 0.01)
    monkeypatch.setattr(stages, "ACK_S", 0.1)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A run in this process takes two signals for itself."""
    before = {number: signal.getsignal(number) for number in runner.STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def cell(tasks: int, *rounds: dict[str, float], trouble: str = "") -> Cell:
    return Cell(tasks, [*(Measured(values) for values in rounds), *([Measured({}, trouble)] if trouble else [])])


# ---- the table


def test_the_table_has_every_peer_once_with_its_durability_its_settings_and_what_was_tried() -> None:
    assert PEERS.keys() == NAMES
    assert next(iter(PEERS)) == report.BASE
    for name, peer in PEERS.items():
        assert peer.name == name
        assert peer.durability
        assert peer.tried, name
        assert (contract.CLIENTS / peer.client[-1]).is_file()
        assert all(need in install.PROGRAMS or need in install.ENVIRONMENTS for need in peer.needs)
        assert peer.without.keys() <= report.FIGURES_WITHOUT.keys()


def test_only_the_slow_peers_have_fewer_tasks() -> None:
    slow = {"celery", "dramatiq", "rq", "saq", "arq", "huey", "beanstalkd-fsync"}
    assert {name for name, peer in PEERS.items() if peer.tasks(100_000) < 100_000} == slow


def test_every_package_is_pinned() -> None:
    for file in BENCH.glob("requirements*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert lines
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    lock = json.loads((BENCH / "node" / "package-lock.json").read_text())["packages"]
    wanted = json.loads((BENCH / "node" / "package.json").read_text())["dependencies"]
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert not any("resolved" in package for package in lock.values())


# ---- arithmetic


def test_a_figure_is_the_median_of_its_rounds_with_the_lowest_and_the_highest() -> None:
    found = cell(100, {"drain": 30.0}, {"drain": 10.0}, {"drain": 20.0}, trouble="cut")
    assert found.spread("drain") == Spread(20.0, 10.0, 30.0, 3)
    assert found.spread("bulk") is None
    assert report.shown(found.spread("drain")) == "20 (10 … 30)"
    assert report.shown(None) == "–"


def test_a_ratio_above_one_means_that_taskq_is_better_for_rates_and_for_times() -> None:
    fast, slow = Spread(300.0, 1, 1, 5), Spread(100.0, 1, 1, 5)
    assert report.ratio("drain", fast, slow) == 3.0
    assert report.ratio("drain", slow, fast) == pytest.approx(1 / 3)
    assert report.ratio("latency_p50", slow, fast) == 3.0
    assert report.ratio("memory", fast, slow) == pytest.approx(1 / 3)
    assert report.ratio("drain", None, slow) is None
    assert report.ratio("memory", fast, Spread(-15.0, -20, 3, 5)) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(0.1234, "0.123"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,230"), (123456.0, "123,000"), (-15.4, "-15.4")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert report.number(value) == shown


def test_the_tables_say_who_had_fewer_tasks_and_what_was_not_measured() -> None:
    peers = [PEERS["taskq"], PEERS["celery"], PEERS["nats"]]
    found = {
        "taskq": {1_000: cell(1_000, {"drain": 400.0}, {"drain": 500.0}, {"drain": 600.0}), 2_000: cell(2_000, {"drain": 450.0})},
        "celery": {1_000: cell(700, {"drain": 5.0})},
        "nats": {},
    }
    ratios, medians = report.ratios(peers, found, 1_000), report.medians(peers, found, 1_000)
    assert "| Celery + Redis | memory: lost when the server ends | 700 (fewer) | 100 × |" in ratios
    assert "| taskq | fsync before the ack | 1,000 | 500 (400 … 600) |" in medians
    assert "| NATS JetStream | written, fsync every 2 minutes | – | – |" in medians
    notes = report.notes(peers, found, {"nats": "nats-server is not installed"}, 3)
    assert "NATS JetStream: did not start: nats-server is not installed" in notes
    assert "Celery + Redis, depth 1,000: 1 of 3 rounds were run, the rest was given up" in notes


# ---- one peer


@pytest.mark.usefixtures("hasty")
def test_the_stages_count_from_outside_and_each_rate_is_of_this_run(tmp_path: Path) -> None:
    measured = stages.measure(pretender(tmp_path), 300, False, str(tmp_path), 10)
    assert measured.trouble == ""
    assert {"bulk", "drain", "end_to_end", "memory"} <= measured.values.keys()
    assert all(measured.values[name] > 0 for name in ("bulk", "drain", "end_to_end"))
    assert [path.name for path in tmp_path.iterdir()] == ["client.py"]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("settings", "trouble"),
    [
        ({"worker": "ends"}, r"client.py work ended with exit code 1\n +\| MemoryError: no room"),
        ({"worker": "stuck"}, r"cut after 1 s: 0 of 1 tasks had run"),
        ({"runs": 2}, r"600 tasks ran 1,200 times"),
    ],
)
def test_a_peer_that_ends_is_stuck_or_runs_tasks_twice_says_so_and_keeps_what_it_had(
    tmp_path: Path, settings: dict[str, object], trouble: str
) -> None:
    measured = stages.measure(pretender(tmp_path, **settings), 300, False, str(tmp_path), 1)
    assert re.search(trouble, measured.trouble), measured.trouble
    assert "bulk" in measured.values


def test_a_peer_whose_server_does_not_start_has_a_reason_and_no_figure(tmp_path: Path) -> None:
    @contextmanager
    def fails(context: Context) -> Iterator[Server]:
        raise PeerTrouble("redis-server is not installed (Debian's package redis-server)")
        yield

    measured = stages.measure(attrs.evolve(pretender(tmp_path), serve=fails), 300, True, str(tmp_path), 10)
    assert measured == Measured({}, "redis-server is not installed (Debian's package redis-server)")


def test_who_is_not_root_is_told_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    missing = install.prepare(["redis-server", "beanstalkd"], lambda text: None)
    assert missing["beanstalkd"] == "beanstalkd is not installed: only root can install it (apt-get install beanstalkd redis-server)"
    with pytest.raises(PeerTrouble, match=r"nats-server is not installed \(Debian's package nats-server\)"):
        install.program("nats-server")


# ---- a run


@pytest.mark.usefixtures("hasty")
def test_taskq_runs_and_a_peer_that_cannot_start_is_named_and_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PEERS, "absent", attrs.evolve(pretender(tmp_path), name="absent", title="Absent", needs=("beanstalkd",)))
    monkeypatch.setattr(install, "find", lambda name: None)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder, file = tmp_path / "folder", tmp_path / "found.json"
    folder.mkdir()
    assert runner.main(["--only", "taskq,absent", "--tasks", "300", "--rounds", "1", "--folder", str(folder), "--json", str(file)]) == 0
    said = capsys.readouterr()
    assert "2 peers, 1 rounds: about " in said.err
    found = json.loads(file.read_text())
    assert found["peers"]["absent"]["did_not_start"].startswith("beanstalkd is not installed: only root can install it")
    assert found["peers"]["absent"]["depths"] == {}
    assert "* Absent: did not start: beanstalkd is not installed" in said.out
    assert "| Absent | none | – |" in said.out
    (measured,) = found["peers"]["taskq"]["depths"]["300"]["rounds"]
    assert measured["trouble"] is None
    assert measured["values"].keys() >= report.FIGURES.keys()
    assert all(measured["values"][name] > 0 for name in report.FIGURES if name not in ("memory", "disk"))
    assert list(folder.iterdir()) == []
    for fact in ("commit=", "depths=[300]", "cpus=", "load_average=", "fdatasync_us="):
        assert fact in said.out


def test_a_picture_shows_who_was_not_measured(tmp_path: Path) -> None:
    from peers import plot

    found = {"taskq": {1_000: cell(1_000, {"drain": 400.0, "end_to_end": 10.0})}, "nats": {}}
    plot.draw([PEERS["taskq"], PEERS["nats"]], found, [1_000], tmp_path / "images" / "peers.svg")
    drawn = (tmp_path / "images" / "peers.svg").read_text()
    assert "<!-- not measured -->" in drawn
    assert "<!--  400 -->" in drawn


def test_a_machine_with_other_load_is_said_beside_the_result() -> None:
    assert "other programs used 40% of the CPUs meanwhile, load average 2.5 at the start" in runner.crowded({"load_average": 2.5}, 0.4)
    assert runner.crowded({"load_average": 0.1}, 0.02) == ""


def test_a_depth_that_a_peer_cannot_reach_is_not_measured_twice_and_the_estimate_knows() -> None:
    plan = runner.Plan([PEERS["taskq"], PEERS["rq"]], [100_000, 300_000], 5, 600, ".")
    assert plan.depths_of(PEERS["taskq"]) == [100_000, 300_000]
    assert plan.depths_of(PEERS["rq"]) == [100_000]
    once = attrs.evolve(plan, rounds=1)
    assert runner.estimate_s(plan) == pytest.approx(5 * runner.estimate_s(once))
    assert 60 < runner.estimate_s(once) < 600


def test_a_run_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "run.py"), "--only", "taskq", "--tasks", "1000000", "--rounds", "1", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        children = _children_with_a_client(psutil.Process(program.pid))
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=WAIT_S)
    assert program.returncode == 130, said
    assert "nothing was written" in said
    assert len(children) >= 2
    _, left = psutil.wait_procs(children, timeout=1)
    assert [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert list(tmp_path.iterdir()) == []


def _children_with_a_client(process: psutil.Process) -> list[psutil.Process]:
    """The programs of the run, once a client is among them."""
    while True:
        with suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            if any("taskq_client.py" in " ".join(child.cmdline()) for child in children):
                return children


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--only", "taskq,celary"), "no such peer: celary; there are taskq, celery, "),
        (("--depths", "many"), "--depths: numbers with commas between them, not 'many'"),
        (("--tasks", "5"), "at least 100 tasks"),
        (("--set", "celery.pol=solo"), "is not PEER.SETTING=VALUE with one of taskq.durability, "),
    ],
)
def test_arguments_that_are_wrong_are_refused_with_what_would_be_right(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        runner.main(arguments)
    assert says in capsys.readouterr().err
