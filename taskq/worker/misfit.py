"""Whether a task that failed was given arguments of other types than its function says, as a hint in the error.

Types are hints in Python, so nothing is refused for them, and nothing is looked at before a function has failed.
"""

from __future__ import annotations

import inspect
from typing import Any, get_origin, get_type_hints

from taskq.foreign import class_name
from taskq.worker.registry import TaskDefinition

# what a function may say → what may arrive for it
PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,), int: (int,), float: (int, float), str: (str,), bytes: (bytes,), list: (list,), tuple: (list,), dict: (dict,)
}  # fmt: skip


def misfit(definition: TaskDefinition, payload: Any, encoding: int) -> str:
    """`argument a is a str, and add says int: enqueue it as int`; "" if all of them fit, or nothing can be told.  Never raises."""
    try:
        args, kwargs = definition.arguments(payload, encoding)
        said = get_type_hints(definition.function)
        parameters, given = definition.parameters.signature.parameters, definition.parameters.signature.bind(*args, **kwargs).arguments
        wrong = next((name for name in given if not _fits(said.get(name), given[name], parameters[name])), None)
        if wrong is None:
            return ""
        meant = class_name(get_origin(said[wrong]) or said[wrong])
        return f"argument {wrong} is a {class_name(type(given[wrong]))}, and {definition.name} says {meant}: enqueue it as {meant}"
    except Exception:
        return ""


def _fits(said: Any, value: Any, parameter: inspect.Parameter) -> bool:
    accepted = PLAIN.get(get_origin(said) or said)
    if accepted is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or (value is None and parameter.default is None):
        return True
    return isinstance(value, accepted)
