"""The settings of a broker.  The fields of `BrokerConfig` are THE table: flags, environment names, TOML keys, help texts and checks come from it.

    defaults  <  TOML file (--config taskq.toml)  <  environment (TASKQ_SHARDS=8)  <  flag (--shards 8)

Durations are seconds in the program, and numbers of seconds or text such as "1h30m" outside; sizes are bytes, and numbers or text such as "64MiB".
A value that is not valid is a ConfigError that names the setting, where it was set, and what would be right.  This file knows no program: any
attrs class whose fields are made with `setting` can be read from flags, environment and file.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from taskq.durations import UNIT_SECONDS, seconds
from taskq.errors import ConfigError, echo

C = TypeVar("C")

PREFIX = "TASKQ_"
# TASKQ_… names that are no settings of the broker: the client's address, token and trust, the file, the event loop, the worker's own
OTHER_NAMES = frozenset({"URL", "TOKEN", "TOKEN_FILE", "TLS_CA", "CONFIG", "LOOP", "APP", "QUEUES", "CONCURRENCY", "POOL", "NAME", "RELOAD"})
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNIT_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "k": KIB, "m": MIB, "g": GIB, "kib": KIB, "mib": MIB, "gib": GIB}
UNIT_NAMES = (("GiB", GIB), ("MiB", MIB), ("KiB", KIB))
AUTO = "auto"
_SIZE = re.compile(r"([0-9][0-9_]{0,31})\s*([a-z]*)")
YES_NO = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
PORT_MAX = 65_535
# what a request needs beside its payloads
FRAME_ROOM_BYTES = 64 * KIB


@attrs.frozen
class Kind:
    """A kind of value: how it is read (ValueError says what would be right), how it is shown, and its name in --help."""

    metavar: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str] = str


# ---- kinds of values ---------------------------------------------------------------------------------------------------------------


def show_seconds(value: float) -> str:
    """25s, 90s, 24h, 7d: in the largest unit that divides it, to the millisecond."""
    for unit in ("d", "h", "m"):
        count = value / UNIT_SECONDS[unit]
        if count >= 1 and count.is_integer() and (unit != "d" or count > 1):
            return f"{count:.0f}{unit}"
    return f"{value:.3f}".rstrip("0").rstrip(".") + "s"


def show_bytes(value: int) -> str:
    """64MiB, 1KiB, 1500: the largest unit that divides it."""
    return next((f"{value // size}{unit}" for unit, size in UNIT_NAMES if value and value % size == 0), str(value))


def duration(least_s: float, most_s: float = math.inf) -> Kind:
    def read(value: Any) -> float:
        try:
            found = seconds(value)
        except (TypeError, ValueError):
            raise ValueError("is not a duration; write seconds, or text such as 30s or 1h30m") from None
        return check_range(found, least_s, most_s, show_seconds)

    return Kind("DURATION", read, show_seconds)


def size(least: int, most: float = math.inf) -> Kind:
    def read(value: Any) -> int:
        match = _SIZE.fullmatch(str(value).strip().lower())
        unit = UNIT_BYTES.get(match[2]) if match else None
        if isinstance(value, bool) or match is None or unit is None:
            raise ValueError("is not a size; write bytes, or text such as 512KiB or 64MiB")
        return check_range(int(match[1]) * unit, least, most, show_bytes)

    return Kind("SIZE", read, show_bytes)


def size_or_auto(least: int) -> Kind:
    """A size, or AUTO: what is right depends on the machine, and is found at the start."""
    exact = size(least)

    def read(value: Any) -> Any:
        return AUTO if str(value).strip().lower() == AUTO else exact.read(value)

    return Kind("SIZE|auto", read, lambda value: AUTO if value == AUTO else exact.show(value))


def integer(least: int, most: float = math.inf) -> Kind:
    def read(value: Any) -> int:
        try:
            found = int(value) if isinstance(value, str) else value
        except ValueError:
            found = None
        if not isinstance(found, int) or isinstance(found, bool):
            raise ValueError(f"is not a whole number; write one of at least {least:,}" + ("" if most == math.inf else f" and at most {most:,}"))
        return check_range(found, least, most, lambda number: f"{number:,}")

    return Kind("N", read, lambda value: f"{value:,}")


N = TypeVar("N", int, float)


def check_range(value: N, least: float, most: float, show: Callable[[Any], str]) -> N:
    if least <= value <= most:
        return value
    upper = "" if most == math.inf else f" and at most {show(most)}"
    raise ValueError(f"is out of range; it must be at least {show(least)}{upper}")


def choice(*words: str) -> Kind:
    def read(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError(f"is not one of {', '.join(words)}")
        return word

    return Kind("|".join(words), read)


def host_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:7000`, `[::1]:7000`, `:7000` (all interfaces); ValueError says what would be right."""
    host, separator, port = text.strip().rpartition(":")
    if not separator or not port.isdecimal() or int(port) > PORT_MAX or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError("is not an address; write HOST:PORT, for example 127.0.0.1:7000 (port 0 takes a free one)")
    return host.strip("[]") or "0.0.0.0", int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it.  A name may mean anything but `localhost`, which the broker binds as the two loopback addresses."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_address(value: Any) -> str:
    host_port(str(value))
    return str(value).strip()


