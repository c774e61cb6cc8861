"""`taskq`: the commands for people, over the same TCP protocol and the same client as everybody.

Exit codes: 0 done; 1 the task failed, or there is no such task; 2 the command line is wrong; 69 the broker cannot be reached.
With `--json` the answer is one JSON value on stdout; errors are a line on stderr either way.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from taskq.cli.backup import backup
from taskq.cli.dev import dev
from taskq.cli.doctor import doctor
from taskq.cli.flags import HELP, TOKEN_FILE_HELP, token_from
from taskq.cli.token import token
from taskq.cli.waiting import suggestion, watched
from taskq.core.messages import ENCODINGS
from taskq.errors import BrokerUnavailable, StartError, TaskqError, echo
from taskq.printable import printable
from taskq.version import VERSION

if TYPE_CHECKING:
    from taskq.blocking import Client
    from taskq.handle import TaskInfo

# what people look for here → where it is
_WORKER = "the worker is a program of its own: taskq-worker --app MODULE (or taskq dev MODULE, which starts a broker too)"
_BROKER = "the broker is a program of its own: taskq-broker (or taskq dev MODULE, which starts a worker too)"
ELSEWHERE = {
    **dict.fromkeys(("worker", "work", "run-worker"), _WORKER),
    **dict.fromkeys(("broker", "server", "serve", "start", "run"), _BROKER),
    **dict.fromkeys(("status", "show", "info", "result", "get", "inspect"), "taskq task ID shows a task, taskq queues and taskq workers the rest"),
    **dict.fromkeys(("call", "send", "push", "publish", "apply"), "taskq enqueue TYPE KEY=VALUE enqueues a task"),
    **dict.fromkeys(("revoke", "abort", "kill"), "taskq cancel ID cancels a task"),
}

F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
DEADLINE = "5s"
CANCEL_ASKED = "it runs and was asked to stop; a function in a thread stops only if it looks at current_task().cancelled"
ERROR_CHARACTERS_MAX = 4_000
# where the context of a command keeps the name of the file
TOKEN_FILE = "taskq.token_file"
BROKER_HELP = "The broker; tls://HOST:PORT for TLS. [default: localhost:7000; TASKQ_URL]"
CA_KEY = "taskq.tls_ca"
CA_HELP = "Authorities (PEM) that may have signed its certificate. [default: those of the system; TASKQ_TLS_CA]"


def remember_token_file(context: click.Context, parameter: click.Parameter, file: str | None) -> None:
    """Every command can be given a token, and none has to pass it on."""
    if file:
        context.meta[TOKEN_FILE] = file


def takes_token(command: F) -> F:
    text = f"{TOKEN_FILE_HELP} [default: TASKQ_TOKEN; TASKQ_TOKEN_FILE]"
    named: Any = {"metavar": "PATH", "default": None, "envvar": "TASKQ_TOKEN_FILE", "expose_value": False}
    return click.option("--token-file", callback=remember_token_file, help=text, **named)(command)


def trusting(command: F) -> F:
    """The option --tls-ca, before or after the name of a command."""

    def remember(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
        if path is not None:
            context.meta[CA_KEY] = path

    return click.option("--tls-ca", metavar="PATH", default=None, expose_value=False, callback=remember, help=CA_HELP)(command)


class Commands(click.Group):
    """The commands; who asks for another program is told its name."""

    def resolve_command(self, context: click.Context, arguments: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        advice = ELSEWHERE.get(arguments[0].lower())
        if advice is not None and self.get_command(context, arguments[0]) is None:
            context.fail(f"no such command {arguments[0]!r}; {advice}")
        return super().resolve_command(context, arguments)


@click.group(cls=Commands, context_settings=HELP)
@click.option("--broker", "url", metavar="HOST:PORT", default=None, help=BROKER_HELP)
@takes_token
@trusting
@click.version_option(VERSION, prog_name="taskq")
@click.pass_context
def main(context: click.Context, url: str | None) -> None:
    """Enqueue tasks and look at them, their queues and their workers."""
    context.obj = url
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to fail


main.add_command(dev)
main.add_command(backup)
main.add_command(doctor)
main.add_command(token)


def talks(command: F) -> F:
    """The options of every command that talks to a broker."""
    command = takes_token(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
    return click.option("--broker", "url", metavar="HOST:PORT", default=None, help=BROKER_HELP)(trusting(command))


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    """A client; what goes wrong becomes a line on stderr and an exit code."""
    from taskq.blocking import Client

    context = click.get_current_context()
    try:
        token, authorities = token_from(context.meta.get(TOKEN_FILE)), context.meta.get(CA_KEY)
        with Client(url or context.obj, token=token, deadline=DEADLINE, tls_ca=authorities) as client:
            yield client
    except BrokerUnavailable as error:
        _end(EXIT_UNAVAILABLE, error)
    except StartError as error:
        _end(EXIT_USAGE, error)
    except TaskqError as error:
        _end(EXIT_FAILED, error)
    except (TypeError, ValueError) as error:
        _end(EXIT_USAGE, error)


def _end(code: int, error: Exception) -> None:
    print(f"taskq: {printable(str(error), ERROR_CHARACTERS_MAX)}", file=sys.stderr, flush=True)
    sys.exit(code)


# ---- enqueue -----------------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("task_type", metavar="TYPE")
@click.argument("arguments", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--payload", metavar="JSON", default=None, help="The whole payload, instead of KEY=VALUE.")
@click.option("--queue", metavar="NAME", default=None, help="[default: default]")
@click.option("--priority", metavar="0…9", default=None, help="0 first … 9 last, or critical, high, normal, low, bulk. [default: normal]")
@click.option("--delay", metavar="DURATION", default=None, help="Not before this time has passed.")
@click.option("--key", metavar="TEXT", default=None, help="Enqueue once: a second task of this key in the queue is not made.")
@click.option("--max-attempts", metavar="N", type=int, default=None, help="[default: 10]")
@click.option("--timeout", metavar="DURATION", default=None, help="The longest that one attempt may take. [default: none]")
@click.option("--id", metavar="ID", default=None, help="An id of ours that is sent again.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result; on stderr the id at once, and why the task does not run.")
@talks
def enqueue(
    task_type: str, arguments: tuple[str, ...], payload: str | None, wait: bool, url: str | None, as_json: bool, **options: str | int | None
) -> None:
    """Enqueue a task.

    Values that are JSON are read as JSON, others are text: taskq enqueue send_email to=user@example.com retries=3 tags='["a","b"]'
    """
    value = payload_of(arguments, payload)
    given: Any = {name: _number(option) if name == "priority" else option for name, option in options.items() if option is not None}
    with connected(url) as client:
        handle = client.enqueue(task_type, value, **given)
        info = watched(client, handle.id) if wait else None
    if info is not None:
        _tell_end(info, as_json)
        return
    fields = {"id": handle.id, "outcome": "created" if handle.created else "exists", "durability": handle.durability}
    _print(fields, as_json, lambda: print(handle.id))


def _number(text: Any) -> Any:
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def payload_of(arguments: tuple[str, ...], payload: str | None) -> Any:
    """The payload that a command line means; a usage error where it means none."""
    if payload is not None:
        if arguments:
            raise click.UsageError("give KEY=VALUE or --payload, not both")
        return _payload_json(payload)
    found: dict[str, Any] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{echo(argument)} is not KEY=VALUE; a payload of another form is given with --payload")
        if name in found:
            raise click.UsageError(f"{name} is given twice")
        found[name] = value_of(text)
    return found


def _payload_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--payload is not JSON: {error}") from None


def value_of(text: str) -> Any:
    """JSON if it is JSON, else the text itself.  NaN and Infinity are no JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> Any:
    raise ValueError(name)


