"""Node: one broker in this process, put together from its parts and taken apart in reverse.

    lock the data folder → recover store and journal → shards → journal and store actors → TCP and HTTP

It sets no policy of the process (loop, GC, signals): a process can hold two nodes.  When a part crashes, `failed` gets the exception and nothing
is trusted any more: the owner ends the process, or calls `stop`, which then only lets go; the next start recovers from the journal.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import random
import secrets
import sqlite3
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from taskq.actors.certificate import Certificate
from taskq.actors.disk import Ballast, DiskGuard
from taskq.actors.doors import WAITS_MAX, Doors, TcpLimits, files_for_connections
from taskq.actors.http import HttpListener, start_http
from taskq.actors.journal import JournalActor
from taskq.actors.listener import Listener
from taskq.actors.local import LocalSession
from taskq.actors.shard import ShardActor
from taskq.actors.store import StoreActor
from taskq.actors.watch import Watch
from taskq.clock import Clock, SystemClock
from taskq.config import BrokerConfig, host_port
from taskq.core.admission import LEASES_MAX, Limits
from taskq.core.book import Sequence64, Shared
from taskq.core.effects import Command, Reply
from taskq.core.gate import Gate
from taskq.core.grant import waiting_for
from taskq.core.house import House, Terms
from taskq.core.idtime import FRESH_MS, IdTime
from taskq.core.line import Budget
from taskq.core.messages import DURABILITY, Goaway
from taskq.core.ring import Ring
from taskq.core.shard import Shard
from taskq.errors import DataFolderLocked, Draining, KeyDamaged, StartError, StoreCorrupt
from taskq.gateway.http1 import HttpLimits
from taskq.storage.base import Retention
from taskq.storage.files import replace_file
from taskq.storage.folder import open_own, prepare
from taskq.storage.integrity import integrity_check
from taskq.storage.journal import FileJournal
from taskq.storage.recovery import EPOCH_SHIFT, Recovered, load, recover
from taskq.storage.sqlite import SqliteStore
from taskq.storage.tokens import TokenFile
from taskq.storage.types import read as read_types
from taskq.storage.types import write as write_types
from taskq.version import VERSION

SECRET_BYTES = 32
PULSE_S = 0.1
FORGET_PULSES = 10
DRAIN_LOOK_S = 0.05
GOAWAY_MS = 500
# a session whose connection broke has this part of a lease to come back, so that its tasks are given to others within one lease
GRACE_OF_LEASE = 4 / 5

log = logging.getLogger("taskq.node")


class Node:
    """See the module.  `tcp` and `http` are the addresses, once it is started: host:port, with TLS tls://host:port and https://host:port."""

    def __init__(self, config: BrokerConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.tcp = self.http = ""
        self.failed: asyncio.Future[None]
        self._rng = random.Random()
        self._folder = Path(config.data)
        self._doors = Doors(files_for_connections(), config.held_bytes_max)
        self._parts = AsyncExitStack()
        self._shards: list[ShardActor] = []
        self._looks: list[Callable[[], None]] = []
        self._certificate: Certificate | None = None
        self._started_ms = self._pulses = 0

    async def start(self) -> None:
        """Recover, listen.  Raises StartError or OSError, and leaves nothing behind then."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        try:
            await self._assemble()
        except BaseException as error:
            await self._parts.aclose()
            if isinstance(error, sqlite3.Error):
                raise StartError(
                    f"{self._folder}: the store cannot be used: {error}; free space or rights in this folder, and start again"
                ) from error
            raise

    async def _assemble(self) -> None:
        config, enter = self.config, self._parts.enter_async_context
        if config.tls:
            self._certificate = Certificate(config.tls_cert, config.tls_key)
        self._parts.enter_context(_locked(self._folder))
        ballast = Ballast(self._folder, config.ballast_bytes)
        ballast.save_start()
        store = SqliteStore(self._folder / "store.sqlite")
        files = FileJournal(self._folder / "journal", config.journal_segment_bytes)
        self._parts.push_async_callback(store.close)
        recovered = await recover(store, files, config.finished_rows_max, self.clock.steady_ms() + FRESH_MS)
        self._report(recovered, files)
        shared = self._shared(recovered)
        shards = [Shard(index, config.shards, shared) for index in range(config.shards)]
        await load(store, shards, self.clock.steady_ms(), recovered.queue_bytes)
        self._house = self._make_house(shared, recovered.epoch, shards)
        self._local = LocalSession(self._house, self.clock.steady_ms, self._tell)
        self._journal = await enter(self._journaling(files, recovered.next_lsn))
        self._shards = [
            ShardActor(
                self._loop, self._crashed, shard, self.clock, self._journal.submit, lambda actor, loads: self._store.load(actor, loads), self._tell
            )
            for shard in shards
        ]
        self._store = await enter(self._storing(store, shared))
        if not store.checked:
            self._parts.enter_context(self._checking(store.path))
        await enter(self._guarding(ballast))
        self._listener = await enter(self._listening())
        await enter(self._serving_http())
        self._started_ms = self.clock.now_ms()
        for actor in self._shards:
            actor.wake()
        self._pulse()

    # ---- the parts -----------------------------------------------------------------------------------------------------------------

    def _shared(self, recovered: Recovered) -> Shared:
        config = self.config
        return Shared(
            sequence=Sequence64(recovered.next_seq),
            tokens=Sequence64(recovered.epoch << EPOCH_SHIFT | 1),
            budget=Budget(config.hot_bytes_max),
            rng=self._rng,
            limits=Limits(
                config.payload_bytes_max, _ms(config.lease), config.queues_max, config.queue_tasks_max, config.queue_bytes_max, config.leases_max
            ),
            durability=DURABILITY.index(config.durability),
            ids=IdTime.starting(recovered.pruned_id_ms, recovered.ahead_id_ms, self.clock.steady_ms()),
        )

    def _make_house(self, shared: Shared, epoch: int, shards: list[Shard]) -> House:
        config = self.config
        secret_key = _secret(self._folder / "secret.key")
        terms = Terms(
            epoch=epoch,
            heartbeat_ms=_ms(config.heartbeat),
            lease_ms=_ms(config.lease),
            grace_ms=_ms(config.lease * GRACE_OF_LEASE),
            limits={
                "grace_ms": _ms(config.lease * GRACE_OF_LEASE),
                "payload_bytes_max": config.payload_bytes_max,
                "frame_bytes_max": config.frame_bytes_max,
                "requests_max": config.requests_max,
                "waits_max": WAITS_MAX,
                "silence_ms": _ms(config.heartbeat) * config.heartbeats_missed_max,
            },
            secret_key=secret_key,
            leases_max=max(config.leases_max, LEASES_MAX),  # a worker may come back with more than a lowered limit allows
        )
        self._admission, self._consumers = shared.admission, shared.consumers
        types = read_types(self._folder)
        held = [shard.held for shard in shards]
        gate = self._make_gate(secret_key) if config.auth else None
        return House(
            ring=Ring(config.shards, config.payload_bytes_max),
            terms=terms,
            consumers=shared.consumers,
            rng=random.SystemRandom(),
            describe=self.describe,
            held=held,
            wall_ms=self.clock.now_ms,
            gate=gate,
            ids=shared.ids,
            waiting=partial(waiting_for, shards),
            types=types,
            keep_types=partial(write_types, self._folder, types),
        )

    def _make_gate(self, secret_key: bytes) -> Gate:
        """Who comes in only with an access token."""
        file = TokenFile(self._folder)
        if not file.tokens():
            make = f"taskq token create NAME --scope admin --data {self._folder}"
            log.warning("auth is on and there is no access token yet, so nobody can come in; make one, now or later: %s", make)
        return Gate(file.tokens, secret_key)

    @asynccontextmanager
    async def _journaling(self, files: FileJournal, next_lsn: int) -> AsyncIterator[JournalActor]:
        config, level = self.config, DURABILITY.index(self.config.durability)
        backlog_bytes_max = config.journal_backlog_bytes_max
        journal = JournalActor(
            self._loop, self._crashed, files, level, next_lsn, self._admission, backlog_bytes_max, self._deliver, config.journal_delay_max
        )
        self._looks.append(journal.look)
        try:
            yield journal
        finally:
            if self.failed.done():
                await journal.abandon()
            else:
                await journal.stop(empty=self._store_is_complete())

    def _store_is_complete(self) -> bool:
        store = getattr(self, "_store", None)
        return store is None or store.flushed_lsn == self._journal.last_lsn

    @asynccontextmanager
    async def _storing(self, store: SqliteStore, shared: Shared) -> AsyncIterator[StoreActor]:
        actor = StoreActor(
            self._crashed, store, self._journal, self._shards, shared, self.clock, self._retention, self.config.store_backlog_bytes_max
        )
        self._looks.append(actor.look)
        try:
            yield actor
        finally:
            for shard in self._shards:
                shard.stop()
            if self.failed.done():
                await actor.abandon()
            else:
                await actor.stop()

    @asynccontextmanager
    async def _guarding(self, ballast: Ballast) -> AsyncIterator[None]:
        """What may run out is looked at before the first task is admitted."""
        config, store = self.config, self._store
        guard = DiskGuard(ballast, config.disk_free_bytes_min, self._admission, store.owed_bytes, lambda: store.spare_bytes, store.reclaim)
        watch = Watch(self._admission, PULSE_S, config.memory_bytes_max, config.loop_delay_max, self._tighten)
        self._looks += [guard.look, watch.look]
        guard.look()
        try:
            yield
        finally:
            await guard.stop()

    def _tighten(self, tight: bool) -> None:
        """Memory is short, or is not any more."""
        self._shards[0].shard.shared.budget.tight = tight
        if tight:
            self._store.spill()

    def _retention(self, now_ms: int) -> Retention:
        config = self.config
        return Retention(now_ms - _ms(config.retention_completed), now_ms - _ms(config.retention_failed), config.finished_rows_max)

    @contextmanager
    def _checking(self, path: Path) -> Iterator[None]:
        """A store that is too large to be looked at before the start is looked at beside the work; damage stops the node."""
        ended = threading.Event()

        def check() -> None:
            found = integrity_check(path, ended)
            if found and not ended.is_set():
                self._loop.call_soon_threadsafe(self._crashed, StoreCorrupt(f"{path}: {found[0]}; the file was left untouched"))

        thread = threading.Thread(target=check, name="taskq-check", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Listener]:
        config, origins = self.config, count(1)
        listener = Listener(self._loop, self._house, self.clock, self._tell, origins.__next__, _tcp_limits(config), self._doors)
        try:
            await listener.listen(*host_port(config.listen), self._tls)
            self.tcp = self._shown("tls", listener.addresses[0])
            yield listener
        finally:
            await listener.close()

    @asynccontextmanager
    async def _serving_http(self) -> AsyncIterator[HttpListener]:
        config = self.config
        limits = HttpLimits(
            payload_bytes_max=config.payload_bytes_max,
            body_bytes_max=config.payload_bytes_max + (64 << 10),
            head_bytes_max=config.http_head_bytes_max,
            connections_max=config.connections_max,
            address_connections_max=config.address_connections_max,
            silent_connections_max=config.greeting_connections_max,
            head_s=config.http_head_deadline,
            request_s=config.http_request_deadline,
            idle_s=config.http_idle,
            hosts=frozenset(name.lower() for name in config.http_hosts),
        )
        host, port = host_port(config.http)
        own = self._local.submit, self._status, limits, SystemClock()
        listener = await start_http(host, port, *own, gate=self._house.gate, tls=self._tls, doors=self._doors, types=self._house.types)
        self.http = self._shown("https", listener.address)
        try:
            yield listener
        finally:
            await listener.close()

    @property
    def _tls(self) -> ssl.SSLContext | None:
        return None if self._certificate is None else self._certificate.context

    def reload_certificate(self) -> None:
        """Show new connections what stands in the files of the certificate now.  Raises ConfigError, and goes on with the old one then."""
        if self._certificate is not None:
            self._certificate.reload()

    # ---- between the parts ---------------------------------------------------------------------------------------------------------

    def _tell(self, commands: list[tuple[int, Command]]) -> None:
        shards = self._shards
        for shard, command in commands:
            shards[shard].tell(command)

    def _deliver(self, replies: list[Reply]) -> None:
        """Replies that are durable go to whoever asked."""
        now_ms = self.clock.steady_ms()
        for reply in replies:
            if reply.origin < 0:
                self._local.answered(reply)
        self._listener.answered(replies, now_ms)

    def _crashed(self, crash: BaseException) -> None:
        if not self.failed.done():
            log.critical("a part of the node crashed: %s: %s", type(crash).__name__, crash)
            self.failed.set_exception(crash)

    def _pulse(self) -> None:
        """A few times a second: look at what piles up or may run out; once a second, forget sessions that are over."""
        try:
            for look in self._looks:
                look()
            self._pulses += 1
            if self._pulses % FORGET_PULSES == 0:
                self._forget_sessions(self.clock.steady_ms())
        except Exception as crash:
            self._crashed(crash)
            if isinstance(crash, StartError):
                return  # no bug, and said
            raise
        self._timer = self._loop.call_later(PULSE_S, self._pulse)

    def _forget_sessions(self, now_ms: int) -> None:
        for consumer in [each for each in self._consumers.values() if each.is_forgotten(now_ms)]:
            if not any(consumer.session in actor.shard.held for actor in self._shards):
                del self._consumers[consumer.session]

    # ---- what it says --------------------------------------------------------------------------------------------------------------

    def excuse(self, ms: int) -> None:
        """The clock has jumped by so much, which no worker's silence is to be blamed for."""
        for consumer in self._consumers.values():
            if consumer.origin:
                consumer.deadline_ms += ms

    def _report(self, recovered: Recovered, files: FileJournal) -> None:
        if files.cut is not None:
            path, offset, size = files.cut
            log.warning("%s: the last write before the stop was not complete: %d bytes at offset %d were cut; nothing acknowledged was in them",
                        path, size, offset)  # fmt: skip
        if recovered.replayed:
            log.info("recovered %d records from the journal", recovered.replayed)
        if self._doors.files_max < self.config.connections_max:
            log.warning("there are files for %d connections, not for %d (connections_max): raise the limit of open files, LimitNOFILE or ulimit -n",
                        self._doors.files_max, self.config.connections_max)  # fmt: skip

    def _status(self) -> dict[str, Any]:
        if self.failed.done():
            return {"ready": False, "reason": "it has crashed"}
        refusal = self._admission.refusal
        return {"ready": refusal is None, "reason": refusal.message if refusal else ""}

    def describe(self) -> dict[str, Any]:
        """The broker in one row, for people."""
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "epoch": self._house.terms.epoch,
            "tcp": self.tcp,
            "http": self.http,
            "data": str(self._folder.resolve()),
            "shards": self.config.shards,
            "durability": self.config.durability,
            "connections": len(self._listener),
            "workers": sum(bool(consumer.origin) for consumer in self._consumers.values()),
            "started_ms": self._started_ms,
            "hot_bytes": self._shards[0].shard.shared.budget.bytes_used,
            "journal_lsn": self._journal.last_lsn,
            "synced_lsn": self._journal.synced_lsn,
            "applied_lsn": self._store.flushed_lsn,
        }

    def _shown(self, scheme: str, address: tuple[str, int]) -> str:
        host, port = address
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return f"{scheme}://{shown}" if self.config.tls else shown

    # ---- the end -------------------------------------------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Admit and deliver nothing more, and wait until no task runs, at most so long."""
        self._admission.draining = self._house.draining = True
        self._admission.refuse("drain", Draining(retry_after_ms=GOAWAY_MS))
        self._listener.go_away(Goaway("the broker is stopping", GOAWAY_MS))
        deadline_s = self._loop.time() + seconds
        while any(actor.shard.held for actor in self._shards) and self._loop.time() < deadline_s and not self.failed.done():
            await asyncio.sleep(DRAIN_LOOK_S)

    async def stop(self) -> None:
        """Close the connections, flush everything, leave an empty journal; after a crash only let go.  Running tasks keep their leases.
        Raises what crashed meanwhile, an error of the disk above all: everything is let go of then, and the next start recovers."""
        self._timer.cancel()
        try:
            await self._parts.aclose()
        finally:
            if self.failed.done():
                self.failed.exception()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The data folder is ours alone, for as long as this process keeps the lock."""
    if prepare(folder):
        log.warning("%s could be read by other users of this machine; its mode is 0700 now", folder)
    fd = open_own(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DataFolderLocked(f"{folder} is used by another broker; stop it, or choose another folder with --data") from None
    try:
        prepare(folder / "journal")
        yield
    finally:
        os.close(fd)


def _secret(path: Path) -> bytes:
    """The key that sessions are proved with; made at the first start."""
    if not path.exists():
        replace_file(path, secrets.token_bytes(SECRET_BYTES))
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        found = file.read(SECRET_BYTES + 1)
    if len(found) != SECRET_BYTES:
        told = f"{path} is damaged: it has {path.stat().st_size} bytes and must have {SECRET_BYTES}, so anybody might guess it"
        raise KeyDamaged(f"{told}; restore it, or remove it: workers cannot resume their sessions once then, and nothing else is lost")
    return found


def _tcp_limits(config: BrokerConfig) -> TcpLimits:
    return TcpLimits(
        frame_bytes_max=config.frame_bytes_max,
        connections_max=config.connections_max,
        address_connections_max=config.address_connections_max,
        greeting_connections_max=config.greeting_connections_max,
        greeting_s=config.greeting_deadline,
        frame_s=config.frame_deadline,
        silence_s=config.heartbeat * config.heartbeats_missed_max,
        unread_s=config.unread_deadline,
        unread_bytes_max=config.unread_bytes_max,
        rate_bytes_min=config.rate_bytes_min,
        requests_max=config.requests_max,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
