"""From `module` or `module:attribute` to the App, in the process that runs user code; and what to say when there is none."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, cast

import attrs

from taskq.advice import did_you_mean
from taskq.errors import ConfigError
from taskq.foreign import shortened
from taskq.worker.failure import error_text
from taskq.worker.registry import TaskDefinition

OURS = Path(__file__).parents[1]
EXPLAINED_BYTES_MAX = 16_000
IMPORTS = ("importlib", "<frozen importlib")


class AppLike(Protocol):
    """What the worker needs of an App."""

    @property
    def tasks(self) -> dict[str, TaskDefinition]: ...


@attrs.frozen
class NoApp:
    """The app of a worker that was given none."""

    tasks: dict[str, TaskDefinition] = attrs.field(factory=dict)


def load_app(reference: str) -> AppLike:
    """Import the module, with the working directory on the path, and find its App.  ConfigError if there is no such module, or no one App in it;
    whatever else the import raises passes through."""
    module_name, attribute = parse(reference)
    here = Path.cwd()
    if str(here) not in sys.path:
        _check_shadows(here)
        sys.path.insert(0, str(here))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(_no_module(module_name, error), field="app") from None
    apps = {name: value for name, value in vars(module).items() if _is_app(value)}
    if attribute:
        return _named(module_name, attribute, apps)
    found: dict[int, AppLike] = {id(app): app for app in apps.values()}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        way_out = f"write `app = taskq.App()` in it, or give the module that has the App, as --app MODULE or --app {module_name}:NAME"
        raise ConfigError(f"app: {module_name} has no App; {way_out}", field="app")
    raise ConfigError(f"app: {module_name} has {len(found)} Apps, {', '.join(apps)}; write --app {module_name}:{next(iter(apps))}", field="app")


def parse(reference: str) -> tuple[str, str]:
    """Module and attribute.  ConfigError for the name of a file, which says the module."""
    written, _, attribute = reference.strip().partition(":")
    module_name = _module_of(written)
    parts = [*module_name.split("."), *(attribute.split(".") if attribute else ())]
    if not all(part.replace("-", "_").isidentifier() for part in parts):
        raise ConfigError(f"app: {reference!r} is not MODULE or MODULE:NAME; write for example --app tasks or --app shop.tasks:app", field="app")
    if module_name == written:
        return module_name, attribute
    start = f"start the worker in {Path(written).parent} and " if Path(written).is_absolute() else ""
    meant = f"{module_name}:{attribute}" if attribute else module_name
    raise ConfigError(f"app: {reference!r} is no name of a module; {start}write --app {meant}", field="app")


def explain(error: BaseException) -> str:
    """An import that failed, for people: the traceback from the first line of their own code on.  Never raises, whatever the exception is like."""
    if type(error) is ConfigError:
        return shortened(str(error), EXPLAINED_BYTES_MAX)
    with suppress(BaseException):  # some exceptions do not even tell their traceback
        place = error.__traceback__
        while place is not None and _is_machinery(place.tb_frame.f_code.co_filename):
            place = place.tb_next
        error.__traceback__ = place
    return error_text(error, EXPLAINED_BYTES_MAX)


def _check_shadows(folder: Path) -> None:
    """From here on the folder is looked at first.  ConfigError if it has a module of a name that means another one in this process already: whoever
    imports it would get one of the two by chance."""
    found = [path for name in sorted(_imported(folder)) for path in (folder / f"{name}.py", folder / name / "__init__.py") if path.is_file()]
    if found:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        hidden = ", ".join(path.parent.name if path.name == "__init__.py" else path.stem for path in found)
        raise ConfigError(f"app: {names} in {folder} has the name of the module {hidden} that the worker needs; give it another name", field="app")


def _imported(folder: Path) -> set[str]:
    """The modules of this process that were read from files of other folders.  What is built into Python cannot be hidden."""
    specs = {name: module.__spec__ for name, module in list(sys.modules.items()) if "." not in name and getattr(module, "__spec__", None)}
    files = {name: Path(spec.origin) for name, spec in specs.items() if spec is not None and spec.has_location and spec.origin}
    return {name for name, path in files.items() if folder not in path.parents}


def _named(module_name: str, attribute: str, apps: dict[str, Any]) -> AppLike:
    app: Any = sys.modules[module_name]
    for name in attribute.split("."):
        app = getattr(app, name, None)
    if not _is_app(app):
        has = f"it has {', '.join(apps)}" if apps else "it has none"
        near = did_you_mean(attribute, apps)
        raise ConfigError(f"app: {module_name} has no App named {attribute!r}; {has}{near and f', {near}'}", field="app")
    return cast("AppLike", app)


def _no_module(name: str, error: ModuleNotFoundError) -> str:
    if "is not a package" in str(error):
        package = name.rpartition(".")[0]
        return (
            f"app: there is no module {name}, as {package} is a file and no package; write --app {package}, or --app {package}:NAME for an App in it"
        )
    here = Path.cwd()
    near = did_you_mean(name, [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")])
    where = f"in {here}, where it is looked for first, or among the installed packages"
    return f"app: there is no module {error.name} {where}; {near or 'start the worker in the folder that has it'}"


def _module_of(path: str) -> str:
    """`./shop/tasks.py` → `shop.tasks`; a module's own name stays."""
    if "/" not in path and "\\" not in path and not path.endswith(".py"):
        return path.lstrip(".")
    parts = Path(path.replace("\\", "/")).with_suffix("").parts
    if Path(path).is_absolute():
        parts = parts[-1:]
    return ".".join(part for part in parts if part not in (".", ".."))


def _is_machinery(filename: str) -> bool:
    return filename.startswith(IMPORTS) or Path(filename).parent.name == "importlib" or OURS in Path(filename).parents


def _is_app(value: object) -> bool:
    """A module has objects of all kinds beside its App, some of which raise when they are asked for anything (Flask's `request`)."""
    try:
        tasks = None if isinstance(value, type) else getattr(value, "tasks", None)
    except Exception:
        return False
    return isinstance(tasks, dict) and all(isinstance(task, TaskDefinition) for task in tasks.values())
