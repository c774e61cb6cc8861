"""From `module` or `module:attribute` to the App, in the process that runs user code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Protocol, cast

import attrs

from taskq.errors import ConfigError
from taskq.worker.registry import TaskDefinition


class AppLike(Protocol):
    """What the worker needs of an App."""

    @property
    def tasks(self) -> dict[str, TaskDefinition]: ...


@attrs.frozen
class NoApp:
    """The app of a worker that was given none."""

    tasks: dict[str, TaskDefinition] = attrs.field(factory=dict)


def load_app(reference: str) -> AppLike:
    """Import the module, with the working directory on the path, and find its App.  Whatever the import raises passes through."""
    module_name, _, attribute = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module = importlib.import_module(module_name)
    if attribute:
        app: Any = getattr(module, attribute, None)
        if not _is_app(app):
            raise ConfigError(f"app: {module_name} has no App named {attribute!r}", field="app")
        return cast("AppLike", app)
    found: dict[int, AppLike] = {id(value): value for value in vars(module).values() if _is_app(value)}
    if len(found) != 1:
        raise ConfigError(f"app: {module_name} has {len(found)} Apps; name one of them with --app {module_name}:NAME", field="app")
    return next(iter(found.values()))


def _is_app(value: object) -> bool:
    """A module has objects of all kinds beside its App, some of which raise when they are asked for anything (Flask's `request`)."""
    try:
        tasks = None if isinstance(value, type) else getattr(value, "tasks", None)
    except Exception:
        return False
    return isinstance(tasks, dict) and all(isinstance(task, TaskDefinition) for task in tasks.values())
