"""The asyncio shell around a Link: connects (again and again, with backoff and jitter), feeds it frames, writes what it wants sent, keeps its time.

Client, worker runner and keeper use the same `Channel`, with one callback `on_event(Event)`.  All that leaves within one turn of the loop is one
write.  A Channel belongs to the loop in which `start` was called and is not thread-safe.  Who drives that loop may, while it does not run, send with
`flush` and read with `read`, which spares the turns of the loop; whatever is not that simple is left to the loop.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, cast
from urllib.parse import urlsplit

import attrs

from taskq.core import messages as m
from taskq.core.gate import name_of
from taskq.core.scram import Prover
from taskq.errors import BadRequest, BrokerUnavailable, ConfigError, ProtocolError, TaskqError, TlsFailed, echo
from taskq.protocol.codec import Buffer, encode, join
from taskq.protocol.frames import VERSION as PROTOCOL_VERSION
from taskq.protocol.frames import Frame
from taskq.protocol.framing import FrameDecoder
from taskq.protocol.link import READY, Answered, Closed, Event, Link, Pushed, Refused, Stale
from taskq.trust import client_context, explained
from taskq.version import VERSION

DEFAULT_URL = "localhost:7000"
DEFAULT_PORT = 7000
FRAME_BYTES_MAX = 65 << 20
WRITE_BUFFER_BYTES = (64 << 10, 256 << 10)
CONNECT_S = 5.0
BYE_S = 2.0
FAREWELL_S = 1.0
BACKOFF_BASE_S = 0.05
BACKOFF_MAX_S = 5.0
BACKOFF_STEPS_MAX = 10
PAUSE_S_MAX = 30.0
READ_BYTES = 256 << 10
TIMER_S_MAX = 3_600.0
# scheme → whether it is TLS
SCHEMES = {"": False, "taskq": False, "tls": True}
PLAIN_HINT = "; if it speaks TLS, write the address as tls://{}"


@attrs.frozen
class Address:
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        plain = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"tls://{plain}" if self.tls else plain

    @classmethod
    def parse(cls, url: str) -> Address:
        """`host:port`, `host`, `[::1]:7000`, each also with `taskq://` before it, or with `tls://` for TLS.  Raises ConfigError."""
        hint = f"broker address {echo(url)} is not valid; write host:port, taskq://host:port or tls://host:port, for example {DEFAULT_URL}"
        scheme, separator, rest = url.strip().rpartition("://")
        try:
            parts = urlsplit(f"//{rest}")
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(hint) from None
        if not host or scheme not in SCHEMES or (separator and not scheme) or parts.path.strip("/") or parts.query or "@" in rest:
            raise ConfigError(hint)
        return cls(host, DEFAULT_PORT if port is None else port, SCHEMES[scheme])

    def context(self, ca: str | None = None) -> ssl.SSLContext | None:
        """What to connect with; None without TLS, which a `ca` that was named rules out.  Raises ConfigError."""
        if self.tls:
            return client_context(ca)
        if ca:
            raise ConfigError(f"tls_ca: is given for {self}, which is no TLS address; write tls://{self}", field="tls_ca")
        return None


def address_from_environment() -> Address:
    """The broker that `TASKQ_URL` names, else localhost:7000."""
    return Address.parse(os.environ.get("TASKQ_URL") or DEFAULT_URL)


def token_or_environment(token: str | None, source: str = "token") -> str:
    """The access token that was given, else that of `TASKQ_TOKEN`, else "".  ConfigError, which does not show it, if it has not the form of one."""
    found, source = (os.environ.get("TASKQ_TOKEN", ""), "TASKQ_TOKEN") if token is None else (token, source)
    found = found.strip()
    try:
        if found:
            name_of(found)
    except ValueError as error:
        raise ConfigError(f"{source}: what was given {error}", field="token") from None
    return found


def _prover(token: str) -> Prover | None:
    return Prover(name_of(token), token, secrets.token_bytes) if token else None


def hello(role: str, name: str = "") -> m.Hello:
    """The greeting of this process; `name` is for people, as shown in lists of workers."""
    host, pid = socket.gethostname(), os.getpid()
    return m.Hello(PROTOCOL_VERSION, role, {"name": name or f"{host}:{pid}", "host": host, "pid": pid, "version": VERSION, "sdk": "python"})


def backoff_s(failures: int, rng: random.Random) -> float:
    """How long to wait before the next attempt: doubling up to a cap, spread so that clients do not come back in step."""
    return rng.uniform(0.3, 1.0) * min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2.0 ** min(failures, BACKOFF_STEPS_MAX))


@attrs.define
class Untrusted:
    """The broker and this side agree on no TLS connection, and will not until something is changed; it is tried again all the same."""

    error: TlsFailed


class _Protocol(asyncio.Protocol):
    """One transport of a Channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.decoder = FrameDecoder(FRAME_BYTES_MAX)
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        self.fd = -1
        self.writable = True
        self.heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and os.name == "posix" and not self.channel.address.tls:
            self.fd = sock.fileno()
        low, high = WRITE_BUFFER_BYTES
        self.transport.set_write_buffer_limits(high=high, low=low)
        self.channel._connected(self)

    def data_received(self, data: bytes) -> None:
        if not self.closed.done():
            frames = self.decoder.feed(data)
            self.heard = self.heard or bool(frames)
            self.channel._received(self, frames)
        if self.decoder.error is not None:
            self.drop(f"{self.channel.address}: what is there sent something that is not our protocol: {self.decoder.error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self._end((f"the connection was lost: {exc}" if exc else "the broker closed the connection") + self._hint())

    def _hint(self) -> str:
        """A broker that speaks TLS ends a plain connection without a word that can be read."""
        address = self.channel.address
        return "" if self.heard or address.tls else f" before it had said anything{PLAIN_HINT.format(address)}"

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self.channel._flush_soon()

    def drop(self, reason: str) -> None:
        """Give this transport up at once; nothing that it still brings is looked at."""
        self._end(reason)
        if self.transport is not None:
            self.transport.abort()

    async def farewell(self) -> None:
        """TLS ends with a word of both sides, so a closed connection is not gone yet; and a loop that ends meanwhile would never let go of it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await self.gone.wait()
        self.drop("the connection was closed")
        await self.gone.wait()

    def _end(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)


class Channel:
    """A Link over TCP, or over TLS: `address.tls`.  Answers to `call` go to the caller, every other event to `on_event`, in the order of arrival.
    `token`: the access token to prove, "" for none; it never travels.  `ca`: see `trust`.  `room`: see `Link`.  Raises ConfigError if that cannot
    be used."""

    def __init__(
        self,
        address: Address,
        greeting: m.Hello,
        on_event: Callable[[Event | Untrusted], None],
        rng: random.Random | None = None,
        token: str = "",
        ca: str | None = None,
        room: Callable[[], int] | None = None,
    ) -> None:
        self.address = address
        self._context = address.context(ca)
        self.link = Link(greeting, room=room, prover=_prover(token))
        self._on_event = on_event
        self._rng = rng or random.Random()
        self._protocol: _Protocol | None = None
        self.peers: set[Any] = set()  # the addresses that it was ever connected to
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # the timer does not always know it: uvloop has none for what is due at once
        self._flushing = False
        self._stopped = False
        self._failures = 0
        self._pause_s = 0.0

    # ---- life

    def start(self) -> None:
        """Begin to connect, on the running loop."""
        self.loop = asyncio.get_running_loop()
        # in a context of its own: that of a task which happened to make the first call would be kept with all that it names
        self._task = self.loop.create_task(self._run(), name=f"taskq channel {self.address}", context=Context())

    async def stop(self, *, bye: bool = True, bye_s: float = BYE_S) -> None:
        """Say goodbye when connected (a worker's leases go back at once), close, refuse what is unanswered.  Never raises for a lost broker."""
        if bye and not self._stopped and self.link.state is READY:
            with suppress(TaskqError):
                await self.call(m.Bye(), bye_s)
        self._stopped = True
        protocol = self._protocol
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if protocol is not None and self._context is not None:
            await protocol.farewell()

    async def _run(self) -> None:
        try:
            while True:
                reason = await self._connection()
                self._failures = 0 if self.link.state is READY else self._failures + 1
                self._dispatch(self.link.lost(reason))
                self._arm()
                pause_s, self._pause_s = self._pause_s, 0.0
                await asyncio.sleep(pause_s + backoff_s(self._failures, self._rng))
        finally:
            self._end()

    async def _connection(self) -> str:
        """Live through one transport; the reason why it ended, or why there was none."""
        try:
            async with asyncio.timeout(CONNECT_S):
                _, self._protocol = await self.loop.create_connection(
                    lambda: _Protocol(self), self.address.host, self.address.port, ssl=self._context
                )
        except TimeoutError:
            return f"{self.address}: no connection within {CONNECT_S:g} s"
        except ssl.SSLError as error:
            return self._untrusted(error)
        except RuntimeError as error:  # no thread can be started to look the name up
            return f"{self.address}: {error}"
        except OSError as error:
            return f"{self.address}: {os.strerror(error.errno) if error.errno and error.errno > 0 else error}"
        reason = await self._protocol.closed
        self._protocol.drop(reason)
        self._protocol = None
        return reason

    def _untrusted(self, error: ssl.SSLError) -> str:
        why = explained(error)
        if why is None:
            return f"{self.address}: the connection broke in the TLS handshake"
        reason = f"{self.address}: {why}"
        self._on_event(Untrusted(TlsFailed(reason)))
        return reason

    def _end(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._protocol is not None and self._protocol.transport is not None:
            self._protocol.transport.close()
        self._dispatch(self.link.abandon(BrokerUnavailable("the connection to the broker was closed by this side")))

    def refuse(self, error: TaskqError) -> None:
        """Refuse what is not answered yet; the channel goes on."""
        self._dispatch(self.link.abandon(error))

    # ---- requests

    def request(self, message: Any, owner: Any, timeout_s: float | None = None, resent: bool = False) -> None:
        """Ask; one Answered or Refused with this owner comes to `on_event`.  Without a timeout it may wait for ever for a broker to come back."""
        if self._stopped:
            raise BrokerUnavailable("the connection to the broker was closed by this side")
        deadline_ms = 0 if timeout_s is None else self._now_ms() + max(1, round(timeout_s * 1000))
        self.link.request(message, owner, deadline_ms, resent)
        self._flush_soon()

    async def call(self, message: Any, timeout_s: float | None = None) -> Any:
        """Ask and wait for the answer; raises the refusal, or BrokerUnavailable after the timeout."""
        future: asyncio.Future[Any] = self.loop.create_future()
        self.request(message, future, timeout_s)
        return await future

    def credit(self, free: int) -> None:
        """A worker takes `free` more deliveries from now on."""
        self.link.credit(free)
        self._flush_soon()

    # ---- past the loop, while it does not run

    @property
    def fd(self) -> int:
        """The socket to wait for, for `read`; -1 if only the loop can read: no connection, or TLS, or no file descriptors for sockets here."""
        protocol = self._protocol
        return -1 if protocol is None or protocol.closed.done() or protocol.transport is None else protocol.fd

    def flush(self) -> None:
        """Send what was asked for, now and not at the end of this turn."""
        self._flush()

    def read(self) -> bool:
        """Take what has arrived; False if that is for the loop to do."""
        protocol = self._protocol
        try:
            data = os.read(self.fd, READ_BYTES)
        except OSError:
            return False
        if data and protocol is not None:
            protocol.data_received(data)
        return bool(data)

    def patience_s(self) -> float:
        """So long the loop need not run for the sake of this channel."""
        return max(0.0, self.link.wake_at / 1000 - self.loop.time())

    # ---- turns

    def _now_ms(self) -> int:
        return int(self.loop.time() * 1000)

    def _connected(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        if protocol.transport is not None:
            self.peers.add(protocol.transport.get_extra_info("peername"))
        self.link.opened(self._now_ms())
        self._flush()

    def _received(self, protocol: _Protocol, frames: list[Frame]) -> None:
        now_ms = self._now_ms()
        for frame in frames:
            try:
                events = self.link.receive(frame, now_ms)
            except ProtocolError as error:
                protocol.drop(f"the broker broke the protocol: {error}")
                return
            self._dispatch(events)
        self._flush_soon()

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, (Answered, Refused)) and isinstance(event.owner, asyncio.Future):
                _settle(event.owner, event)
                continue
            self._notice(event)
            self._on_event(event)

    def _notice(self, event: Event) -> None:
        """What concerns the transport itself."""
        if isinstance(event, Stale) and self._protocol is not None:
            self._protocol.drop(event.reason)
        elif isinstance(event, Pushed) and isinstance(event.message, m.Goaway):
            self._pause_s = min(PAUSE_S_MAX, event.message.reconnect_after_ms / 1000)
        elif isinstance(event, Closed):
            self._closing(event)

    def _closing(self, event: Closed) -> None:
        if event.greeting and not event.error.retryable:
            self._dispatch(self.link.abandon(event.error))
        if self._protocol is not None:
            self._protocol.drop(f"{self.address}: the broker ended the connection: {event.error}")

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        protocol = self._protocol
        if protocol is not None and protocol.writable and protocol.transport is not None and not protocol.transport.is_closing():
            self._write(protocol.transport)
        self._arm()

    def _write(self, transport: asyncio.Transport) -> None:
        """One write for all frames.  A frame that cannot be encoded is its sender's mistake and refused to it alone."""
        buffers: list[Buffer] = []
        for frame in self.link.take():
            try:
                buffers += encode(frame.message, frame.seq, frame.flags)
            except BadRequest as error:
                self._dispatch(self.link.unsendable(frame.seq, error))
        if buffers:
            transport.writelines(join(buffers))

    def _arm(self) -> None:
        """Keep one timer, at the link's `wake_at` or earlier."""
        at = min(self.link.wake_at / 1000, self.loop.time() + TIMER_S_MAX)
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer, self._timer_at = None if self._stopped else self.loop.call_at(at, self._tick), at

    def _tick(self) -> None:
        self._timer = None
        if self._now_ms() >= self.link.wake_at:
            self._dispatch(self.link.tick(self._now_ms()))
        self._flush_soon()


def _settle(future: asyncio.Future[Any], event: Answered | Refused) -> None:
    if future.done():
        return
    if isinstance(event, Answered):
        future.set_result(event.message)
    else:
        future.set_exception(event.error)
