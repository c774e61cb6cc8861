"""Enqueue tasks and follow them: `AsyncClient`, for code on an event loop; for the rest there is `Client` in `blocking.py`.

    async with AsyncClient("localhost:7000") as client:
        handle = await client.enqueue("send_email", {"to": "user@example.com"}, queue="email", delay="5m")
        await handle.result(timeout=600)

Rules:
- A client makes the ids itself, so everything may be sent again after a broken connection without making a second task.
- Enqueues of one turn of the loop leave in one frame per queue (at most 1,000 tasks or 1 MiB); at most 256 frames are in flight, the rest waits.
- Every call has a deadline, `deadline=` or `timeout=`, else that of the client, and never hangs: BrokerUnavailable.  Whether an enqueue that ended
  so was applied is unknown.
- A payload is a dict (arguments by name), a list or tuple (by position), bytes (raw, the only argument), or one other value.

It knows neither functions nor signatures; `app.py` does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TypeVar, Unpack, cast

import attrs

from taskq import ids
from taskq.batch import Batch, Encoded, encode_payload, enqueue_message, frames
from taskq.connection import Address, Channel, Untrusted, address_from_environment, hello, token_or_environment
from taskq.core import messages as m
from taskq.declared import Declared
from taskq.durations import Duration, seconds
from taskq.errors import BrokerUnavailable, NotFound, PayloadTooLarge, TaskqError, from_wire
from taskq.handle import EnqueueError, TaskHandle, TaskInfo
from taskq.options import EnqueueOptions, Options, check_id, of_call
from taskq.protocol.link import CLOSED, NO_BROKER, READY, Answered, Closed, Event, Ready, Refused
from taskq.waits import Waits
from taskq.worker.registry import check_name

T = TypeVar("T")

NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})
PAYLOAD_BYTES_MAX = 1 << 20
BULK_FRAMES_MAX = 16
DEADLINE_S = 10.0
CLOSE_S = 2.0
CANCEL_WORDS = {m.CANCEL_DONE: "cancelled", m.CANCEL_REQUESTED: "requested", m.CANCEL_ALREADY_FINAL: "already_final"}


def raw_id(task: Any) -> bytes:
    """The 16 bytes behind a handle or an id."""
    return task.raw if isinstance(task, TaskHandle) else check_id(task)


class Driver(Protocol):
    """Who runs the loop of a client that belongs to no running loop."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop, block the caller's thread."""
        ...

    def hand_over(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run on the client's loop, while the caller goes on."""
        ...


class AsyncClient:
    """A connection to the broker for code on one event loop; it connects at the first use and again whenever the connection breaks.

    `url`: `host:port`, `taskq://host:port`, or `tls://host:port` for TLS; default `TASKQ_URL`, else localhost:7000.  `token`: the access token
    for a broker that asks for one, default `TASKQ_TOKEN`; it is proved, and never sent.  `deadline`: how long a call tries, unless it says.
    `tls_ca`: a file with the authorities (PEM) that may have signed the broker's certificate; default `TASKQ_TLS_CA`, else those of the system."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        deadline: Duration = DEADLINE_S,
        name: str = "",
        rng: random.Random | None = None,
        tls_ca: str | None = None,
    ) -> None:
        self.address = address_from_environment() if url is None else Address.parse(url)
        self.address.context(tls_ca)  # what cannot be used is said now
        self._tls_ca = tls_ca
        self._token = token_or_environment(token)
        self.deadline_s = seconds(deadline, "deadline")
        self.loop: asyncio.AbstractEventLoop | None = None
        self.driver: Driver | None = None
        self._name = name
        self._rng = rng or random.Random()
        self._channel: Channel | None = None
        self._greeted: asyncio.Future[None] | None = None
        self._welcomed = False
        self._offset_ms = 0
        self._payload_bytes_max = PAYLOAD_BYTES_MAX
        self._batches: dict[tuple[str, float, bool], Batch] = {}
        self._flushing = False
        self._waits: Waits | None = None
        self.declared = Declared(self.task_types)
        self._slot_of = lru_cache(maxsize=1_024)(ids.slot_of_queue)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncClient has a connection and cannot be pickled; make one in the other process")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, timeout: Duration = CLOSE_S) -> None:
        """Close the connection; calls that are not answered yet raise BrokerUnavailable.  Another call connects again.  `timeout`: how long the
        broker has to answer the goodbye."""
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            batch.refuse(BrokerUnavailable("the client was closed before the task was sent"))
        channel, self._channel = self._channel, None
        self._tell_waiting(BrokerUnavailable("the client was closed before the broker greeted"))
        self._welcomed = False
        if channel is not None:
            await channel.stop(bye_s=seconds(timeout, "timeout"))

    # ---- enqueue

    async def enqueue(self, task_type: str, payload: Any = NO_ARGUMENTS, **options: Unpack[EnqueueOptions]) -> TaskHandle[Any]:
        """Enqueue one task; returns when it is as durable as its queue asks.  Raises the typed refusal, TypeError, ValueError, BrokerUnavailable."""
        check_name(task_type, "task_type")
        item = encode_payload(payload, task_type)
        return await self.submit(task_type, item, await self.options_by_name(task_type, options))

    async def enqueue_many(self, task_type: str, payloads: Iterable[Any], **options: Unpack[EnqueueOptions]) -> list[TaskHandle[Any]]:
        """Enqueue one task for each payload, in order.  Bad arguments are refused before anything is sent.  If the broker refuses some of the
        tasks the others stay enqueued, and EnqueueError tells which; if it cannot be reached for any of them, BrokerUnavailable."""
        check_name(task_type, "task_type")
        items = [encode_payload(payload, task_type) for payload in payloads]
        return await self.submit_many(task_type, items, await self.options_by_name(task_type, options))

    async def options_by_name(self, task_type: str, said: EnqueueOptions) -> Options:
        """Those of an enqueue by name: what is not said is as the function was declared.  To ask the broker for that takes of the same deadline."""
        options = of_call(task_type, said, self.declared.known(task_type))
        if self.declared.is_fresh:
            return options
        deadline_s = self.deadline_s if options.deadline_s is None else options.deadline_s
        self._open()
        if not self._welcomed:
            deadline_s = await self._greet(deadline_s)
        began = time.monotonic()
        await self.declared.learn(deadline_s)
        return attrs.evolve(of_call(task_type, said, self.declared.known(task_type)), deadline_s=_left_s(deadline_s, began))

    async def submit(self, task_type: str, item: Encoded, options: Options) -> TaskHandle[Any]:
        """`enqueue` for an encoded payload and checked options."""
        deadline_s = self.deadline_s if options.deadline_s is None else options.deadline_s
        self._open()
        if not self._welcomed:
            deadline_s = await self._greet(deadline_s)
        return await self._add(self._open(), task_type, item, options, deadline_s)

    def submit_now(self, task_type: str, item: Encoded, options: Options) -> tuple[Channel, asyncio.Future[TaskHandle[Any]]] | None:
        """`submit` at once, for who drives the loop and is outside of it: sent, to be read with `Channel.read`.  None if only the loop can do it."""
        channel = self._channel
        if channel is None or not self._welcomed or channel.fd < 0:
            return None
        future = self._add(channel, task_type, item, options, self.deadline_s if options.deadline_s is None else options.deadline_s)
        self._flush()
        return channel, future

    def _add(self, channel: Channel, task_type: str, item: Encoded, options: Options, deadline_s: float) -> asyncio.Future[TaskHandle[Any]]:
        """Into the batch that leaves with this turn."""
        size = len(item[0])
        if size > self._payload_bytes_max:
            raise self._too_large(task_type, size)
        key = options.queue, deadline_s, options.id is not None
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = Batch(*key)
            if not self._flushing:
                self._flushing = True
                channel.loop.call_soon(self._turn_over)
        future: asyncio.Future[TaskHandle[Any]] = channel.loop.create_future()
        batch.items.append(item)
        batch.task_types.append(task_type)
        batch.options.append(options)
        batch.futures.append(future)
        batch.size_bytes += size
        if batch.full:
            self._send(self._batches.pop(key))
        return future

    async def submit_many(self, task_type: str, items: Sequence[Encoded], options: Options) -> list[TaskHandle[Any]]:
        """`enqueue_many` for encoded payloads and checked options."""
        if options.key is not None or options.id is not None:
            raise TypeError("key and id name one task; use enqueue for each")
        deadline_s = self.deadline_s if options.deadline_s is None else options.deadline_s
        self._open()
        if not self._welcomed and items:
            deadline_s = await self._greet(deadline_s)
        largest = max((len(item[0]) for item in items), default=0)
        if largest > self._payload_bytes_max:
            raise self._too_large(task_type, largest)
        return _handles_or_error(await self._send_many(task_type, items, options, deadline_s))

    async def _send_many(self, task_type: str, items: Sequence[Encoded], options: Options, deadline_s: float) -> list[TaskHandle[Any] | TaskqError]:
        """A few frames ahead of the answers, so that neither side waits for the other and neither holds everything."""
        waiting: deque[tuple[int, asyncio.Future[m.Enqueued]]] = deque()
        found: list[TaskHandle[Any] | TaskqError] = []
        try:
            for part in frames(items):
                if len(waiting) >= BULK_FRAMES_MAX:
                    found += await self._outcomes(*waiting.popleft())
                channel = self._open()
                future: asyncio.Future[m.Enqueued] = channel.loop.create_future()
                channel.request(self._message(options.queue, part, [task_type], [options]), future, deadline_s)
                waiting.append((len(part), future))
                await asyncio.sleep(0)
            while waiting:
                found += await self._outcomes(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()
        return found

    async def _outcomes(self, tasks: int, future: asyncio.Future[m.Enqueued]) -> list[TaskHandle[Any] | TaskqError]:
        try:
            return self._settled(await future)
        except TaskqError as error:
            return [error] * tasks

    def _turn_over(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        """Everything that was enqueued in this turn leaves."""
        batches, self._batches = self._batches, {}
        for batch in batches.values():
            self._send(batch)
        if batches and self._channel is not None:
            self._channel.flush()

    def _send(self, batch: Batch) -> None:
        try:
            message = self._message(batch.queue, batch.items, batch.task_types, batch.options)
            self._open().request(message, batch, batch.deadline_s, batch.resent)
        except TaskqError as error:
            batch.refuse(error)

    def _message(self, queue: str, items: Sequence[Encoded], task_types: list[str], options: list[Options]) -> m.Enqueue:
        broker_ms = time.monotonic_ns() // 1_000_000 + self._offset_ms
        return enqueue_message(queue, items, task_types, options, partial(ids.make_ids, broker_ms, self._slot_of(queue), self._rng))

    def _too_large(self, task_type: str, size: int) -> PayloadTooLarge:
        limit = self._payload_bytes_max
        return PayloadTooLarge(f"the payload of {task_type} has {size:,} bytes, the limit is {limit:,}; store it elsewhere and enqueue a reference")

    # ---- follow

    async def get(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        """What the broker knows about a task, given as id or handle.  Raises NotFound."""
        return TaskInfo.of(await self._call(m.Get(raw_id(task)), timeout))

    async def wait(self, task: Any, timeout: Duration | None = None) -> TaskInfo:
        """The task when it has reached a final state, told by the broker; None: however long it takes.  Raises ResultTimeout, NotFound,
        BrokerUnavailable, in a task perhaps WaitInTask."""
        raw = raw_id(task)
        self._open()
        assert self._waits is not None
        return await self._waits.final(raw, timeout)

    async def result(self, task: Any, timeout: Duration | None = None) -> Any:
        """The return value of a task.  Raises TaskFailed, TaskCancelled and what `wait` raises."""
        return (await self.wait(task, timeout)).outcome()

    async def cancel(self, task: Any, timeout: Duration | None = None) -> str:
        """`cancelled`, `requested` (it runs and was asked to stop) or `already_final`.  Raises NotFound."""
        answer: m.Cancelled = await self._call(m.Cancel(raw_id(task)), timeout)
        outcome = answer.outcomes[0]
        if outcome == m.CANCEL_NOT_FOUND:
            raise NotFound()
        return CANCEL_WORDS[outcome]

    async def queues(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        return await self._inspect("queues", timeout)

    async def task_types(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        """The task types that workers have declared, with their options."""
        return await self._inspect("types", timeout)

    async def workers(self, timeout: Duration | None = None) -> list[dict[str, Any]]:
        return await self._inspect("workers", timeout)

    async def broker(self, timeout: Duration | None = None) -> dict[str, Any]:
        """The broker about itself: version, pid, addresses, data folder, settings, how far journal and store are."""
        return (await self._inspect("broker", timeout))[0]

    async def _inspect(self, what: str, timeout: Duration | None) -> list[dict[str, Any]]:
        answer: m.Inspected = await self._call(m.Inspect(what), timeout)
        return answer.rows

    # ---- other loops and threads

    async def elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on this client's loop, wait on the caller's."""
        if self.loop is None or self.loop is asyncio.get_running_loop():
            return await work
        if self.driver is not None:
            return await asyncio.wrap_future(self.driver.hand_over(work))
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._alive(work)))

    def blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on this client's loop, block the caller's thread."""
        if self.driver is not None:
            return self.driver.run(work)
        return wait_for(asyncio.run_coroutine_threadsafe(work, self._alive(work)))

    def _alive(self, work: Coroutine[Any, Any, Any]) -> asyncio.AbstractEventLoop:
        if self.loop is None or self.loop.is_closed() or not self.loop.is_running():
            work.close()
            raise RuntimeError("the event loop of this handle's client does not run any more; ask by id with another client")
        return self.loop

    # ---- the connection

    def _open(self) -> Channel:
        channel = self._channel
        if channel is None or self.loop is not (asyncio._get_running_loop() or self.loop):
            return self._start()
        return channel

    def _start(self) -> Channel:
        """Begin on the running loop; what belonged to one that is closed, as in a second `asyncio.run`, has ended with it."""
        loop = asyncio.get_running_loop()
        if self.loop is not loop and self.loop is not None and not self.loop.is_closed():
            raise RuntimeError("this AsyncClient belongs to another event loop; make one for each loop, or use Client")
        if self.loop is not loop:
            self._batches, self._flushing, self._welcomed = {}, False, False
        self.loop = loop
        self._waits = Waits(self._call, self._connected, self.deadline_s)
        self._greeted = loop.create_future()
        greeting = hello("producer", self._name)
        self._channel = Channel(self.address, greeting, self._on_event, self._rng, token=self._token, ca=self._tls_ca)
        self._channel.start()
        return self._channel

    async def _greet(self, deadline_s: float) -> float:
        """Wait for the broker's first word, which tells its clock; the time that is left."""
        assert self._greeted is not None
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(self._greeted)
        except TimeoutError:
            raise BrokerUnavailable(f"the broker could not be reached within {deadline_s:g} s: {self._why_not()}; {NO_BROKER}") from None
        return _left_s(deadline_s, began)

    def _why_not(self) -> str:
        link = self._open().link
        return link.reason if link.state is CLOSED else f"{self.address}: connected, but nothing there answers the greeting"

    async def _call(self, message: Any, timeout: Duration | None = None) -> Any:
        return await self._open().call(message, self.deadline_s if timeout is None else seconds(timeout, "timeout"))

    def _connected(self) -> bool:
        return self._channel is not None and self._channel.link.state is READY

    def _on_event(self, event: Event | Untrusted) -> None:
        match event:
            case Answered(batch, message):
                self._answered(batch, message)
            case Refused(batch, error):
                batch.refuse(error)
            case Ready(welcome):
                self._on_ready(welcome)
            case Closed(error, True) if not error.retryable:
                self._turned_away(error)
            case Untrusted(error):
                self._open().refuse(error)
                self._turned_away(error)

    def _answered(self, batch: Batch, message: m.Enqueued) -> None:
        for future, outcome in zip(batch.futures, self._settled(message), strict=True):
            if future.done():
                continue
            if isinstance(outcome, TaskHandle):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    def _settled(self, message: m.Enqueued) -> list[TaskHandle[Any] | TaskqError]:
        durability = m.DURABILITY[message.durability]
        found: list[TaskHandle[Any] | TaskqError] = [
            TaskHandle(self, raw, outcome == m.CREATED, durability)
            for raw, outcome in zip(ids.split(message.ids, ids.ID_BYTES), message.outcomes, strict=True)
        ]
        for index, code, text, field in message.errors:
            found[index] = from_wire(code, text, field)
        return found

    def _on_ready(self, welcome: m.Welcome) -> None:
        self._offset_ms = welcome.now_ms - time.monotonic_ns() // 1_000_000
        self._payload_bytes_max = int(welcome.limits.get("payload_bytes_max", PAYLOAD_BYTES_MAX))
        self._welcomed = True
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_result(None)

    def _turned_away(self, error: TaskqError) -> None:
        """The broker will not have us: whoever waits for the first greeting is told, later calls try again."""
        self._tell_waiting(error)
        if self._greeted is not None and self._greeted.done() and not self._welcomed:
            self._greeted = asyncio.get_running_loop().create_future()

    def _tell_waiting(self, error: TaskqError) -> None:
        if self._greeted is not None and not self._greeted.done():
            self._greeted.set_exception(error)
            self._greeted.exception()  # it is no bug when nobody waits


def _handles_or_error(found: list[TaskHandle[Any] | TaskqError]) -> list[TaskHandle[Any]]:
    if set(map(type, found)) <= {TaskHandle}:
        return cast(list[TaskHandle[Any]], found)
    errors = {index: each for index, each in enumerate(found) if isinstance(each, TaskqError)}
    first = next(iter(errors.values()))
    if len(errors) == len(found) and all(type(error) is type(first) for error in errors.values()):
        raise first
    raise EnqueueError([each if isinstance(each, TaskHandle) else None for each in found], errors)


def _left_s(deadline_s: float, began_s: float) -> float:
    """What is left of a deadline, coarse, so that enqueues which waited together still share frames."""
    return max(0.1, round(deadline_s - (time.monotonic() - began_s), 1))


def wait_for(future: concurrent.futures.Future[T]) -> T:
    """The result of a future of another thread; an interrupted wait gives the work up."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise BrokerUnavailable("the client was closed before the call had ended") from None
    except BaseException:
        future.cancel()
        raise
