"""What can be a task: a function, async or not, that every process finds by importing its module, and that ends with a value.

Everything else is refused when it is decorated, with the way out, since on a worker it would fail at each attempt, or do nothing and say so to
nobody.  And when two functions are one: a notebook's cell that is run again, `importlib.reload`, a module that is both `__main__` and imported.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

MAIN = "__main__"
SELVES = ("self", "cls")


def check_function(function: Any) -> Callable[..., Any]:
    """The function itself; TypeError that says what it is instead, and what to write."""
    for is_that, advice in REFUSALS:
        if is_that(function):
            raise TypeError(f"@app.task: {_shown(function)} {advice}")
    try:
        inspect.signature(function)
    except ValueError:
        raise TypeError(f"@app.task: {_shown(function)} does not tell its parameters; {_CALLER}") from None
    checked: Callable[..., Any] = function
    return checked


def is_same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether the second is the first again: defined at the same place, or its twin in the file that was started as `__main__`."""
    if _name(one) != _name(other):
        return False
    modules = {one.__module__, other.__module__}
    return len(modules) == 1 or (MAIN in modules and _file(one) is not None and _file(one) == _file(other))


def place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{_name(function)}"


def _shown(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else repr(value)[:100]


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", function.__name__)


def _file(function: Callable[..., Any]) -> str | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return None if code is None else code.co_filename


def _is_method(value: Any) -> bool:
    """Bound to an object, or defined in a class body to be bound later."""
    if inspect.ismethod(value):
        return True
    if not inspect.isfunction(value):
        return False
    *_, parent, _ = ["<locals>", *value.__qualname__.split(".")]
    return parent != "<locals>" and value.__code__.co_varnames[:1] in [(name,) for name in SELVES] and value.__code__.co_argcount > 0


def _is_nameless(value: Any) -> bool:
    return not callable(value) or not isinstance(getattr(value, "__name__", None), str)


_CALLER = "write a function with def that calls it, and make that the task"
REFUSALS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: isinstance(value, str), "is not a function; write @app.task(name=…) to name the task, or @app.task(queue=…) for its queue"),
    (inspect.isclass, f"is a class; {_CALLER}"),
    (lambda value: hasattr(value, "enqueue"), "is a task already; decorate the function once, and enqueue it through one app"),
    (lambda value: isinstance(value, functools.partial), f"is a functools.partial; {_CALLER}"),
    (lambda value: isinstance(value, (staticmethod, classmethod, property)), "is wrapped by its class; write the task as a function of the module"),
    (_is_method, "is a method, and its object is not on the worker; write a function of the module that makes or finds the object and calls it"),
    (_is_nameless, f"is not a function; {_CALLER}"),
    (lambda value: value.__name__ == "<lambda>", "is a lambda, which has no name of its own; write it with def"),
    (inspect.isgeneratorfunction, "is a generator, and a task ends with one value; return a list, or enqueue a task for each item"),
    (inspect.isasyncgenfunction, "is an async generator, and a task ends with one value; return a list, or enqueue a task for each item"),
)