def _read_text(value: Any) -> str:
    text = str(value).strip()
    if not text or isinstance(value, (bool, list, dict)):
        raise ValueError("is not a text")
    return text


def _read_text_or_nothing(value: Any) -> str:
    return value if value == "" else _read_text(value)


def _read_yes_no(value: Any) -> bool:
    found = YES_NO.get(str(value).strip().lower())
    if found is None:
        raise ValueError("is neither true nor false")
    return found


def _read_names(value: Any) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("is not a list of names; write them with commas between")
    return tuple(item.strip() for item in items if item.strip())


ADDRESS = Kind("HOST:PORT", _read_address)
TEXT = Kind("TEXT", _read_text)
PATH = Kind("PATH", _read_text)
PATH_OR_NONE = Kind("PATH", _read_text_or_nothing)
YES_OR_NO = Kind("", _read_yes_no, lambda value: "on" if value else "off")
NAMES = Kind("A,B,…", _read_names, ",".join)


# ---- the table ---------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Setting:
    """One row of a table of settings, as flags, environment and help see it.  `empty`: how --help calls a default that is nothing."""

    name: str
    default: Any
    kind: Kind
    help: str
    environment: str
    empty: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, value: Any, source: str = "") -> Any:
        """The value in the program's terms; ConfigError names the setting, the source and the way out."""
        try:
            return self.kind.read(value)
        except ValueError as error:
            where = f" ({source})" if source else ""
            raise ConfigError(f"{self.name}{where}: {echo(value)} {error}", field=self.name) from None

    def shown_default(self) -> str:
        return self.empty if self.default in (None, "", ()) else self.kind.show(self.default)


def setting(default: Any, kind: Kind, help: str, *, environment: str = "", empty: str = "none") -> Any:
    """A field of a table of settings.  Given in the code it may be as it is outside: `BrokerConfig(lease="2s")`."""
    metadata = {"kind": kind, "help": help, "environment": environment, "empty": empty}
    return attrs.field(default=default, converter=attrs.Converter(_convert, takes_field=True), metadata=metadata)


def _convert(value: Any, field: attrs.Attribute[Any]) -> Any:
    default = field.default
    return value if value == default and type(value) is type(default) else _setting_of(field).parse(value)


def _setting_of(field: attrs.Attribute[Any]) -> Setting:
    about = dict(field.metadata)
    about["environment"] = about["environment"] or PREFIX + field.name.upper()
    return Setting(name=field.name, default=field.default, **about)


def settings_of(table: type) -> list[Setting]:
    return [_setting_of(field) for field in attrs.fields(table)]


