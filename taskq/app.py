"""The App: a registry of task functions, and the way to enqueue them.

    app = App()

    @app.task(queue="email", max_attempts=5, timeout=30)
    async def send_email(to: str) -> str: ...

    await send_email(to="user@example.com")                      # a plain call, here and now
    handle = await send_email.enqueue(to="user@example.com")     # on a worker, checked against the signature before it leaves

A decorated function is a `TaskFunction`; its types follow the function's, so a wrong argument is an error of the type checker too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import update_wrapper
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from taskq.advice import unknown_option
from taskq.blocking import Client
from taskq.client import DEADLINE_S, AsyncClient
from taskq.clients import Clients, Connections
from taskq.core.messages import DEFAULT_MAX_ATTEMPTS, DEFAULT_PRIORITY, DEFAULT_RETRY, MSGPACK
from taskq.durations import Duration, milliseconds
from taskq.handle import TaskHandle
from taskq.loops import refuse_on_loop
from taskq.options import EnqueueOptions, Options, check_attempts, check_retry, check_timeout
from taskq.worker.functions import check_function, is_same, place
from taskq.worker.registry import Pool, TaskDefinition, check_name, check_pool, check_priority

P = ParamSpec("P")
C = TypeVar("C", covariant=True)
R = TypeVar("R", covariant=True)
A = TypeVar("A")

Exceptions = type[BaseException] | tuple[type[BaseException], ...]


class TaskFunction(Generic[P, C, R]):
    """A task function: called it runs here, enqueued it runs on a worker.  P: its parameters, C: what a call returns, R: what the task returns."""

    __name__: str
    __qualname__: str

    def __init__(self, app: App, definition: TaskDefinition, options: Options) -> None:
        self.app = app
        self.definition = definition
        self._options = options
        update_wrapper(cast(Any, self), definition.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        return cast(C, self.definition.function(*args, **kwargs))

    def __repr__(self) -> str:
        return f"TaskFunction({self.definition.name})"

    def __reduce__(self) -> str:
        """Pickled as functions are, by name."""
        if self._options != _options(self.definition):
            raise TypeError(f"{self!r} with options cannot be pickled; pickle the task, and set its options in the other process")
        return self.__qualname__

    @property
    def name(self) -> str:
        return self.definition.name

    def options(self, **changes: Unpack[EnqueueOptions]) -> TaskFunction[P, C, R]:
        """The same task with other options for what is enqueued through it: `send_email.options(delay="5m", priority="low").enqueue(…)`."""
        return TaskFunction(self.app, self.definition, self._options.but(changes))

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Enqueue a call; returns when it is durable.  TypeError when the arguments do not fit or cannot be sent; BrokerUnavailable."""
        payload = self.definition.payload(args, kwargs)
        return await self.app.client().submit(self.definition.name, (payload, MSGPACK), self._options)

    def enqueue_sync(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """The same for code without an event loop."""
        refuse_on_loop(f"{self.name}.enqueue(…)")
        item = self.definition.payload(args, kwargs), MSGPACK
        return self.app.blocking_client().submit(self.definition.name, item, self._options)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskHandle[R]]:
        """Enqueue one call for each mapping of arguments by name, in order.  All are checked before the first leaves.  Raises EnqueueError when
        the broker refused some; the others stay enqueued."""
        items = self._items(calls)
        return await self.app.client().submit_many(self.definition.name, items, self._options)

    def enqueue_many_sync(self, calls: Iterable[Mapping[str, Any]]) -> list[TaskHandle[R]]:
        """The same for code without an event loop."""
        refuse_on_loop(f"{self.name}.enqueue_many(…)")
        items = self._items(calls)
        return self.app._clients.submit_many_sync(self.definition.name, items, self._options)

    def _items(self, calls: Iterable[Mapping[str, Any]]) -> list[tuple[bytes, int]]:
        items = []
        for number, call in enumerate(calls):
            try:
                items.append((self.definition.payload((), _by_name(call)), MSGPACK))
            except (TypeError, ValueError) as error:
                raise TypeError(f"item {number}: {error}") from None
        return items


