"""`taskq token`: access tokens for a broker with --auth.  It works on the broker's data folder, so it runs where the broker does, as its user.

A running broker takes notice by itself: of a new token at once, of a revoked one within two seconds, also on connections that are open.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from taskq.cli.backup import data_folder
from taskq.cli.flags import HELP, start_errors
from taskq.core.access import SCOPES

EXIT_FAILED = 1
DATA_HELP = "Folder of the broker. [default: that of the broker's settings, else ./taskq-data; TASKQ_DATA]"
SCOPE_HELP = f"{', '.join(SCOPES)}, alone or with queues: produce:email*; may be given several times."
KEEP = "This is the only time that it is shown: keep it where secrets are kept.  Programs take it from TASKQ_TOKEN or --token-file."

F = TypeVar("F", bound=Callable[..., Any])


def of_folder(command: F) -> F:
    return click.option("--data", metavar="PATH", default=None, help=DATA_HELP)(command)


@click.group(context_settings=HELP)
def token() -> None:
    """Make, list and revoke access tokens, on the broker's machine."""


@contextmanager
def _folder(data: str | None) -> Iterator[Path]:
    """The data folder, found as the broker finds it."""
    with start_errors("taskq token"):
        yield data_folder(data)


@token.command()
@click.argument("name")
@click.option("--scope", "scopes", metavar="SCOPE[:QUEUES]", multiple=True, required=True, help=SCOPE_HELP)
@of_folder
def create(name: str, scopes: tuple[str, ...], data: str | None) -> None:
    """Make a token and print it.

    In QUEUES a * stands for anything: taskq token create mailer --scope produce:email* --scope read:email*
    """
    from taskq.core import gate, scram
    from taskq.storage.tokens import changing

    try:
        grant = gate.grant_of(name, scopes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    text = gate.text_of(name, secrets.token_bytes(gate.SECRET_BYTES))
    made = gate.AccessToken.of(grant, text, secrets.token_bytes(scram.SALT_BYTES), time.time_ns() // 1_000_000)
    with _folder(data) as folder, changing(folder) as tokens:
        if name in tokens:
            _fail(f"there is a token {name} already; revoke it first, or take another name")
        tokens[name] = made
    print(text, flush=True)
    print(KEEP, file=sys.stderr)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@of_folder
def show(as_json: bool, data: str | None) -> None:
    """List the tokens and what they allow; the tokens themselves are kept nowhere."""
    from taskq.cli.tables import TOKENS, print_json, print_table
    from taskq.core.access import scope_text
    from taskq.storage.tokens import TokenFile

    with _folder(data) as folder:
        found = TokenFile(folder).tokens().values()
    rows = [{"name": each.grant.name, "scopes": list(map(scope_text, each.grant.scopes)), "created_ms": each.created_ms} for each in found]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(TOKENS, rows)
    else:
        print("no tokens")


@token.command()
@click.argument("name")
@of_folder
def revoke(name: str, data: str | None) -> None:
    """Take a token back; connections that were opened with it end within two seconds."""
    from taskq.storage.tokens import changing

    with _folder(data) as folder, changing(folder) as tokens:
        if tokens.pop(name, None) is None:
            _fail(f"there is no token {name}; taskq token list shows those that there are")
    print(f"revoked {name}")


def _fail(text: str) -> None:
    print(f"taskq token: {text}", file=sys.stderr, flush=True)
    sys.exit(EXIT_FAILED)
