"""`Client`: the same as AsyncClient for code without an event loop.

A thread that has to be woken, and has to wake the caller, costs more than the whole rest of a call.  So the loop of a Client has no thread of its
own: who calls *leads*, which is to run the loop until the call has its answer.

    nobody else calls         lead; an enqueue does not even run the loop: it writes and reads the socket itself, as long as nothing else happens
    somebody leads            hand the call over to its loop, and wait; so the enqueues of several threads share frames
    nobody leads for QUIET_S,
    or calls are left behind  the *stand-in*, a thread, leads until the next caller wants to: heartbeats, new connections, the rest of the calls

Rules:
- Only who holds `lead` touches loop, client and socket.  A leader counts itself out after it has given the lead back, so no call is forgotten.
- A leader that a signal interrupts while it waits gives up its own call alone.  In the middle of something it leaves the connection half served,
  so that is given up, and the next call makes another.
- A handler of signals that calls in the middle of its own thread's call would wait for itself: RuntimeError.
- A call in a thread in which an event loop runs is refused (see loops.py); a Client may be made there, for other threads.
- All of it belongs to one process: a fork does not take the stand-in along, and makes a new connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import selectors
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar, Unpack

from taskq.batch import Encoded, encode_payload
from taskq.client import CLOSE_S, DEADLINE_S, NO_ARGUMENTS, AsyncClient, wait_for
from taskq.connection import Channel
from taskq.durations import Duration, seconds
from taskq.errors import BrokerUnavailable
from taskq.handle import TaskHandle, TaskInfo
from taskq.loops import refuse_on_loop
from taskq.options import EnqueueOptions, Options, of_call
from taskq.worker.registry import check_name

T = TypeVar("T")

QUIET_S = 0.5
# what asyncio names when the code of a callback has raised
CALLBACKS = {"handle", "protocol"}


class _Selector(selectors.DefaultSelector):
    """Knows whether it waits: only then an interrupt leaves nothing half done."""

    waiting = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.waiting = True
        ready = super().select(timeout)
        self.waiting = False
        return ready


class Gone(BrokerUnavailable, RuntimeError):
    """A handle outlives its client."""


class _Led:
    """An AsyncClient and its loop, which is run by whoever leads."""

    def __init__(self, client: AsyncClient) -> None:
        self.pid = os.getpid()
        self.client = client
        self.ended = False
        self._selector = _Selector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._loop.set_exception_handler(self._on_error)
        self._error: BaseException | None = None
        self._lead = threading.Lock()
        self._leader = 0
        self._counting = threading.Lock()
        self._callers = 0
        self._claimed = False
        self._standing_in = False
        self._needed = threading.Event()
        self._called_s = time.monotonic()
        self._last_words: concurrent.futures.Future[None] | None = None
        client.driver = self
        self._thread = threading.Thread(target=self._stand_in, name="taskq client", daemon=True)
        self._thread.start()

    # ---- calls

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it."""
        if self._enter(work):
            return self._lead_through(lambda: self._run_loop(self._loop.create_task(work)))
        return wait_for(self._hand_over(work))

    def submit(self, task_type: str, item: Encoded, options: Options) -> TaskHandle[Any]:
        """`AsyncClient.submit`."""
        if not self._enter():
            return wait_for(self._hand_over(self.client.submit(task_type, item, options)))

        def enqueue() -> TaskHandle[Any]:
            sent = self.client.submit_now(task_type, item, options)
            if sent is None:
                return self._run_loop(self._loop.create_task(self.client.submit(task_type, item, options)))
            return self._read_until(*sent)

        return self._lead_through(enqueue)

    def hand_over(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine on the loop while the caller goes on."""
        self._count_in(work)
        return self._hand_over(work)

    # ---- leading

    def _count_in(self, work: Coroutine[Any, Any, Any] | None = None) -> bool:
        """True if nobody else is in."""
        if self._leader == threading.get_ident():
            if work is not None:
                work.close()
            raise RuntimeError("a signal handler or a finaliser cannot use a client in the middle of another call of its thread; give it its own")
        with self._counting:
            if not self.ended and self.pid == os.getpid():
                self._callers += 1
                return self._callers == 1
        if work is not None:
            work.close()
        raise Gone("this handle's client was closed, or belongs to another process; ask by id with another client")

    def _enter(self, work: Coroutine[Any, Any, Any] | None = None) -> bool:
        """Count the caller in; True if it leads now, False if it has to hand its work over."""
        if not self._count_in(work):
            return False
        try:
            if not self._lead.acquire(blocking=False):
                self._claim()
        except BaseException:
            self._leave()
            raise
        self._leader = threading.get_ident()
        return True

    def _claim(self) -> None:
        """Wait until the stand-in has stepped back."""
        self._claimed = True
        try:
            with suppress(RuntimeError):  # the loop is closed: what comes next says so
                self._loop.call_soon_threadsafe(self._step_back)
            self._lead.acquire()
        finally:
            self._claimed = False

    def _lead_through(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except asyncio.CancelledError:
            raise BrokerUnavailable("the client was closed before the call had ended") from None
        finally:
            self._called_s = time.monotonic()
            self._leader = 0
            self._lead.release()
            self._leave()

    def _leave(self, _: object = None) -> None:
        with self._counting:
            self._callers -= 1
        if self._callers:
            self._needed.set()

    def _read_until(self, channel: Channel, future: asyncio.Future[T]) -> T:
        """Read the socket past the loop; whatever else happens is for the loop."""
        try:
            while not future.done():
                ready = self._selector.select(channel.patience_s())
                if len(ready) != 1 or ready[0][0].fd != channel.fd or not channel.read():
                    return self._run_loop(future)
        except BaseException:
            self._interrupted(future)
            raise
        return future.result()

    def _run_loop(self, future: asyncio.Future[T]) -> T:
        try:
            return self._loop.run_until_complete(future)
        except BaseException:
            if not future.done() or self._error is not None:
                self._interrupted(future)
            if self._error is not None:
                raise self._error from None
            raise

    def _interrupted(self, future: asyncio.Future[Any]) -> None:
        if future.done() and self._error is None:
            return  # the error is the call's own
        future.cancel()
        if self._selector.waiting and self._error is None:
            self._selector.waiting = False
        else:
            self.end(wait=False)

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: a bug, or a signal's handler that wants out of what the leader does."""
        error = context.get("exception")
        if threading.current_thread() is self._thread or not isinstance(error, BaseException) or not context.keys() & CALLBACKS:
            loop.default_exception_handler(context)
        else:
            self._error = error
            loop.stop()

    # ---- handing over

    def _hand_over(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            self._leave()
            raise BrokerUnavailable("the client was closed before the call had ended") from None
        future.add_done_callback(self._leave)
        if not self._lead.locked():
            self._needed.set()
        return future

    def _step_back(self) -> None:
        if self._standing_in:
            self._loop.stop()

    def _stand_in(self) -> None:
        """The thread in the background."""
        while not self.ended:
            needed = self._needed.wait(QUIET_S) or time.monotonic() - self._called_s >= QUIET_S
            self._needed.clear()
            if needed and not self.ended and not self._claimed and self._lead.acquire(blocking=False):
                self._run_forever()
                if self._callers and not self._claimed:
                    self._needed.set()
        with self._lead:
            self._close_loop()

    def _run_forever(self) -> None:
        self._standing_in = True
        try:
            self._loop.run_forever()
        finally:
            self._standing_in = False
            self._lead.release()

    # ---- the end

    def end(self, *, wait: bool = True, bye_s: float = CLOSE_S) -> None:
        """Close the connection, refuse what is not answered, end the thread."""
        with self._counting:
            first, self.ended = not self.ended, True
        if first:
            self._last_words = asyncio.run_coroutine_threadsafe(self._finish(bye_s), self._loop)
            self._loop.call_soon_threadsafe(self._step_back)
            self._needed.set()
        if wait:
            self._thread.join()

    def _close_loop(self) -> None:
        """Let the farewell end, and whatever came in behind it."""
        try:
            if self._last_words is not None:
                self._loop.run_until_complete(asyncio.wrap_future(self._last_words, loop=self._loop))
            self._loop.run_until_complete(self._finish(0.0))
        finally:
            self._loop.close()

    async def _finish(self, bye_s: float) -> None:
        """Close, and end the calls of other threads that would go on to another step, for which nobody is there any more."""
        await self.client.close(bye_s)
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self.client.close(bye_s)


class Client:
    """The same as AsyncClient for code without an event loop: each call blocks until it is answered or its deadline has passed.

    May be used from several threads, whose enqueues share frames, and after a fork.  Handles are followed with their `_sync` methods, or with
    `client.result(handle)`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        deadline: Duration = DEADLINE_S,
        name: str = "",
        tls_ca: str | None = None,
    ) -> None:
        self._make: Callable[[], AsyncClient] = lambda: AsyncClient(url, token=token, deadline=deadline, name=name, tls_ca=tls_ca)
        self._lock = threading.Lock()
        self._led: _Led | None = None
        self.address = self._make().address

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client has a connection and cannot be pickled; make one in the other process")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: Duration = CLOSE_S) -> None:
        """Close the connection and end the thread, for which a caller on a running event loop does not wait.  Another call connects again."""
        with self._lock:
            led, self._led = self._led, None
        if led is not None and led.pid == os.getpid():
            led.end(wait=asyncio._get_running_loop() is None, bye_s=seconds(timeout, "timeout"))

    def run(self, work: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the AsyncClient and wait for it."""
        refuse_on_loop("the same call of AsyncClient")
        led = self._open()
        return led.run(work(led.client))

    def submit(self, task_type: str, item: Encoded, options: Options) -> TaskHandle[Any]:
        """`enqueue` for an encoded payload and checked options."""
        refuse_on_loop("AsyncClient.enqueue(…)")
        return self._open().submit(task_type, item, options)

    def _open(self) -> _Led:
        led = self._led
        if led is None or led.ended or led.pid != os.getpid():
            with self._lock:
                led = self._led
                if led is None or led.ended or led.pid != os.getpid():
                    led = self._led = _Led(self._make())
        return led

    def enqueue(self, task_type: str, payload: Any = NO_ARGUMENTS, **options: Unpack[EnqueueOptions]) -> TaskHandle[Any]:
        check_name(task_type, "task_type")
        refuse_on_loop("AsyncClient.enqueue(…)")
        item, types = encode_payload(payload, task_type), self._open().client.declared
        said = of_call(task_type, options, types.known(task_type))
        return self.submit(task_type, item, said if types.is_fresh else self.run(lambda client: client.options_by_name(task_type, options)))

    def enqueue_many(self, task_type: str, payloads: Iterable[Any], **options: Unpack[EnqueueOptions]) -> list[TaskHandle[Any]]:
        return self.run(lambda client: client.enqueue_many(task_type, payloads, **options))

    def get(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        return self.run(lambda client: client.get(task, timeout))

    def wait(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        return self.run(lambda client: client.wait(task, timeout))

    def result(self, task: Any, timeout: Duration | None = None) -> Any:
        return self.run(lambda client: client.result(task, timeout))

    def cancel(self, task: Any, timeout: Duration | None = None) -> str:
        return self.run(lambda client: client.cancel(task, timeout))

    def queues(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        return self.run(lambda client: client.queues(timeout))

    def task_types(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        return self.run(lambda client: client.task_types(timeout))

    def workers(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        return self.run(lambda client: client.workers(timeout))

    def broker(self, timeout: Duration | None = None) -> dict[str, Any]:
        return self.run(lambda client: client.broker(timeout))
