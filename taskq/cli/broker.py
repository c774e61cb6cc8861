"""`taskq-broker`: the settings, the process, one node in it, its signals and its end.

One line on stdout says that it is ready; logs go to stderr.  Exit codes: 0 after an orderly stop, 70 when the node crashed (what it had
acknowledged is in the journal, the next start recovers), else that of the StartError, also when damage shows itself only later.  Only here
are the policies of the process set: loop, garbage collection, switch interval, open files, since only here does the process belong to taskq.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from taskq.cli.flags import FORMATS, HELP, settings_flags, start_errors
from taskq.cli.streams import open_streams, say
from taskq.config import BrokerConfig, load, unknown_in_environment
from taskq.errors import ConfigError, StartError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from taskq.node import Node

EXIT_CRASH = 70
CONFIG_FILE = Path("taskq.toml")
# few young objects at a time, since to look at 100,000 stopped the loop for tens of milliseconds; older generations, whose objects are the tasks,
# are left alone, so a cycle that outlives the youngest stays
GC_THRESHOLDS = (5_000, 1_000_000, 1_000_000)
# how long the store's thread waits for the GIL while the loop is busy; the default of 5 ms starves it
SWITCH_INTERVAL_S = 0.0005
LOOPS = ("auto", "uvloop", "asyncio")
CONFIG_HELP = "TOML file with any of these settings. [default: taskq.toml if it is there; TASKQ_CONFIG]"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


@click.command(context_settings=HELP, epilog=FORMATS)
@click.option("--config", type=str, default=None, metavar="PATH", help=CONFIG_HELP)
@settings_flags(BrokerConfig)
def broker(config: str | None, **flags: Any) -> NoReturn:
    """The broker: keeps tasks on disk and hands them to workers.

    Each setting can also stand in a TOML file (shards = 8) and in the environment (TASKQ_SHARDS=8). A flag wins over the environment, the
    environment over the file.
    """
    open_streams()
    with start_errors("taskq-broker"):
        file = config_file(config)
        settings = load(BrokerConfig, flags, os.environ, file)
        code = run(settings, file)
    sys.stderr.flush()
    sys.exit(code)


def config_file(flag: str | None) -> Path | None:
    """The file that was named, else taskq.toml of the working directory if it is there."""
    named = flag or os.environ.get("TASKQ_CONFIG")
    if named:
        return Path(named)
    return CONFIG_FILE if CONFIG_FILE.is_file() else None


def run(config: BrokerConfig, file: Path | None = None) -> int:
    """Run a broker in this process until it is told to stop; the exit code.  Raises StartError."""
    import asyncio
    import gc

    from taskq.actors.doors import FILES_SPARE

    log_to_stderr(config, file)
    factory = loop_factory(os.environ.get("TASKQ_LOOP") or "auto")
    raise_file_limit(2 * config.connections_max + FILES_SPARE)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(serve(config))


async def serve(config: BrokerConfig) -> int:
    """Start a node, say so, wait for a signal, drain and stop."""
    import asyncio
    import signal

    from taskq.node import Node

    node = Node(config)
    stop = stop_signals()
    try:
        await node.start()
    except OSError as error:
        raise StartError(f"cannot start: {error}; another address can be given with --listen and --http, another folder with --data") from error
    node.failed.add_done_callback(end_on_crash)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_certificate if config.tls else ignore_hangup, node)
    rest_from_collections()
    say(ready_line(config, node))
    await stop.get()
    await drain(node, config.drain, asyncio.ensure_future(stop.get()))
    await node.stop()
    return 0


async def drain(node: Node, seconds: float, again: asyncio.Future[int]) -> None:
    """Let running tasks end; a second signal does not wait for them.  What was acknowledged is flushed either way."""
    import asyncio
    import logging

    log = logging.getLogger("taskq.broker")
    log.info("stopping: nothing new is admitted, running tasks have %g s; a second signal stops at once", seconds)
    draining: asyncio.Future[Any] = asyncio.ensure_future(node.drain(seconds))
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        log.warning("stopping at once")
    again.cancel()
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)


def stop_signals() -> asyncio.Queue[int]:
    """The signals that ask to stop, as they come; from here on none of them ends the process by itself."""
    import asyncio
    import signal

    received: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received.put_nowait, int(number))
    return received


def reload_certificate(node: Node) -> None:
    """SIGHUP: the files of the certificate have changed."""
    import logging

    log = logging.getLogger("taskq.broker")
    try:
        node.reload_certificate()
    except ConfigError as error:
        log.error("the certificate was not read again, the old one stays: %s", error)
    else:
        log.info("the certificate was read again")


def ignore_hangup(node: Node) -> None:
    """SIGHUP without TLS: a terminal was closed, or a service manager asks to read again; there is nothing to read."""
    import logging

    logging.getLogger("taskq.broker").info("SIGHUP: there is no certificate to read again, the broker goes on")


def end_on_crash(failed: asyncio.Future[None]) -> None:
    """The node's state is not to be trusted any more: nothing is cleaned up, recovery is the way back."""
    crash = None if failed.cancelled() else failed.exception()
    if crash is None:
        return
    import logging

    trace = None if isinstance(crash, StartError) else crash  # what is no bug needs none
    logging.getLogger("taskq.broker").critical("the broker crashed and ends: %s: %s", type(crash).__name__, crash, exc_info=trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(crash.exit_code if isinstance(crash, StartError) else EXIT_CRASH)


def ready_line(config: BrokerConfig, node: Node) -> str:
    folder = Path(config.data).resolve()
    return (
        f"taskq-broker listening tcp={node.tcp} http={node.http} data={folder} shards={config.shards} "
        f"durability={config.durability} pid={os.getpid()}"
    )


# ---- the process -------------------------------------------------------------------------------------------------------------------


def log_to_stderr(config: BrokerConfig, file: Path | None) -> None:
    import logging

    from taskq import printable

    printable.log_to_stderr(logging.getLevelNamesMapping()[config.log_level.upper()], LOG_FORMAT)
    log = logging.getLogger("taskq.broker")
    if file is not None:
        log.info("settings are read from %s", file)
    for name in unknown_in_environment(BrokerConfig, os.environ):
        log.warning("the environment variable %s is no setting and is ignored", name)
    if config.insecure:
        log.warning("insecure is set: whoever reaches %s or %s can enqueue, read and cancel tasks", config.listen, config.http)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """TASKQ_LOOP: auto is uvloop where it is installed, else asyncio."""
    import asyncio

    if name not in LOOPS:
        raise ConfigError(f"TASKQ_LOOP: {name!r} is not one of {', '.join(LOOPS)}", field="TASKQ_LOOP")
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise ConfigError("TASKQ_LOOP: uvloop is not installed; install it or set TASKQ_LOOP=auto", field="TASKQ_LOOP") from None
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def raise_file_limit(files: int) -> None:
    """Each connection is an open file; the usual soft limit of 1,024 is far below what the hard one allows.  ConfigError if that allows too few."""
    import resource

    from taskq.actors.doors import FILES_LEAST

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < FILES_LEAST:
        told = f"open files: this process may have {hard:,}, and needs at least {FILES_LEAST:,}, or {files:,} for connections_max on both ports"
        raise ConfigError(f"{told}; raise the hard limit: ulimit -n, or LimitNOFILE of the service", field="connections_max")


def rest_from_collections() -> None:
    """What was loaded so far stays; a full collection over a million live tasks would stop the loop for hundreds of milliseconds."""
    import gc

    gc.collect()
    gc.freeze()
