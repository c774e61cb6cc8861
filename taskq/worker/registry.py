"""What a worker knows about a task type: its function, its options, how a payload becomes arguments, how an exception ends an attempt.

A registry is a plain dict, name → TaskDefinition; `App.tasks` is one.  This file runs nothing and knows neither connections nor pools: it says
which pool a task wants and what an exception means, the runner does the rest.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

import attrs

from taskq import serial
from taskq.control import ArgumentsError, Discard, Retry
from taskq.core import messages as m
from taskq.core.messages import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DISCARD, PRIORITIES, RETRY, RETRY_AFTER, Payload
from taskq.errors import echo
from taskq.foreign import is_one_of
from taskq.worker.failure import delay_of, error_text, type_name

Pool: TypeAlias = Literal["async", "thread", "process"]
DECLARED_MAX = 1_000
POOLS: tuple[Pool, ...] = ("async", "thread", "process")
PRIORITY_LOWEST = 9
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)


class Verdict(NamedTuple):
    """How a failed attempt ends, in the terms of the Fail frame."""

    disposition: int
    delay_ms: int
    error_type: str
    error: str


@attrs.frozen
class Parameters:
    """A function's parameters, prepared so that the common case (all arguments by name) is one comparison of sets.  `exact`: the names of such a
    call, None if a call by name is not possible."""

    signature: inspect.Signature
    names: frozenset[str]
    required: frozenset[str]
    open_ended: bool
    by_name: bool
    exact: frozenset[str] | None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Parameters:
        signature = inspect.signature(function)
        found = signature.parameters.values()
        named = [p for p in found if p.kind in _BY_NAME[:2]]
        names, by_name = frozenset(p.name for p in named), all(p.kind in _BY_NAME for p in found)
        return cls(
            signature=signature,
            names=names,
            required=frozenset(p.name for p in named if p.default is p.empty),
            open_ended=any(p.kind is p.VAR_KEYWORD for p in found),
            by_name=by_name,
            exact=names if by_name else None,
        )

    def fits(self, arguments: Mapping[str, Any]) -> bool:
        """True if these arguments by name are a valid call.  False when they are not, or when only `bind` can tell."""
        names = arguments.keys()
        return self.by_name and self.required <= names and (self.open_ended or names <= self.names)

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | list[Any]:
        """A call as the value of a payload: a map by name wherever the function allows it, else an array.  TypeError like a plain call."""
        if not args and self.fits(kwargs):
            return kwargs
        bound = self.signature.bind(*args, **kwargs)
        if not self.by_name:
            return self._pack_by_position(bound)
        rest = [p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
        packed = {name: value for name, value in bound.arguments.items() if name not in rest}
        for name in rest:
            packed.update(bound.arguments.get(name, {}))
        return packed

    @staticmethod
    def _pack_by_position(bound: inspect.BoundArguments) -> list[Any]:
        if bound.kwargs:
            names = ", ".join(bound.kwargs)
            raise TypeError(f"a task with positional-only or *args parameters cannot be enqueued with arguments by name: {names}")
        return list(bound.args)

    def unpack(self, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A payload's value as (args, kwargs) of a valid call; TypeError when the function would not take them.  No payload (null) calls a
        function without parameters."""
        if isinstance(value, dict):
            if value.keys() == self.exact or self.fits(value):
                return (), value
            if not all(isinstance(name, str) for name in value):
                raise TypeError("the names of arguments must be text")
            args, kwargs = (), value
        elif value is None and not self.signature.parameters:
            return (), {}
        else:
            args, kwargs = tuple(value) if isinstance(value, list) else (value,), {}
        self.signature.bind(*args, **kwargs)
        return args, kwargs


