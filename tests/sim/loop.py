"""An event loop in virtual time, and the processes that live on it.

Nothing here waits: when no callback is ready, the clock moves to the next timer.  Every callback belongs to the process in whose context it was
scheduled, so a process can be killed (its callbacks are dropped, it does nothing more) and frozen (they wait, as after SIGSTOP).  The order of
callbacks is a function of what was scheduled, so a run is a function of its seed.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

# what one round of the loop costs: time always goes on, as on a real machine
ROUND_S = 1e-6

_OWNER: contextvars.ContextVar[Process | None] = contextvars.ContextVar("owner", default=None)


class Process:
    """Something that can be killed or frozen as a whole."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.loop = loop
        self.alive = True
        self.frozen = False
        self.silent = False
        self.context = contextvars.Context()
        self.context.run(_OWNER.set, self)
        self._held: list[_Gate] = []

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self.loop.create_task(work, context=self.context)

    def soon(self, callback: Callable[..., object], *args: Any) -> None:
        self.loop.call_soon(callback, *args, context=self.context)

    def kill(self) -> None:
        self.alive = False
        self._held.clear()

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        """Go on with what has waited, in the order in which it was due."""
        self.frozen = False
        held, self._held = self._held, []
        for gate in held:
            asyncio.BaseEventLoop.call_soon(self.loop, gate, context=gate.context)


class _Gate:
    """A callback of a process."""

    __slots__ = ("args", "callback", "context", "handle", "process")

    def __init__(self, process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self.process, self.callback, self.args, self.context = process, callback, args, context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if not self.process.alive or (self.handle is not None and self.handle.cancelled()):
            return
        if self.process.frozen:
            self.process._held.append(self)
        else:
            self.callback(*self.args)


class _Selector:
    """In the place of the kernel: waiting is moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing is scheduled any more: the simulation waits for ever")
        self._loop.seconds += max(timeout, 0.0) + ROUND_S
        return []


def _too_late(work: Any, timeout: float | None) -> Any:
    """In the place of `wait_for` for whoever is closed: nothing is waited for any more."""
    work.close()
    raise RuntimeError("the simulation is over")


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module.  `network` answers `create_connection` and `create_server`."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.network: Any = None
        self._selector = _Selector(self)
        # kept for the whole run, so that no task of a killed process is finalised in the middle of it
        self._kept: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self.seconds

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        process = context.get(_OWNER)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        gate = _Gate(process, callback, args, context)
        gate.handle = super().call_soon(gate, context=context)
        return gate.handle

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        process = context.get(_OWNER)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        gate = _Gate(process, callback, args, context)
        handle = super().call_at(when, gate, context=context)
        gate.handle = handle
        return handle

    call_soon_threadsafe = call_soon

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        context, owner = options.get("context"), _OWNER.get()
        if context is not None and owner is not None and _OWNER not in context:
            context.run(_OWNER.set, owner)  # a context of its own, but no other process
        task = super().create_task(coro, **options)
        task._log_destroy_pending = False
        self._kept.append(task)
        if len(self._kept) > 1_000:
            self._kept = [kept for kept in self._kept if not kept.done()]
        return task

    def discard(self) -> None:
        """The end: whatever still waits is closed, and nothing that it schedules on its way out is run."""
        waiting, asyncio.wait_for = asyncio.wait_for, _too_late
        try:
            for task in self._kept:
                if not task.done():
                    with suppress(Exception):
                        task.get_coro().close()
        finally:
            asyncio.wait_for = waiting
        self._kept.clear()
        self.close()

    def run_in_executor(self, executor: Any, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Done at once: what would block here belongs to the simulation."""
        future = self.create_future()
        future.set_result(work(*args))
        return future

    async def create_connection(self, factory: Any, host: str, port: int, ssl: None = None) -> Any:
        return await self.network.connect(_OWNER.get(), factory, port)

    async def create_server(self, factory: Any, host: str, port: int, **options: Any) -> Any:
        return self.network.serve(_OWNER.get(), factory, (host, port))

    def _process_events(self, events: list[Any]) -> None:
        """There are none: all that happens is a callback."""
