"""Tasks that end in every way that is hard to tell of: `worker/test_hostile.py` runs them in all pools, children of the process pool import them."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator
from typing import Any

from taskq.control import Discard, Retry, Snooze
from taskq.worker.registry import TaskDefinition


class Unspeakable(Exception):
    """Each way to learn of it raises what it was made with."""

    def __str__(self) -> str:
        raise self.args[0]

    __repr__ = __str__


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class SlyText(str):
    def __len__(self) -> int:
        raise ValueError("no length")

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        raise ValueError("no bytes")

    def __format__(self, spec: str) -> str:
        raise ValueError("no format")


class Sly(Exception):
    def __str__(self) -> str:
        return SlyText("sly")


class Masked(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...


class Guarded(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise KeyboardInterrupt(name)


class Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise SystemExit(3)

    def __eq__(cls, other: object) -> bool:
        raise SystemExit(4)

    __hash__ = None  # type: ignore[assignment]


class OddClass(Exception, metaclass=Meta): ...


class NoModule(Exception):
    __module__ = 7  # type: ignore[assignment]


class BareRetry(Retry):
    def __init__(self) -> None: ...


class BareSnooze(Snooze):
    def __init__(self) -> None: ...


class BareDiscard(Discard):
    def __init__(self) -> None: ...


def long_name() -> BaseException:
    return type("N" * 100_000, (Exception,), {})("x")


def odd_syntax_error() -> BaseException:
    error = SyntaxError("x")
    error.lineno, error.text, error.offset, error.filename = "one", 5, object(), b"\xff"  # type: ignore[assignment]
    return error


def noted() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = 5  # type: ignore[assignment]
    return error


def with_causes(count: int) -> BaseException:
    error = ValueError("first")
    for number in range(count):
        following = ValueError(f"cause {number}")
        following.__cause__ = error
        error = following
    return error


def caused_by_itself() -> BaseException:
    error, other = ValueError("circle"), ValueError("other")
    error.__context__, other.__context__ = other, error
    return error


def nested_group(levels: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(levels):
        error = ExceptionGroup("group", [error])
    return error


def retry_with_odd_delay(delay: Any) -> BaseException:
    error = Retry("1s")
    error.after_ms = delay
    return error


def snooze_with_odd_delay(delay: Any) -> BaseException:
    error = Snooze("1s")
    error.delay_ms = delay
    return error


# what is raised, and the error type that the attempt fails with
RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "str_raises": (lambda: Unspeakable(ValueError("no")), "Unspeakable"),
    "str_exits": (lambda: Unspeakable(SystemExit(0)), "Unspeakable"),
    "str_interrupts": (lambda: Unspeakable(KeyboardInterrupt()), "Unspeakable"),
    "str_recurses": (lambda: Unspeakable(RecursionError()), "Unspeakable"),
    "str_has_no_memory": (lambda: Unspeakable(MemoryError()), "Unspeakable"),
    "str_closes": (lambda: Unspeakable(GeneratorExit()), "Unspeakable"),
    "str_cancels": (lambda: Unspeakable(asyncio.CancelledError()), "Unspeakable"),
    "str_is_no_text": (NoText, "NoText"),
    "str_is_sly": (Sly, "Sly"),
    "no_class": (lambda: Masked("x"), "Masked"),
    "no_attributes": (lambda: Guarded("x"), "Guarded"),
    "odd_metaclass": (lambda: OddClass("x"), "OddClass"),
    "odd_module": (lambda: NoModule("x"), "NoModule"),
    "long_name": (long_name, "NNN"),
    "syntax_error": (odd_syntax_error, "SyntaxError"),
    "odd_notes": (noted, "ValueError"),
    "many_causes": (lambda: with_causes(50_000), "ValueError"),
    "circle": (caused_by_itself, "ValueError"),
    "deep_group": (lambda: nested_group(5_000), "ExceptionGroup"),
    "wide_group": (lambda: ExceptionGroup("wide", [ValueError(n) for n in range(50_000)]), "ExceptionGroup"),
    "long_text": (lambda: ValueError("x" * 10_000_000), "ValueError"),
    "long_text_of_many_bytes": (lambda: ValueError("語" * 4_000), "ValueError"),
    "surrogates": (lambda: ValueError("\ud800" * 9_000), "ValueError"),
    "exits": (lambda: SystemExit(Unspeakable(ValueError())), "SystemExit"),
    "interrupts": (KeyboardInterrupt, "KeyboardInterrupt"),
    "closes": (GeneratorExit, "GeneratorExit"),
    "cancels": (asyncio.CancelledError, "CancelledError"),
    "ends_iteration": (StopIteration, "StopIteration|RuntimeError"),
    "ends_async_iteration": (StopAsyncIteration, "StopAsyncIteration|RuntimeError"),
    "no_memory": (MemoryError, "MemoryError"),
    "bare_retry": (BareRetry, "BareRetry"),
    "bare_discard": (BareDiscard, "BareDiscard"),
    "bare_snooze": (BareSnooze, "BareSnooze"),
    "retry_with_an_error_as_reason": (lambda: Retry(reason=ValueError("busy")), "Retry"),
    "retry_with_a_long_reason": (lambda: Retry(reason="語" * 1_000_000), "Retry"),
    "retry_after_text": (lambda: retry_with_odd_delay("soon"), "Retry"),
    "retry_after_nothing_countable": (lambda: retry_with_odd_delay(float("nan")), "Retry"),
    "retry_after_a_number_too_large": (lambda: retry_with_odd_delay(1 << 80), "Retry"),
    "retry_before_now": (lambda: retry_with_odd_delay(-5), "Retry"),
    "snooze_for_text": (lambda: snooze_with_odd_delay("soon"), "Snooze"),
    "snooze_for_too_long": (lambda: snooze_with_odd_delay(1 << 80), "Snooze"),
}


class Wild(dict[Any, Any]):
    def items(self) -> Any:
        raise KeyboardInterrupt

    __iter__ = keys = __len__ = items


class Lying(dict[Any, Any]):
    def __len__(self) -> int:
        return 5


class WildList(list[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise OSError("gone")


class Endless(int):
    def __index__(self) -> int:
        raise ValueError("no number")

    __int__ = __index__


class Unlike(str):
    """Not equal to its twin, so a dict has both of them as keys."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Nameless(metaclass=Meta): ...