@attrs.frozen(kw_only=True)
class BrokerConfig:
    """What a broker is told.  Durations are seconds, sizes are bytes."""

    listen: str = setting("127.0.0.1:7000", ADDRESS, "Address for workers and clients (TCP). Port 0 takes a free port.")
    http: str = setting("127.0.0.1:3000", ADDRESS, "Address of the HTTP API. Port 0 takes a free port.")
    http_hosts: tuple[str, ...] = setting(
        (), NAMES, "Names by which HTTP clients may call the broker, beside IP addresses, localhost and the host of http; * allows any.", empty="none"
    )
    auth: bool = setting(False, YES_OR_NO, "Clients must prove a token (taskq token create); needed on any address but loopback.")
    tls_cert: str = setting("", PATH_OR_NONE, "Certificate (PEM, with its chain) for TLS on both ports; needed on any address but loopback.")
    tls_key: str = setting("", PATH_OR_NONE, "Private key of tls_cert (PEM, without a passphrase). SIGHUP reads both files again.")
    insecure: bool = setting(False, YES_OR_NO, "Listen on any address without auth and TLS: whoever reaches it can enqueue, read and cancel.")
    data: str = setting("./taskq-data", PATH, "Folder of the journal and the store; made if it is not there. One broker at a time.")
    shards: int = setting(4, integer(1, 64), "How many shards share the queues; may change between starts.")
    durability: str = setting(
        "fsync",
        choice("fsync", "os", "memory"),
        "What an acknowledged task survives: fsync = power loss, os = kill -9 of the broker, memory = an orderly stop only.",
    )
    drain: float = setting(25.0, duration(0, 86_400), "How long running tasks may go on after SIGTERM.")
    lease: float = setting(15.0, duration(0.5, 3_600), "How long after a worker's last sign of life its tasks are given to others.")
    heartbeat: float = setting(5.0, duration(0.1, 1_200), "How often workers give a sign of life; at most a third of the lease.")
    payload_bytes_max: int = setting(MIB, size(KIB, 64 * MIB), "Largest payload or result of a task.")
    frame_bytes_max: int = setting(4 * MIB, size(128 * KIB, 65 * MIB), "Largest request on a TCP connection.")
    hot_bytes_max: int = setting(128 * MIB, size(MIB), "Memory for waiting tasks; more of them wait in the store.")
    connections_max: int = setting(10_000, integer(1, 1_000_000), "Most connections at a time, on TCP and on HTTP each.")
    address_connections_max: int = setting(
        1_024, integer(1, 1_000_000), "Most of them from one other machine (of IPv6: from one /64 network). Loopback is not counted."
    )
    greeting_connections_max: int = setting(
        500, integer(1, 1_000_000), "Most connections of a port that have not greeted or asked anything yet; the oldest makes room."
    )
    greeting_deadline: float = setting(5.0, duration(0.1, 3_600), "How long a TCP connection has to be greeted.")
    frame_deadline: float = setting(10.0, duration(0.1, 3_600), "How long a frame may come slower than rate_bytes_min.")
    unread_deadline: float = setting(10.0, duration(0.1, 3_600), "How long a TCP peer may take its answers slower than rate_bytes_min.")
    unread_bytes_max: int = setting(
        4 * MIB, size(256 * KIB), "A TCP peer for which more than this waits must take as much within unread_deadline, or it is cut off."
    )
    rate_bytes_min: int = setting(KIB, size(1), "Least bytes a second of a frame that is sent, and of answers that are taken, after the deadline.")
    heartbeats_missed_max: int = setting(3, integer(1, 1_000), "So many heartbeats without a word, and a TCP connection is closed.")
    requests_max: int = setting(256, integer(1, 8_192), "Most requests of one TCP connection that are worked on at a time; more are not read.")
    held_bytes_max: int = setting(
        256 * MIB, size(MIB), "Memory for all requests that are not whole and all answers that are not read; over it, who holds most is cut off."
    )
    http_head_bytes_max: int = setting(16 * KIB, size(4 * KIB, MIB), "Longest head of an HTTP request.")
    http_head_deadline: float = setting(5.0, duration(0.1, 3_600), "How long the head of an HTTP request may take to come, from its first byte.")
    http_request_deadline: float = setting(15.0, duration(0.1, 3_600), "How long an HTTP request may take to come, and its answer to be read.")
    http_idle: float = setting(30.0, duration(0.1, 3_600), "How long an HTTP connection may be idle.")
    queues_max: int = setting(10_000, integer(1, 1_000_000), "Most queues that have tasks or are in use.")
    queue_tasks_max: int = setting(10_000_000, integer(0), "Most unfinished tasks in one queue; 0: no limit.")
    queue_bytes_max: int = setting(10 * GIB, size(0), "Most bytes of payload that the unfinished tasks of one queue may have; 0: no limit.")
    leases_max: int = setting(20_000, integer(1, 1_000_000), "Most tasks that one worker has at a time, whatever it asks for.")
    memory_bytes_max: int | str = setting(
        AUTO, size_or_auto(0), "Memory of the process from which on enqueues are refused; auto: 60% of what it may have; 0: no limit."
    )
    loop_delay_max: float = setting(0.2, duration(0.01, 3_600), "Enqueues are refused while every turn is late by more than this for 5 s.")
    disk_free_bytes_min: int | str = setting(
        AUTO, size_or_auto(0), "Free space on the disk below which enqueues are refused; auto: 512MiB, at most 10% of the disk; 0: no limit."
    )
    ballast_bytes: int | str = setting(
        AUTO, size_or_auto(0), "A file that is given up when the disk is full, so that work can end; auto: 64MiB, at most 2% of the disk; 0: none."
    )
    journal_segment_bytes: int = setting(64 * MIB, size(64 * KIB, 4 * GIB), "Size of one file of the journal.")
    journal_backlog_bytes_max: int = setting(64 * MIB, size(MIB), "Most bytes that wait for the disk before enqueues are refused.")
    store_backlog_bytes_max: int = setting(256 * MIB, size(MIB), "Most bytes that wait for the store before enqueues are refused.")
    journal_delay_max: float = setting(0.5, duration(0.01, 3_600), "How long the disk may take for one write before enqueues are refused.")
    retention_completed: float = setting(86_400.0, duration(0), "How long a completed, cancelled or expired task can be looked up.")
    retention_failed: float = setting(7 * 86_400.0, duration(0), "How long a failed task is kept.")
    finished_rows_max: int = setting(1_000_000, integer(0), "Most finished tasks that are kept; the oldest go first.")
    log_level: str = setting("info", choice("debug", "info", "warning", "error"), "What is logged, on stderr.")

    def __attrs_post_init__(self) -> None:
        if round(self.heartbeat * 3, 3) > self.lease:
            raise ConfigError(
                f"heartbeat: {show_seconds(self.heartbeat)} is more than a third of lease ({show_seconds(self.lease)}), so that one lost packet "
                "would cost a worker its tasks; lower heartbeat or raise lease",
                field="heartbeat",
            )
        if self.frame_bytes_max < self.payload_bytes_max + FRAME_ROOM_BYTES:
            raise ConfigError(
                f"frame_bytes_max: {show_bytes(self.frame_bytes_max)} has no room for a payload of {show_bytes(self.payload_bytes_max)} "
                f"(payload_bytes_max) and {show_bytes(FRAME_ROOM_BYTES)} around it; raise it or lower payload_bytes_max",
                field="frame_bytes_max",
            )
        self._check_exposure()

    @property
    def tls(self) -> bool:
        return bool(self.tls_cert)

    def _check_exposure(self) -> None:
        """Who can be reached from other machines asks who is there and hides what is said, unless told `insecure`."""
        for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
            if getattr(self, name) and not getattr(self, other):
                raise ConfigError(f"{other}: is missing, and {name} is given; TLS needs both", field=other)
        if self.insecure or (self.auth and self.tls):
            return
        missing = " and ".join(text for text, given in (("auth", self.auth), ("tls_cert with tls_key", self.tls)) if not given)
        for name in ("listen", "http"):
            address = getattr(self, name)
            if not is_loopback(host_port(address)[0]):
                raise ConfigError(
                    f"{name}: {address} can be reached from other machines, so {missing} must be set too; set it, or listen on 127.0.0.1, "
                    "or set insecure if everybody who can reach it may enqueue, read and cancel tasks",
                    field=name,
                )