@attrs.frozen(eq=False)
class TaskDefinition:
    """One task type.  `timeout_ms` 0: none.  `retry` None: the broker's default, else (base_ms, factor, cap_ms).  `pool` None: auto.
    `retry_on` None: every exception may be retried."""

    name: str
    function: Callable[..., Any]
    queue: str = "default"
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = 0
    retry: tuple[int, float, int] | None = None
    retry_on: tuple[type[BaseException], ...] | None = None
    no_retry_on: tuple[type[BaseException], ...] = ()
    pool: Pool | None = None
    parameters: Parameters = attrs.field(init=False, repr=False)
    is_async: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "parameters", Parameters.of(self.function))
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.function))
        if self.is_async and self.pool in ("thread", "process"):
            raise TypeError(f"task {self.name}: an async function runs on the event loop; write it with `def` for pool={self.pool!r}")

    def pool_for(self, default: Pool | None = None) -> Pool:
        """The pool to run in: its own, else for a sync function the worker's default, else async for `async def` and thread for `def`."""
        return self.pool or ("async" if self.is_async else default or "thread")

    def arguments(self, payload: Payload, encoding: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call that a payload means.  Raises ArgumentsError (a Discard): what does not bind now will never bind."""
        try:
            return self.parameters.unpack(serial.decode(payload, encoding))
        except (ValueError, TypeError) as error:
            raise ArgumentsError(f"the payload does not fit {self.name}{self.parameters.signature}: {error}") from None

    def payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The payload that means this call, in msgpack.  TypeError when the function would not take it or an argument cannot be sent."""
        try:
            packed = self.parameters.pack(args, kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.parameters.signature}: {error}") from None
        return serial.encode_arguments(packed, self.name)

    def result(self, value: Any) -> bytes:
        """A return value in msgpack; TypeError when it cannot be sent."""
        return serial.encode(value, f"the result of {self.name}")

    def disposition(self, exception: BaseException) -> Verdict:
        """What an exception from the function means, whatever it is like.  Snooze is not a failure: it is answered with Release."""
        kind, delay_ms = RETRY, None
        if is_one_of(exception, (Retry,)):
            delay_ms = delay_of(exception, "after_ms")
        elif not self.retryable(exception):
            kind = DISCARD
        return Verdict(kind if delay_ms is None else RETRY_AFTER, delay_ms or 0, type_name(exception), error_text(exception))

    def retryable(self, exception: BaseException) -> bool:
        """Whether another attempt makes sense, by `no_retry_on` first and `retry_on` after it."""
        if is_one_of(exception, (Discard, *self.no_retry_on)):
            return False
        return self.retry_on is None or is_one_of(exception, self.retry_on)


def check_name(value: str, what: str) -> str:
    """The name itself; ValueError when it is not [A-Za-z0-9_.:-]{1,128}."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError(f"{what}: {echo(value)} is not a valid name; use 1 to 128 of the characters A-Z a-z 0-9 _ . : -")
    return value


def declarations(tasks: Iterable[TaskDefinition]) -> Iterator[m.Declare]:
    """What a worker tells the broker of its functions' options: a frame for each queue, since its token may be for some of them only."""
    for queue, group in groupby(sorted(tasks, key=lambda task: task.queue), key=lambda task: task.queue):
        some = list(group)[:DECLARED_MAX]
        yield m.Declare(
            [task.name for task in some],
            [queue],
            [task.priority for task in some],
            [task.max_attempts for task in some],
            [task.timeout_ms for task in some],
            [None if task.retry is None else list(task.retry) for task in some],
        )


def check_priority(value: int | str) -> int:
    """0 (first) … 9 (last), or one of the names critical, high, normal, low, bulk."""
    number = PRIORITIES.get(value) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= PRIORITY_LOWEST:
        raise ValueError(f"priority: {echo(value)} is not 0 (first) to 9 (last) or one of {', '.join(PRIORITIES)}")
    return number


def check_pool(value: str | None) -> Pool | None:
    """One of async, thread and process, or None for auto."""
    for pool in POOLS:
        if value == pool:
            return pool
    if value is None:
        return None
    raise ValueError(f"pool: {echo(value)} is not one of {', '.join(POOLS)}")
