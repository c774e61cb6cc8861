"""`taskq-worker`: its settings, handed to the keeper.  The rest is `taskq.worker`."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import attrs
import click

from taskq.cli.flags import FORMATS, HELP, TOKEN_FILE_HELP, settings_flags, start_errors, token_from
from taskq.cli.streams import open_streams
from taskq.config import NAMES, PATH, PATH_OR_NONE, TEXT, YES_OR_NO, choice, duration, integer, load, setting
from taskq.worker.logs import FORMATS as FORMATS_OF_LOGS
from taskq.worker.settings import WorkerConfig


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What a worker is told."""

    connect: str = setting("localhost:7000", TEXT, "The broker, as HOST:PORT, or tls://HOST:PORT for TLS.", environment="TASKQ_URL")
    tls_ca: str = setting("", PATH_OR_NONE, "Authorities (PEM) that may have signed the broker's certificate.", empty="those of the system")
    app: str | None = setting(None, TEXT, "The tasks: a module that has an App, or MODULE:NAME; looked for in the working directory first.")
    queues: tuple[str, ...] = setting((), NAMES, "Queues to work on, in order of preference.", empty="default and the app's own")
    concurrency: int = setting(100, integer(1, 10_000), "Most tasks that run at a time.")
    pool: str = setting("auto", choice("auto", "async", "thread", "process"), "Where functions made with def run; auto: in threads.")
    drain: float = setting(25.0, duration(0, 86_400), "How long running tasks may go on after SIGTERM; the rest is handed back.")
    name: str = setting("", TEXT, "The name in lists of workers.", empty="HOST:PID")
    reload: bool = setting(False, YES_OR_NO, "Start again when the app's code changes (for development; needs watchfiles).")
    log_level: str | None = setting(
        None, choice("debug", "info", "warning", "error"), "What is logged, on stderr.", empty="info, or as the app configures its logging"
    )
    log_format: str = setting("text", choice(*FORMATS_OF_LOGS), "How: lines for people, or one JSON object a line; an app's own format wins.")
    token_file: str | None = setting(None, PATH, TOKEN_FILE_HELP, empty="TASKQ_TOKEN")

    def config(self) -> WorkerConfig:
        fields = attrs.asdict(self)
        return WorkerConfig(drain_s=fields.pop("drain"), token=token_from(fields.pop("token_file")), **fields)


@click.command(context_settings={**HELP, "allow_extra_args": True}, epilog=FORMATS)
@settings_flags(WorkerSettings)
@click.pass_context
def worker(context: click.Context, /, **flags: Any) -> NoReturn:
    """A worker: takes tasks from the broker and runs the Python functions of an app.

    SIGTERM, SIGINT and SIGHUP let running tasks end within --drain and hand back the rest; a second SIGTERM, or SIGQUIT, stops at once.
    """
    if context.args:
        raise click.UsageError(f"unexpected argument {context.args[0]!r}; the module of the tasks is given with --app {context.args[0]}")
    open_streams()
    with start_errors("taskq-worker"):
        settings = load(WorkerSettings, flags, os.environ)
        if settings.app is None:
            print("taskq-worker: no --app was given, so this worker can run no task type and stays idle", file=sys.stderr, flush=True)
        from taskq.worker import keeper

        code = keeper.main(settings.config())
    sys.exit(code)
