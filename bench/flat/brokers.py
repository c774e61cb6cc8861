"""Real brokers for the parts of the flatness bench, and programs that open very many worker sessions to them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

sys.path.append(str(Path(__file__).parents[1] / "load"))

from children import Program
from figures import environment

HERE = Path(__file__).parent
PROGRAMS = 2


@attrs.frozen
class Broker:
    program: Program
    url: str
    data: Path


@contextmanager
def broker(folder: Path, *flags: str) -> Iterator[Broker]:
    """A broker with default settings and an empty data folder."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="taskq-bench-") as place:
        data = Path(place) / "data"
        own = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(data), *flags]
        with Program.installed("broker", *own, environ=environment()) as program:
            yield Broker(program, program.wait_for(r"^taskq-broker listening tcp=(\S+)")[1], data)


@attrs.frozen
class Crowd:
    """The programs that hold the sessions; each answers a line with what it has counted."""

    programs: Sequence[Program]

    def ask(self, what: str) -> list[dict[str, Any]]:
        for program in self.programs:
            program.say(what)
        return [program.last_words() for program in self.programs]

    def beats(self) -> int:
        return sum(int(words["beats"]) for words in self.ask("count"))


@contextmanager
def workers(running: Broker, count: int, *, queues: int = 1, credit: int = 0) -> Iterator[Crowd]:
    """So many worker sessions in one or two processes, all subscribed to the queues q0, q1 …"""
    shares = [share for share in (count - count // PROGRAMS, count // PROGRAMS) if share]
    with ExitStack() as stack:
        programs = [stack.enter_context(Program.python(HERE / "crowd.py", running.url, share, queues, credit)) for share in shares]
        for program in programs:
            program.wait_for("^ready")
        yield Crowd(programs)
