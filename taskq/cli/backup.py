"""`taskq backup`: a copy of a broker's data folder, while the broker works or stands still; run by whoever may read that folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from taskq.cli.broker import config_file
from taskq.cli.flags import start_errors
from taskq.config import MIB, BrokerConfig, load
from taskq.errors import StartError

if TYPE_CHECKING:
    from taskq.storage.backup import Backup

EXIT_FAILED = 1


@click.command()
@click.argument("target", metavar="TARGET")
@click.option("--data", metavar="PATH", default=None, help="The broker's data folder. [default: as the broker's; TASKQ_DATA]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(target: str, data: str | None, as_json: bool) -> None:
    """Copy the data folder to the new folder TARGET, restored once and checked.

    The broker may go on working: the backup has all that was acknowledged before it began. It is a data folder itself: to restore it, give it
    to a broker with --data.
    """
    with start_errors("taskq", EXIT_FAILED):
        made = _backup(data_folder(data), Path(target))
    if as_json:
        from taskq.cli.tables import print_json

        print_json({**attrs.asdict(made), "path": str(made.path.resolve())})
    else:
        print(f"{made.path}: {made.tasks:,} tasks, {made.size_bytes / MIB:,.1f} MiB, up to record {made.lsn:,} of the journal, {made.seconds:.1f} s")


def data_folder(flag: str | None) -> Path:
    """Where the broker keeps its data: read from the same sources as by the broker."""
    return Path(load(BrokerConfig, {"data": flag}, os.environ, config_file(None)).data)


def _backup(data: Path, target: Path) -> Backup:
    import asyncio
    import sqlite3

    from taskq.storage.backup import backup

    try:
        return asyncio.run(backup(data, target))
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"{data} cannot be backed up: {error}; nothing was left behind") from error
