"""From a table of settings to the flags of a command, and from a start that fails to a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from taskq.config import YES_OR_NO, Setting, settings_of
from taskq.errors import StartError
from taskq.printable import printable_lines
from taskq.version import VERSION

F = TypeVar("F", bound=Callable[..., Any])

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
FORMATS = """A DURATION is a number of seconds, or text such as 250ms, 30s, 1h30m, 7d. A SIZE is a number of bytes, or text such as 512KiB, 64MiB."""


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
def start_errors(program: str) -> Iterator[None]:
    """A start that cannot succeed ends the program with one message on stderr and the error's exit code."""
    try:
        yield
    except StartError as error:
        print(f"{program}: {printable_lines(str(error))}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