async def never_awaited() -> None: ...


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


# what is returned, and words of the error that the attempt fails with
RETURNED: dict[str, tuple[Callable[[], Any], str]] = {
    "map_that_raises": (lambda: Wild(a=1), "KeyboardInterrupt"),
    "list_that_raises": (lambda: {"a": [WildList([1])]}, r"OSError.*at \['a'\]\[0\]"),
    "same_keys": (lambda: {Unlike("a"): 1, Unlike("a"): 2}, "twice"),
    "tuple_as_key": (lambda: {"a": {(1, 2): 3}}, r"tuple.* as a key at \['a'\]"),
    "set_as_key": (lambda: {frozenset([1]): 3}, "frozenset"),
    "deep": (lambda: deep(100_000), "nested"),
    "circle": (circle, "nested"),
    "large_number": (lambda: {"n": 1 << 64}, r"64 bits at \['n'\]"),
    "number_of_many_digits": (lambda: 10**5_000, "64 bits"),
    "surrogate": (lambda: ["\ud800"], r"Unicode at \[0\]"),
    "surrogate_as_key": (lambda: {"\ud800": 1}, "Unicode"),
    "a_class": (lambda: Nameless, "Meta"),
    "odd_class": (Nameless, "Nameless"),
    "generator": (lambda: (n for n in range(3)), "generator"),
    "coroutine": (never_awaited, "coroutine"),
    "exception": (lambda: ValueError("x"), "ValueError"),
    "retry": (Retry, "raise"),
    "retry_class": (lambda: Retry, "raise"),
    "snooze": (lambda: Snooze(5), "raise"),
    "itself": (lambda: itself(), "Task|Event"),
}


class Color(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


# what is returned, and what arrives
ARRIVES: dict[str, tuple[Callable[[], Any], Any]] = {
    "map_of_another_length": (lambda: Lying(a=1), {"a": 1}),
    "enum": (lambda: {Color.RED: [Number.ONE, Color.RED]}, {"red": [1, "red"]}),
    "tuples": (lambda: ((1, 2), {"a": (3,)}), [[1, 2], {"a": [3]}]),
    "number_without_index": (lambda: Endless(5), 5),
    "odd_keys": (lambda: {None: 1, 2.5: 2, True: 3, b"x": 4, -7: 5}, {None: 1, 2.5: 2, True: 3, b"x": 4, -7: 5}),
    "infinity": (lambda: [float("inf")], [float("inf")]),
    "not_so_deep": (lambda: deep(400), deep(400)),
}


def itself() -> Any:
    """The run's own Task, or where there is no loop something as hard to send."""
    import threading

    try:
        return asyncio.current_task() or threading.Event()
    except RuntimeError:
        return threading.Event()


def _raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    def task() -> None:
        raise make()

    return task


def _returning(make: Callable[[], Any]) -> Callable[[], Any]:
    def task() -> Any:
        return make()

    return task


ALL: dict[str, Callable[[], Any]] = {
    **{f"raises_{name}": _raising(make) for name, (make, _) in RAISED.items()},
    **{f"returns_{name}": _returning(make) for name, (make, _) in (RETURNED | ARRIVES).items()},
}


class App:
    def __init__(self) -> None:
        self.tasks = {name: TaskDefinition(name, function, pool="process") for name, function in ALL.items()}


app = App()
