"""Slot: the place of one HTTP request in the order of answers of its connection, from the request to the response."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from taskq.errors import AuthFailed, Draining, InternalError
from taskq.gateway.answers import Response, error_response
from taskq.gateway.http1 import Request
from taskq.gateway.routes import Call, Message

if TYPE_CHECKING:
    from taskq.actors.http_connection import HttpProtocol

# who only reads loses nothing by an answer that says to ask again
READS = frozenset({"GET", "HEAD"})

log = logging.getLogger(__name__)


class Slot:
    """The place of one request in the order of answers.  `data` is what to send once it is known; `last`: the connection ends after it."""

    __slots__ = ("_call", "_connection", "_missing", "_replies", "_submit", "data", "last", "request", "response")

    def __init__(self, connection: HttpProtocol, request: Request | None, last: bool) -> None:
        self.request = request
        self.last = last
        self.data = b""
        self.response: Response | None = None
        self._connection = connection
        self._call: Call | None = None
        self._replies: list[Any] = []
        self._missing = 0
        self._submit: Callable[..., None] | None = None

    @property
    def ready(self) -> bool:
        return self.response is not None or bool(self.data)

    def run(self, call: Call, submit: Callable[..., None]) -> None:
        """Hand the messages of a call to the broker; the last reply makes the response."""
        if not call.messages:
            self.finish(call.respond(()))
            return
        self._call, self._submit = call, submit
        self._missing = len(call.messages)
        self._replies = [None] * self._missing
        for at, message in enumerate(call.messages):
            submit(message, partial(self._take, at))

    def finish(self, response: Response) -> None:
        self.response = response
        self._connection.answered()

    def hurry(self) -> None:
        """The peer sends no more and may be gone: a wait for a task is over now, and its answer is what is known so far."""
        if self._call is not None and self._submit is not None and any(getattr(message, "wait_ms", 0) for message in self._call.messages):
            for at, message in enumerate(self._call.messages):
                self._submit(attrs.evolve(message, wait_ms=0), partial(self._take, at))

    def give_up(self) -> None:
        """The broker stops: a request that only reads, and may wait for long, is told so now."""
        if self._call is not None and self.request is not None and self.request.method in READS:
            self._call = None
            self.finish(error_response(Draining("the broker is stopping; ask again after its restart", retry_after_ms=1_000)))

    def _take(self, at: int, reply: Message) -> None:
        """A reply has come, perhaps to a connection that is gone, or to a request that was given up."""
        self._replies[at] = reply
        self._missing -= 1
        call = self._call
        if self._missing or call is None:
            return
        self._call = None
        request = self.request
        if request is not None and request.grant is not None and request.method in READS and not self._connection.is_current(request.grant):
            self.finish(error_response(AuthFailed("the access token of this request was revoked or changed meanwhile")))
            return
        try:
            self.finish(call.respond(self._replies))
        except Exception as error:
            self.finish(bug(error))


def bug(error: Exception) -> Response:
    """The answer to a request that an exception ended."""
    log.error("a request over HTTP failed", exc_info=error)
    return error_response(InternalError())