# ---- look --------------------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("task_id", metavar="ID")
@talks
def task(task_id: str, url: str | None, as_json: bool) -> None:
    """Show a task: its state, its attempts, its result, and why it does not run."""
    with connected(url) as client:
        info = client.get(task_id)
        advice = "" if as_json else suggestion(client, info)
    _print(everything(info), as_json, lambda: show_task(info, advice))


def _tell_end(info: TaskInfo, as_json: bool) -> None:
    """The result of a finished task; exit 1 for one that did not complete."""
    from taskq.cli.tables import print_json, print_text

    done = info.state == "completed"
    if as_json or not done:
        _print(everything(info), as_json, lambda: show_task(info))
    else:
        result = decoded(info, "result")
        print_text(result) if isinstance(result, str) else print_json(result)
    if not done:
        sys.exit(EXIT_FAILED)


def everything(info: TaskInfo) -> dict[str, Any]:
    encodings = {name: ENCODINGS[info.fields[name]] for name in ("encoding", "result_encoding")}
    return {**info.fields, **encodings, "payload": decoded(info, "payload"), "result": decoded(info, "result")}


def decoded(info: TaskInfo, what: str) -> Any:
    """The payload or the result; the bytes themselves where they are not what their encoding says."""
    try:
        return getattr(info, what)
    except (ValueError, TypeError):
        return getattr(info, f"{what}_bytes")