# ---- reading -----------------------------------------------------------------------------------------------------------------------


def load(table: type[C], flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None) -> C:
    """The settings from all sources, the later ones winning.  `flags`: by setting name, None where a flag was not given.  A variable that is
    empty counts as not set."""
    values: dict[str, Any] = {} if file is None else read_file(table, file)
    for row in settings_of(table):
        if environ.get(row.environment):
            values[row.name] = row.parse(environ[row.environment], f"environment variable {row.environment}")
        if flags.get(row.name) is not None:
            values[row.name] = row.parse(flags[row.name], f"flag {row.flag}")
    return table(**values)


def read_file(table: type, file: Path) -> dict[str, Any]:
    """The settings of a TOML file; unknown keys are refused, with the name that was probably meant."""
    try:
        found = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"config: {file} cannot be read: {error.strerror}; name an existing file with --config", field="config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: {file} is not valid TOML: {error}", field="config") from None
    rows = {row.name: row for row in settings_of(table)}
    for name in found:
        if name not in rows:
            raise ConfigError(f"{name} ({file}): there is no such setting; {_meant(name, rows)}", field=name)
    return {name: rows[name].parse(value, str(file)) for name, value in found.items()}


def _meant(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"


def unknown_in_environment(table: type, environ: Mapping[str, str]) -> list[str]:
    """Names that look like settings and are none.  They are told, not refused: container platforms make variables from the names of services."""
    known = {row.environment for row in settings_of(table)} | {PREFIX + name for name in OTHER_NAMES}
    return sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
