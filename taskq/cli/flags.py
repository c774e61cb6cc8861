"""From a table of settings to the flags of a command, and from a start that fails to a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from taskq.config import YES_OR_NO, Setting, settings_of
from taskq.errors import ConfigError, StartError
from taskq.printable import printable_lines
from taskq.version import VERSION

F = TypeVar("F", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
FORMATS = """A DURATION is a number of seconds, or text such as 250ms, 30s, 1h30m, 7d. A SIZE is a number of bytes, or text such as 512KiB, 64MiB."""

TOKEN_FILE_HELP = "File with the access token, for a broker that asks for one; a token on the command line could be read by everybody."
TOKEN_BYTES_MAX = 4_096


def token_from(file: str | None) -> str:
    """The access token in this file, else that of TASKQ_TOKEN, else "".  ConfigError if it is none."""
    from taskq.connection import token_or_environment

    if not file:
        return token_or_environment(None)
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(TOKEN_BYTES_MAX).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"token_file: {file} cannot be read: {error.strerror}", field="token_file") from None
    if not text.strip():
        raise ConfigError(f"token_file: {file} is empty; write into it what taskq token create has printed", field="token_file")
    return token_or_environment(text, f"token_file: {file}")


def settings_flags(table: type) -> Callable[[F], F]:
    """The flags of a table, each with its default and its environment variable in the help.  Values stay text: `config.load` reads them."""

    def decorate(command: F) -> F:
        for row in reversed(settings_of(table)):
            command = _flag(row)(command)
        return click.version_option(VERSION, prog_name="taskq")(command)

    return decorate


def _flag(row: Setting) -> Callable[[F], F]:
    text = f"{row.help} [default: {row.shown_default()}; {row.environment}]"
    if row.kind is YES_OR_NO:
        return click.option(row.flag, row.name, is_flag=True, flag_value="true", default=None, help=text)
    return click.option(row.flag, row.name, type=str, default=None, metavar=row.kind.metavar, help=text)


@contextmanager
def start_errors(program: str, exit_code: int | None = None) -> Iterator[None]:
    """A start that cannot succeed ends the program with one message on stderr and the error's exit code, or this one."""
    try:
        yield
    except StartError as error:
        print(f"{program}: {printable_lines(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code if exit_code is None else exit_code)
