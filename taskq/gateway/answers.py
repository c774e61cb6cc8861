"""Refusals over HTTP: which status belongs to which error code, and the one shape of every error body.

    {"error": {"code": "BAD_REQUEST", "message": "…what to do…", "field": "priority", "retryable": false, "retry_after_ms": 500}}

`field` and `retry_after_ms` stand there only when they say something.  The codes are those of `taskq.errors`; what only HTTP can refuse is here.
PURE.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import msgspec

from taskq.core.messages import Error
from taskq.errors import Answer, TaskqError, told


class PathNotFound(Answer):
    """There is nothing at this path; GET /openapi.json lists what there is."""

    code = "PATH_NOT_FOUND"


class MethodNotAllowed(Answer):
    """This path does not take this method; the Allow header lists those that it takes."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str = "", allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow


class AlreadyFinal(Answer):
    """The task has ended already, so there is nothing to cancel."""

    code = "ALREADY_FINAL"


class RequestTimeout(Answer):
    """The request did not arrive in time; send it again on a new connection."""

    code = "REQUEST_TIMEOUT"
    retryable = True


class UrlTooLong(Answer):
    """The URL is longer than the broker accepts."""

    code = "URL_TOO_LONG"


class HeadersTooLarge(Answer):
    """The headers are larger, or more, than the broker accepts."""

    code = "HEADERS_TOO_LARGE"


class UnsupportedMediaType(Answer):
    """The body must be plain JSON; send it with -H 'Content-Type: application/json'."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class ExpectationFailed(Answer):
    """The only expectation that can be met is 100-continue."""

    code = "EXPECTATION_FAILED"


class HttpVersionUnsupported(Answer):
    """Only HTTP/1.0 and HTTP/1.1 are spoken here."""

    code = "HTTP_VERSION_UNSUPPORTED"


class WrongHost(Answer):
    """The Host header names somebody else; use this broker's IP address or localhost."""

    code = "WRONG_HOST"


class TlsRequired(Answer):
    """An access token is taken only over TLS, or from the broker's own machine; this connection is neither, so call it with https."""

    code = "TLS_REQUIRED"


class CrossOrigin(Answer):
    """A page of another site may neither change nor read anything here; call it from your own server, or from a page with this host and port."""

    code = "CROSS_ORIGIN"


class Unready(Answer):
    """The broker is not ready."""

    code = "NOT_READY"
    retryable = True


STATUS: dict[str, int] = {
    "BAD_REQUEST": 400,
    "AUTH_REQUIRED": 401,
    "AUTH_FAILED": 401,
    "TLS_REQUIRED": 403,
    "FORBIDDEN": 403,
    "CROSS_ORIGIN": 403,
    "NOT_FOUND": 404,
    "PATH_NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408,
    "TIMED_OUT": 408,
    "ID_CONFLICT": 409,
    "KEY_CONFLICT": 409,
    "ALREADY_FINAL": 409,
    "ID_TOO_OLD": 410,
    "LEASE_LOST": 410,
    "PAYLOAD_TOO_LARGE": 413,
    "URL_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "EXPECTATION_FAILED": 417,
    "WRONG_HOST": 421,
    "QUEUE_FULL": 429,
    "QUEUES_FULL": 429,
    "HEADERS_TOO_LARGE": 431,
    "INTERNAL": 500,
    "OVERLOADED": 503,
    "DISK_LOW": 503,
    "DRAINING": 503,
    "TOO_MANY_CONNECTIONS": 503,
    "NOT_READY": 503,
    "BROKER_UNAVAILABLE": 503,
    "HTTP_VERSION_UNSUPPORTED": 505,
}


# the same request can succeed later: Retry-After says when
LATER = frozenset({429, 503})
# how a 401 says what it wants, by RFC 6750
CHALLENGES = {"AUTH_REQUIRED": 'Bearer realm="taskq"', "AUTH_FAILED": 'Bearer realm="taskq", error="invalid_token"'}


@attrs.define
class Response:
    """What goes back: `headers` are those beside Content-Type, Content-Length and Connection."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def json_response(status: int, value: Any) -> Response:
    return Response(status, msgspec.json.encode(value))


def error_body(error: TaskqError | Error) -> dict[str, Any]:
    """The inside of "error", from an exception or from a broker's Error message."""
    body: dict[str, Any] = {"code": error.code, "message": told(error.message)}
    if error.field:
        body["field"] = told(error.field)
    body["retryable"] = error.retryable
    if error.retry_after_ms:
        body["retry_after_ms"] = error.retry_after_ms
    return body


def error_response(error: TaskqError | Error) -> Response:
    status = STATUS.get(error.code, 500)
    headers: list[tuple[str, str]] = []
    if status in LATER:
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after_ms / 1000)))))
    if error.code in CHALLENGES:
        headers.append(("WWW-Authenticate", CHALLENGES[error.code]))
    if isinstance(error, MethodNotAllowed):
        headers.append(("Allow", error.allow))
    return Response(status, msgspec.json.encode({"error": error_body(error)}), tuple(headers))
