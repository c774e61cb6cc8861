"""A network that can be made to fail: a TCP proxy of frames, on a loop and in a thread of its own.

proxy.hole(seconds)   nothing gets through, and nobody is told, as in a network that swallows packets; what was sent arrives afterwards
proxy.cut()           all connections break
proxy.lose(n)         the next n frames of some connection are gone, each way, and the connection stays; `double`: they come twice
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import suppress

READ_BYTES = 64 << 10
LENGTH_BYTES = 4


class Proxy:
    """From a free port of this host to `target` (host:port)."""

    def __init__(self, target: str, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._open.set()
        self._pairs: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._spoiled: list[int] = []
        self.address = ""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        ready.wait()

    # ---- called from outside

    def hole(self, seconds: float) -> None:
        self._do(self._open.clear)
        self._do(lambda: self._loop.call_later(seconds, self._open.set))

    def cut(self) -> None:
        self._do(self._cut)

    def lose(self, frames: int) -> None:
        self._do(lambda: self._spoiled.extend([0] * frames))

    def double(self, frames: int) -> None:
        self._do(lambda: self._spoiled.extend([2] * frames))

    def heal(self) -> None:
        self._do(self._open.set)
        self._do(self._spoiled.clear)

    def close(self) -> None:
        self._do(self._loop.stop)
        self._thread.join()

    def _do(self, work: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(work)

    # ---- on the loop

    def _run(self, ready: threading.Event) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        host, port = self._target.rsplit(":", 1)
        try:
            there, back = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            self._writers -= {writer, back}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Frame by frame, as long as both ends are there; the end of one is told to the other when it can be."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                length = await reader.readexactly(LENGTH_BYTES)
                frame = length + await reader.readexactly(int.from_bytes(length, "big"))
                await self._open.wait()
                writer.write(frame * self._times())
                await writer.drain()
        await self._open.wait()
        writer.close()

    def _times(self) -> int:
        return self._spoiled.pop() if self._spoiled and self._rng.random() < 0.5 else 1
