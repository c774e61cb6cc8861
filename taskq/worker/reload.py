"""`--reload`: tells when code below the app's directory changes.  Needs watchfiles (extra `dev`); imports none of the user's code."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from importlib.machinery import PathFinder
from pathlib import Path

from taskq.errors import ConfigError


def app_directory(app: str | None) -> Path:
    """The directory of the app's top-level package, or of its module; the working directory when there is no app."""
    here = Path.cwd()
    top = (app or "").partition(":")[0].partition(".")[0]
    spec = PathFinder.find_spec(top, [str(here), *sys.path]) if top else None  # this process itself must not import from there
    if spec is None:
        return here
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin).parent if spec.origin and os.path.exists(spec.origin) else here


def check() -> None:
    """Raises ConfigError when changes cannot be watched."""
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("--reload needs watchfiles; install taskq[dev]", field="reload")


async def changes(app: str | None) -> AsyncIterator[str]:
    """The first path of every burst of changes to Python files."""
    from watchfiles import PythonFilter, awatch

    async for burst in awatch(app_directory(app), watch_filter=PythonFilter()):
        yield sorted(path for _, path in burst)[0]
