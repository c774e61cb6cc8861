"""A scripted peer that speaks the broker's side of the protocol, for what a real broker does only on bad days: forgetting sessions, not
answering, breaking connections between a report and its answer.  `test_node.py` runs the same worker against the real one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from taskq import ids, serial
from taskq.core import messages as m
from taskq.protocol.codec import encode
from taskq.protocol.frames import RESENT, Frame
from taskq.protocol.framing import FrameDecoder
from taskq.worker.settings import WorkerConfig

HEARTBEAT_MS = 200
EXPECT_S = 10.0


class Peer(asyncio.Protocol):
    """One connection to the scripted broker."""

    def __init__(self, broker: ScriptedBroker) -> None:
        self.broker = broker
        self.decoder = FrameDecoder(1 << 26)
        self.role = ""
        self.session = b""
        self.delivered = 0
        self.allowed = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.broker.peers.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.broker.peers.remove(self)

    def data_received(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            self.broker.handle(self, frame)

    def send(self, message: Any, seq: int = 0) -> None:
        self.transport.write(b"".join(encode(message, seq, 0)))


class ScriptedBroker:
    """`leases`: current tokens, by which heartbeats, resumes and reports are judged.  `silent`: reports are not answered."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.leases: dict[bytes, bytes] = {}
        self.cancelled: set[bytes] = set()
        self.silent = False
        self.forgetful = False
        self.delivered = 0
        self.seen: list[tuple[str, Frame]] = []
        self._read = 0
        self._news = asyncio.Event()
        self._number = 0
        self._answers: dict[type, Callable[[Peer, Any], Any]] = {
            m.Hello: self._hello,
            m.Resume: self._resume,
            m.Heartbeat: self._heartbeat,
            m.Ack: self._report,
            m.Fail: self._report,
            m.Release: self._report,
            m.Credit: self._credit,
        }

    async def start(self) -> None:
        self.server = await asyncio.get_running_loop().create_server(lambda: Peer(self), "127.0.0.1", 0)
        self.url = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self.server.close()
        self.break_connections()
        await asyncio.sleep(0)

    def break_connections(self) -> None:
        for peer in self.peers:
            peer.transport.abort()

    def handle(self, peer: Peer, frame: Frame) -> None:
        answer = self._answers.get(type(frame.message), self._ok)(peer, frame.message)
        if answer is not None:
            peer.send(answer, frame.seq)
        if type(frame.message) is m.Bye:
            peer.transport.close()
        self.seen.append((peer.role, frame))
        self._news.set()

    def _ok(self, peer: Peer, message: Any) -> m.Ok:
        return m.Ok()

    def _hello(self, peer: Peer, message: m.Hello) -> m.Welcome:
        self._number += 1
        peer.role, peer.session = message.role, self._number.to_bytes(16, "big")
        return m.Welcome(peer.session, b"k" * 32, 0, 1, HEARTBEAT_MS, 3 * HEARTBEAT_MS)

    def _resume(self, peer: Peer, message: m.Resume) -> m.Resumed | m.Error:
        if self.forgetful:
            self.leases.clear()
            self.delivered = 0
            return m.Error("NOT_FOUND", "no such session")
        peer.session, self.delivered = message.session, message.received
        held = ids.split(message.tokens, ids.TOKEN_BYTES)
        return m.Resumed(bytes(m.LOST if token not in self.leases else m.KEPT for token in held))

    def _heartbeat(self, peer: Peer, message: m.Heartbeat) -> m.Beat:
        peer.allowed = max(peer.allowed, message.allowed)
        held = ids.split(message.tokens, ids.TOKEN_BYTES)
        lost = [token for token in held if token not in self.leases]
        return m.Beat(b"".join(lost), b"".join(token for token in held if token in self.cancelled))

    def _report(self, peer: Peer, message: Any) -> m.Reported | None:
        if self.silent:
            return None
        tokens = ids.split(message.tokens, ids.TOKEN_BYTES)
        return m.Reported(bytes(m.REPORT_OK if self.leases.pop(token, None) else m.REPORT_LEASE_LOST for token in tokens))

    def _credit(self, peer: Peer, message: m.Credit) -> None:
        peer.allowed = message.allowed

    # ---- what tests do

    @property
    def worker(self) -> Peer:
        return next(peer for peer in self.peers if peer.role == "worker")

    def deliver(self, *calls: tuple[str, list[Any]], timeout_ms: int = 0) -> list[bytes]:
        """Hand these tasks to the worker; their tokens."""
        tokens = []
        for _ in calls:
            self._number += 1
            tokens.append(self._number.to_bytes(8, "big"))
        task_ids = [bytes(8) + token for token in tokens]
        self.leases.update(zip(tokens, task_ids, strict=True))
        payloads: list[Any] = [serial.encode(args) for _, args in calls]
        types = [task_type for task_type, _ in calls]
        first, self.delivered = self.delivered + 1, self.delivered + len(calls)
        self.worker.send(m.Deliver(payloads, "default", first, b"".join(task_ids), b"".join(tokens), types, [m.MSGPACK], [1], [timeout_ms]))
        return tokens

    async def expect(self, cls: type, role: str = "worker", resent: bool | None = None) -> Any:
        """The next message of this kind among those not looked at yet."""
        async with asyncio.timeout(EXPECT_S):
            while True:
                while self._read < len(self.seen):
                    seen_role, frame = self.seen[self._read]
                    self._read += 1
                    flagged = bool(frame.flags & RESENT)
                    if seen_role == role and type(frame.message) is cls and resent in (None, flagged):
                        return frame.message
                self._news.clear()
                await self._news.wait()

    def rewind(self) -> None:
        self._read = 0


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest keeps each record of the log, with the frames of its exception, and cannot carry what is no Unicode."""
    monkeypatch.setattr(logging.getLogger("taskq.worker.tasks"), "disabled", True)


@pytest.fixture
async def broker() -> AsyncIterator[ScriptedBroker]:
    broker = ScriptedBroker()
    await broker.start()
    yield broker
    await broker.stop()


# a worker that nobody listens to stands still in the middle of a line
SAID_BYTES_MAX = 64 << 20


class Worker:
    """A `taskq-worker` process."""

    def __init__(self, directory: Path, app: str) -> None:
        self.directory = directory
        self.app = app
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, url: str, **options: Any) -> None:
        config = WorkerConfig(url, **{"app": self.app, "concurrency": 4, "drain_s": 5.0, **options})
        code = (
            "import sys; from taskq.worker import keeper; from taskq.worker.settings import WorkerConfig; "
            "keeper.STOP_GRACE_S = 0.5; sys.exit(keeper.main(WorkerConfig.load(sys.argv[1])))"
        )
        path = os.pathsep.join([str(self.directory), os.getcwd(), os.environ.get("PYTHONPATH", "")])
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            config.dump(),
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": path},
            stderr=asyncio.subprocess.PIPE,
            limit=SAID_BYTES_MAX,
        )

    async def end(self) -> tuple[int, str]:
        assert self.process is not None
        async with asyncio.timeout(20):
            _, errors = await self.process.communicate()
        return self.process.returncode or 0, (errors or b"").decode()

    async def stop(self) -> tuple[int, str]:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return await self.end()


@pytest.fixture
async def worker(tmp_path: Path, app_source: tuple[str, str]) -> AsyncIterator[Worker]:
    """A worker process, not started yet; the test module's `app_source` is the name of its app's module and the text of it."""
    name, text = app_source
    (tmp_path / f"{name}.py").write_text(text)
    worker = Worker(tmp_path, name)
    yield worker
    if worker.process is not None and worker.process.returncode is None:
        with suppress(ProcessLookupError):
            worker.process.kill()
        await worker.process.communicate()
