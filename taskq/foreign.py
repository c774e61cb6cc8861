"""What can be learnt of an object whose code is not ours, without running that code.

Classes, texts and exceptions of users may answer every question with an exception or a lie; `type` and `str` themselves do not.
"""

from __future__ import annotations

from typing import Any

CLASS_BYTES_MAX = 256
NAMELESS = "a class without a name"
# modules whose classes are known by their names alone
FAMILIAR = ("builtins", "taskq.control")


def class_name(cls: type) -> str:
    """`ValueError`, `myapp.errors.NoSuchUser`."""
    try:
        name, module = of_class(cls, "__qualname__"), of_class(cls, "__module__")
        full = name if not isinstance(module, str) or module in FAMILIAR else f"{module}.{name}"
        return str.encode(full, errors="backslashreplace")[:CLASS_BYTES_MAX].decode(errors="ignore") or NAMELESS
    except BaseException:
        return NAMELESS


def of_class(cls: type, name: str) -> Any:
    """An attribute that `type` gives every class, whatever its metaclass says of it."""
    return type.__dict__[name].__get__(cls)


def is_one_of(value: object, classes: tuple[type, ...]) -> bool:
    """Whether it is an instance of one of them.  Like `except` it goes by the real class, so no `__class__` and no metaclass is asked."""
    return any(base is cls for base in of_class(type(value), "__mro__") for cls in classes)


def shortened(text: str, bytes_max: int) -> str:
    """The text in at most so many bytes of UTF-8: a long one loses its middle, what is not Unicode is escaped."""
    raw = str.encode(text, errors="backslashreplace")
    if len(raw) <= bytes_max:
        return raw.decode()
    half = (bytes_max - 48) // 2
    head, tail = raw[:half].decode(errors="ignore"), raw[-half:].decode(errors="ignore")
    return f"{head}\n… {len(raw) - 2 * half} bytes …\n{tail}"
