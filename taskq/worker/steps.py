"""A coroutine that is driven by hand for its first step and by a real asyncio.Task from then on.

Most short tasks never wait, so they need no Task of their own.  But what they call may ask for `asyncio.current_task()` in the first step
(`asyncio.timeout`, `asyncio.TaskGroup`, anyio), keep it, and cancel it later.  So the first step already runs *inside a real Task*, a carrier,
which takes one job after the other as long as they finish at once.  The job that waits keeps the carrier as its own Task until it ends.

Rules that make this invisible to a function:
- each job has its own copy of the context, so context variables do not leak into the next one;
- a carrier whose Task was cancelled, or of which the job kept a reference, takes no further job;
- the future that the first step ended in is handed on untouched: `_asyncio_future_blocking` stays set, as through any `await`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any


class Rest:
    """What remains of a coroutine after its first step, to be awaited by the carrier that took that step.  `enter` and `leave` are called around
    every further step."""

    __slots__ = ("_context", "_coroutine", "_enter", "_leave", "_yielded")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], context: Context, yielded: Any, enter: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        self._coroutine = coroutine
        self._context = context
        self._yielded = yielded
        self._enter = enter
        self._leave = leave

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine, enter, leave = self._context.run, self._coroutine, self._enter, self._leave
        yielded, self._yielded = self._yielded, None
        while True:
            step: Callable[..., Any] = coroutine.send
            try:
                argument: Any = yield yielded
            except BaseException as error:
                step, argument = coroutine.throw, error
            yielded = None
            enter()
            try:
                yielded = run(step, argument)
            except StopIteration as stop:
                return stop.value
            finally:
                argument = None  # an exception knows this frame: it would keep itself, and all that its function had
                leave()
