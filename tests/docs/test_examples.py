"""The examples of the documents do what they say: each document is followed from its first block to its last, with real programs.

Two things are changed on the way, so that a test disturbs nobody: the ports 7000 and 3000 become free ones, in commands, code and answers; and
every document has a folder of its own to work in.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from blocks import LANGUAGES, Block, Command, blocks, commands, documents, pattern
from programs import WAIT_S, Program, Spawn, environment

PORTS = ("7000", "3000")
# below those that the kernel gives to outgoing connections
PORTS_FROM = range(20_000, 32_000)


def free_port(rng: random.Random) -> str:
    while True:
        port = rng.choice(PORTS_FROM)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return str(port)


@attrs.define
class Reader:
    """Somebody who follows a document."""

    folder: Path
    spawn: Spawn
    ports: dict[str, str]
    running: list[Program] = attrs.field(factory=list)

    def adapted(self, text: str) -> str:
        for printed, real in self.ports.items():
            text = re.sub(rf":{printed}\b", f":{real}", text)
        return text

    @property
    def environ(self) -> dict[str, str]:
        tcp, http = self.ports["7000"], self.ports["3000"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return environment(PATH=path, TASKQ_URL=f"localhost:{tcp}", TASKQ_LISTEN=f"127.0.0.1:{tcp}", TASKQ_HTTP=f"127.0.0.1:{http}")

    def follow(self, block: Block) -> None:
        {"file": self.save, "run": self.run, "start": self.start, "pytest": self.test, "not run": self.pass_over}[block.verb](block)

    def save(self, block: Block) -> None:
        (self.folder / block.what).write_text(self.adapted(block.text))

    def pass_over(self, block: Block) -> None:
        assert block.what, "why it is not run must be said"

    def run(self, block: Block) -> None:
        if block.language == "python":
            self._end_well([sys.executable, "-c", self.adapted(block.text)])
            return
        for command in commands(block):
            said = self._end_well(["bash", "-c", self.adapted(command.text)])
            assert re.fullmatch(pattern(self.adapted(command.says)), said.strip(), re.S), said

    def _end_well(self, command: list[str]) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, block: Block) -> None:
        if block.what:
            self.stop()
        for command in commands(block):
            self.running.append(self._started(command))

    def _started(self, command: Command) -> Program:
        program = self.spawn(["bash", "-c", f"exec {self.adapted(command.text)}"], self.environ)
        for line in filter(None, map(str.strip, self.adapted(command.says).splitlines())):
            program.wait_for(pattern(line))
        return program

    def test(self, block: Block) -> None:
        (self.folder / "test_example.py").write_text(self.adapted(block.text))
        options = ("-p", "no:cacheprovider", "--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
        assert re.search(r"\b1 passed", self._end_well([sys.executable, "-m", "pytest", "-q", *options, "test_example.py"]))

    def stop(self) -> None:
        """Ctrl-C for all that runs, the last one first."""
        while self.running:
            program = self.running.pop()
            program.signal(signal.SIGINT)
            assert program.end() == 0, program.errors


@pytest.fixture
def reader(spawn: Spawn, tmp_path: Path) -> Reader:
    rng = random.Random()
    return Reader(tmp_path, spawn, {port: free_port(rng) for port in PORTS})


def with_examples() -> list[str]:
    return [document for document in documents() if any(block.verb not in ("", "not run") for block in blocks(document))]


@pytest.mark.parametrize("document", with_examples())
def test_the_examples_of_a_document_do_what_it_says(document: str, reader: Reader) -> None:
    for block in blocks(document):
        if block.verb:
            try:
                reader.follow(block)
            except AssertionError as error:
                raise AssertionError(f"{document}, line {block.line}: {error}") from error
    reader.stop()


def test_the_readme_is_among_them() -> None:
    assert "README.md" in with_examples()


@pytest.mark.parametrize("document", documents())
def test_every_example_says_whether_it_is_run(document: str) -> None:
    silent = [block.line for block in blocks(document) if block.language in LANGUAGES and not block.verb]
    assert not silent, f"{document}: the blocks at lines {silent} need a comment such as <!-- run --> above them"