def show_task(info: TaskInfo, advice: str = "") -> None:
    from taskq.cli.tables import ATTEMPTS, cell, print_fields, print_table

    fields = info.fields
    rows = [("id", info.id), ("task type", info.task_type), ("queue", info.queue), ("state", info.state)]
    if fields.get("blocker"):
        rows.append(("not running", fields["blocker"] + advice))
    if fields.get("cancel_requested") and not info.is_final:
        rows.append(("cancel", CANCEL_ASKED))
    rows.append(("attempts", f"{fields['attempts_used']} of {fields['max_attempts']}{_apart(fields)}"))
    if fields["worker"]:
        rows.append(("worker", fields["worker"]))
    rows += [(name.removesuffix("_ms"), cell(fields[name], name)) for name in ("enqueued_ms", "due_ms", "started_ms", "finished_ms") if fields[name]]
    rows.append(("payload", cell(decoded(info, "payload"))))
    if info.state == "completed":
        rows.append(("result", cell(decoded(info, "result"))))
    print_fields(rows)
    if fields["attempts"]:
        print()
        print_table(ATTEMPTS, [{**attempt, "error": last_line(attempt["error"])} for attempt in fields["attempts"]])


def _apart(fields: dict[str, Any]) -> str:
    return "".join(f", {fields[name]} {name}" for name in ("crashes", "interruptions") if fields[name])


def last_line(error: str) -> str:
    """The line of a traceback that says what went wrong."""
    return error.strip().rpartition("\n")[2]


@main.command()
@talks
def queues(url: str | None, as_json: bool) -> None:
    """List the queues and how many tasks are in each state."""
    _inspect("queues", url, as_json)


@main.command()
@talks
def workers(url: str | None, as_json: bool) -> None:
    """List the connected workers."""
    _inspect("workers", url, as_json)


@main.command()
@talks
def types(url: str | None, as_json: bool) -> None:
    """List the task types that workers have declared, and the options of their functions."""
    _inspect("task_types", url, as_json)


def _inspect(what: str, url: str | None, as_json: bool) -> None:
    from taskq.cli import tables

    with connected(url) as client:
        rows = getattr(client, what)()
    columns = {"queues": tables.QUEUES, "workers": tables.WORKERS, "task_types": tables.TASK_TYPES}[what]
    _print(rows, as_json, lambda: tables.print_table(columns, rows) if rows else print(f"no {what.replace('_', ' ')}"))


@main.command()
@click.argument("task_id", metavar="ID")
@talks
def cancel(task_id: str, url: str | None, as_json: bool) -> None:
    """Cancel a task; one that runs is asked to stop."""
    with connected(url) as client:
        outcome = client.cancel(task_id)
    words = {"cancelled": "cancelled", "requested": CANCEL_ASKED, "already_final": "it has ended already"}
    _print({"id": task_id, "outcome": outcome}, as_json, lambda: print(words[outcome]))
    if outcome == "already_final":
        sys.exit(EXIT_FAILED)


def _print(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    from taskq.cli.tables import print_json

    print_json(value) if as_json else show()
