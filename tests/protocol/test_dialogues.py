"""The dialogues of docs/protocol.md are held with a real broker, and are what the document shows, frame by frame."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import READY, Program, Start

sys.path.insert(0, str(Path(__file__).parent))

import conformance
from conformance import HELD, World, ack, cut_and_resume, enqueue_and_wait, expect, work

from taskq import testing
from taskq.core.followers import Crew

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
LINE = re.compile(r"^    (\w+) ([→←]) ([A-Z]+)(?: (\d+))?\b", re.M)


class Broker:
    """A broker process that can be stopped, killed and started again at the same address."""

    def __init__(self, start: Start, folder: Path) -> None:
        self._start, self._folder = start, folder
        self.address = "127.0.0.1:0"
        self.program: Program = self.begin()

    def begin(self) -> Program:
        options = ("--listen", self.address, "--http", "127.0.0.1:0", "--data", str(self._folder / "data"))
        self.program = self._start("broker", *options)
        self.address = self.program.wait_for(READY)["tcp"]
        return self.program


@pytest.fixture
def broker(start: Start, tmp_path: Path) -> Broker:
    return Broker(start, tmp_path)


@pytest.fixture
def world(broker: Broker) -> Iterator[World]:
    world = World(broker.address)
    yield world
    world.close()


def shown(name: str) -> list[tuple[str, str, str, int]]:
    """The dialogue under this heading in the document."""
    found = re.search(rf"^### {name}\n(.*?)(?=^##)", TEXT, re.M | re.S)
    assert found, f"no dialogue {name!r}"
    return [(who, way, kind, int(seq or 0)) for who, way, kind, seq in LINE.findall(found[1])]


@pytest.mark.parametrize(
    ("name", "dialogue"),
    [("A task is enqueued and waited for", enqueue_and_wait), ("A worker at work", work), ("A broken connection", cut_and_resume)],
)
def test_the_dialogues_are_held_as_they_are_shown(world: World, name: str, dialogue: Callable[[World], None]) -> None:
    dialogue(world)
    assert shown(name) == world.said


def test_a_restart_of_the_broker_is_as_it_is_shown(broker: Broker, world: World) -> None:
    producer, worker = world.connect("producer"), world.connect("worker")
    world.enqueue(producer, 1)
    world.subscribe(worker)
    deliver, _ = worker.push("DELIVER")
    broker.program.signal(signal.SIGKILL)
    broker.program.end()
    broker.begin()
    again = world.connect("worker")
    resumed, _ = again.ask("RESUME", [worker.session, worker.secret, 1, deliver[4]])
    expect("the task that runs", resumed[0], bytes([HELD]))
    again.ask("CONSUME", [[world.queue], ["work"], 1])
    again.say("CREDIT", [1])
    expect("the report", ack(again, deliver[3], deliver[4], "done"), HELD)
    assert shown("A restart of the broker") == world.said


def test_a_worker_and_a_broker_that_stop_are_as_they_are_shown(broker: Broker, world: World) -> None:
    producer, worker = world.connect("producer"), world.connect("worker")
    world.enqueue(producer, 1)
    world.enqueue(producer, 2)
    world.subscribe(worker, 2)
    first, _ = worker.push("DELIVER")
    second = first if len(first[0]) == 2 else worker.push("DELIVER")[0]
    worker.ask("CONSUME", [[], [], 0])
    expect("the report", ack(worker, first[3][:16], first[4][:8], "done"), HELD)
    worker.ask("RELEASE", [second[3][-16:], second[4][-8:], [0]])
    worker.ask("BYE", [])
    broker.program.signal(signal.SIGTERM)
    producer.push("GOAWAY")
    with pytest.raises(EOFError):
        producer.receive()
    assert shown("Stopping") == world.said


def test_the_limits_that_welcome_tells_are_named(world: World) -> None:
    (listed,) = re.findall(r"WELCOME\.`limits` tells them: ([^.]+)\.", TEXT)
    assert set(re.findall(r"`(\w+)`", listed)) == set(world.connect("producer").limits)


def test_a_broker_does_all_that_is_written(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.main(broker.address) == 0
    assert capsys.readouterr().out.count("as written") == len(conformance.DIALOGUES)


async def test_a_broker_that_does_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Crew, "ahead", lambda self, place: None)
    async with testing.broker(shards=8) as node:
        assert await asyncio.to_thread(conformance.main, node.tcp) == 1
    assert "preferred_queues: Wrong: the order" in capsys.readouterr().err
