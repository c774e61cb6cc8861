"""The programs of a part of the flatness bench: one broker that can be killed and started again on the same folder, its producer, its worker."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
from children import Program
from figures import environment
from notes import Notes
from producer import QUEUE, Wish

import taskq
from taskq import Client

HERE = Path(__file__).parent
PAYLOAD_BYTES = 150
LOOK_S = 0.002
PEAK_S = 0.05
SETTLE_S = 0.1
WAIT_S = 900.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class House:
    """`notes` has what ran, in its order.  `frames`: the first numbers of what was enqueued, in the broker's order.  `peak_bytes`: the
    highest RSS that the broker was seen to have."""

    def __init__(self, folder: Path, notes_max: int) -> None:
        self.data = folder / "data"
        self.url = f"127.0.0.1:{free_port()}"
        self._notes_path = folder / "notes"
        self.notes = Notes.make(self._notes_path, notes_max)
        self.frames: list[int] = []
        self.peak_bytes = 0
        self._over = threading.Event()
        self._broker: Program | None = None
        self._producer: Program | None = None
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    # ---- the broker

    @property
    def broker(self) -> Program:
        assert self._broker is not None
        return self._broker

    def start(self) -> None:
        # the one setting that is not its default: a little more than ten million wait for the deepest window
        flags = ["--listen", self.url, "--http", "127.0.0.1:0", "--data", str(self.data), "--queue-tasks-max", "0"]
        self._broker = Program.installed("broker", *flags, environ=environment())

    def ready(self) -> None:
        self.broker.wait_for(r"^taskq-broker listening", WAIT_S)

    def kill(self) -> None:
        """As the kernel would, in the middle of what it does."""
        self._end_producer()
        os.kill(self.broker.pid, signal.SIGKILL)
        broker, self._broker = self.broker, None
        broker._end()

    def _look(self) -> None:
        while not self._over.wait(PEAK_S):
            broker = self._broker
            if broker is not None:
                try:
                    self.peak_bytes = max(self.peak_bytes, broker.rss_bytes())
                except psutil.Error:
                    continue

    # ---- its clients

    def enqueue(self, wish: Wish) -> float:
        """Tasks a second."""
        if self._producer is None:
            path = f"{HERE}{os.pathsep}{HERE.parent / 'load'}{os.pathsep}{Path(taskq.__file__).parents[1]}"
            command = [sys.executable, str(HERE / "producer.py"), self.url, str(PAYLOAD_BYTES)]
            self._producer = Program(command, {**environment(), "PYTHONPATH": path}, HERE)
            self._producer.wait_for("^ready", WAIT_S)
        self._producer.say(json.dumps(attrs.asdict(wish)))
        found = self._producer.last_words(WAIT_S)
        self.frames += found["frames"]
        return wish.tasks / float(found["seconds"])

    def _end_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.__exit__(None)

    @contextmanager
    def worker(self, *, early: bool = False) -> Iterator[Program]:
        """`early`: the broker is not there yet, which the worker may say."""
        environ = {**environment(), "FLAT_NOTES": str(self._notes_path)}
        environ["PYTHONPATH"] = f"{environ['PYTHONPATH']}{os.pathsep}{HERE}"
        command = [sys.executable, str(Path(sys.executable).with_name("taskq-worker")), "--connect", self.url, "--app", "notes"]
        program = Program(command, environ, HERE)
        try:
            yield program
        except BaseException:
            program._end()
            raise
        program._end() if early else program.__exit__(None)

    def wait_for_notes(self, count: int, limit_s: float = WAIT_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while len(self.notes) < count:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{len(self.notes):,} of {count:,} tasks ran in {limit_s:g} s")
            time.sleep(LOOK_S)

    def drain(self, tasks: int) -> float:
        """Tasks a second while so many run, from the first of them on."""
        self.settle()
        before = len(self.notes)
        with self.worker():
            self.wait_for_notes(before + 1)
            first, began_s = len(self.notes), time.monotonic()
            self.wait_for_notes(first + tasks)
            seconds = time.monotonic() - began_s
            return (len(self.notes) - first) / seconds

    def settle(self) -> None:
        """Until the store has everything, so that each window begins with nothing left to do."""
        with Client(self.url) as client:
            while True:
                row = client.broker()
                if row["applied_lsn"] == row["journal_lsn"]:
                    return
                time.sleep(SETTLE_S)

    def counts(self) -> dict[str, Any]:
        with Client(self.url) as client:
            return next((row for row in client.queues() if row["queue"] == QUEUE), {})

    def end(self) -> None:
        self._end_producer()
        if self._broker is not None:
            self._broker.__exit__(None)
            self._broker = None

    def close(self) -> None:
        self._over.set()
        self._watch.join()
        for program in (self._producer, self._broker):
            if program is not None:
                program._end()


@contextmanager
def house(folder: Path, notes_max: int) -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir=folder, prefix="taskq-bench-") as place:
        made = House(Path(place), notes_max)
        try:
            yield made
            made.end()
        finally:
            made.close()