class Decorator(Protocol):
    """What `@app.task(…)` gives: keeps the function's types."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, A]]) -> TaskFunction[P, Coroutine[Any, Any, A], A]: ...

    @overload
    def __call__(self, function: Callable[P, A]) -> TaskFunction[P, A, A]: ...


class App:
    """Tasks by name, and the connections to enqueue them: one for each event loop that does, one for all code without a loop.

    `url`: `host:port`, `taskq://host:port`, or `tls://host:port` for TLS; default is `TASKQ_URL`, read at the first use, else localhost:7000.
    `token`: the access token for a broker that asks for one; default is `TASKQ_TOKEN`, read at the first use.  `tls_ca`: whom to trust, as for
    `AsyncClient`."""

    def __init__(self, url: str | None = None, *, token: str | None = None, deadline: Duration = DEADLINE_S, tls_ca: str | None = None) -> None:
        self.tasks: dict[str, TaskDefinition] = {}
        self._clients: Clients = Connections(url, token, deadline, tls_ca)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an App has connections and cannot be pickled; import it from its module in the other process")

    @property
    def url(self) -> str:
        """The broker's address, as host:port."""
        return self._clients.url

    def use(self, url: str | None) -> str | None:
        """Talk to this broker from now on, None: to that of `TASKQ_URL`.  Returns what was set before.  RuntimeError while connections are open."""
        before = self._clients
        if not isinstance(before, Connections):
            raise RuntimeError("the app is in the hands of taskq.testing, which has set its broker")
        if before.are_open:
            raise RuntimeError(
                f"the app has connections to {before.url}, which would go on; await app.close() first, on each loop that it was used on"
            )
        self._clients = before.elsewhere(url)
        return before.given_url

    def hand_over(self, clients: Clients) -> Clients:
        """Enqueue through these from now on; the ones before, which stay as they are."""
        before, self._clients = self._clients, clients
        return before

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, A]], /) -> TaskFunction[P, Coroutine[Any, Any, A], A]: ...

    @overload
    def task(self, function: Callable[P, A], /) -> TaskFunction[P, A, A]: ...

    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int | str = DEFAULT_PRIORITY,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS,
        timeout: Duration | None = None,
        backoff_base: Duration | None = None,
        backoff_factor: float | None = None,
        backoff_max: Duration | None = None,
        retry_on: Exceptions | None = None,
        no_retry_on: Exceptions = (),
        pool: Pool | None = None,
    ) -> Decorator: ...

    def task(self, *functions: Any, **settings: Any) -> Any:
        """Make a function a task; as `@app.task` or `@app.task(queue=…, …)`.  The same function again (a notebook's cell, a reload) replaces it.

        name: the task type, default the function's name.  queue, priority (0 first … 9 last, or critical, high, normal, low, bulk), max_attempts,
        timeout (of one attempt): the defaults of each enqueue.  backoff_base, backoff_factor, backoff_max: the delay before a retry, random up to
        base · factor^n, at most max (default 2 s, 2, 1 h or the base).  retry_on: only these exceptions are retried.  no_retry_on: these are not.
        pool: async, thread or process; default async for `async def`, thread for `def`."""
        if functions:
            return self._register(*functions, **settings)
        return lambda decorated: self._register(decorated, **settings)

    def _register(self, function: Callable[..., Any], *, name: str | None = None, **settings: Any) -> TaskFunction[..., Any, Any]:
        check_function(function)
        for setting in settings:
            if setting not in SETTINGS:
                raise TypeError(f"@app.task: {unknown_option(setting, SETTINGS)}")
        definition = define(function, check_name(function.__name__ if name is None else name, "name"), **settings)
        before = self.tasks.get(definition.name)
        if before is not None and not is_same(before.function, function):
            places = f"{place(before.function)} and {place(function)}"
            raise ValueError(f"task {definition.name} is defined twice, by {places}; give one of them another name=")
        self.tasks[definition.name] = definition
        return TaskFunction(self, definition, _options(definition))

    def client(self) -> AsyncClient:
        """The client of the running event loop."""
        client: AsyncClient = self._clients.client()
        return client

    def blocking_client(self) -> Client:
        """The client for code without an event loop."""
        client: Client = self._clients.blocking_client()
        return client

    async def close(self) -> None:
        """Close this loop's connection and the one for code without a loop."""
        await self._clients.close()

    def close_sync(self) -> None:
        self._clients.close_sync()


def define(
    function: Callable[..., Any],
    name: str,
    *,
    queue: str = "default",
    priority: int | str = DEFAULT_PRIORITY,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS,
    timeout: Duration | None = None,
    backoff_base: Duration | None = None,
    backoff_factor: float | None = None,
    backoff_max: Duration | None = None,
    retry_on: Exceptions | None = None,
    no_retry_on: Exceptions = (),
    pool: Pool | None = None,
) -> TaskDefinition:
    """A checked TaskDefinition; ValueError or TypeError names the setting that is not valid."""
    return TaskDefinition(
        name=name,
        function=function,
        queue=check_name(queue, "queue"),
        priority=check_priority(priority),
        max_attempts=check_attempts(max_attempts),
        timeout_ms=check_timeout(timeout),
        retry=_backoff(backoff_base, backoff_factor, backoff_max),
        retry_on=None if retry_on is None else _exceptions(retry_on, "retry_on"),
        no_retry_on=_exceptions(no_retry_on, "no_retry_on"),
        pool=check_pool(pool),
    )


SETTINGS = ("name", *list(inspect.signature(define).parameters)[2:])


def _by_name(call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise TypeError(f"{call!r} is not a dict of arguments by name, for example {{'to': 'user@example.com'}}")
    return dict(call)


def _backoff(base: Duration | None, factor: float | None, longest: Duration | None) -> tuple[int, float, int] | None:
    """None when nothing was said: the broker's default then."""
    if base is None and factor is None and longest is None:
        return None
    default_ms, default_factor, longest_ms = DEFAULT_RETRY
    base_ms = default_ms if base is None else milliseconds(base, "backoff_base")
    return check_retry(
        (
            default_ms / 1000 if base is None else base,
            default_factor if factor is None else factor,
            max(longest_ms, base_ms) / 1000 if longest is None else longest,
        )
    )


def _exceptions(value: Exceptions, what: str) -> tuple[type[BaseException], ...]:
    if isinstance(value, (list, set, frozenset)):
        names = "".join(f"{getattr(each, '__name__', each)}, " for each in value).rstrip()
        raise TypeError(f"{what}: write a tuple: {what}=({names})")
    found = value if isinstance(value, tuple) else (value,)
    for each in found:
        if not (isinstance(each, type) and issubclass(each, BaseException)):
            raise TypeError(f"{what}: {each!r} is not an exception class; write for example {what}=(ValueError, OSError)")
    return found


def _options(definition: TaskDefinition) -> Options:
    return Options(
        queue=definition.queue,
        priority=definition.priority,
        max_attempts=definition.max_attempts,
        timeout_ms=definition.timeout_ms,
        retry=definition.retry,
    )
