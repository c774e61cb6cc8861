"""The table of paths: what each method on each path asks of the broker, and how the answer looks.

PURE.  A builder turns a Request into a Call: the messages for the broker, and a function from its replies to the Response.  A builder that
cannot raises an Answer.  A call without messages answers itself.  The OpenAPI document is made from `ROUTES`, so what is not there is not served.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import attrs
import msgspec

from taskq.core import messages as m
from taskq.core.access import check_kind
from taskq.durations import seconds
from taskq.errors import BadRequest, InternalError, NotFound, echo
from taskq.gateway import enqueue
from taskq.gateway.answers import (
    AlreadyFinal,
    MethodNotAllowed,
    PathNotFound,
    Response,
    Unready,
    UnsupportedMediaType,
    error_response,
    json_response,
)
from taskq.gateway.http1 import HttpLimits, Request

Message: TypeAlias = Any
Status: TypeAlias = Callable[[], dict[str, Any]]


@attrs.define
class Call:
    """What a request asks: messages for the broker, and how their replies (in the same order) become the response."""

    messages: Sequence[Message]
    respond: Callable[[Sequence[Message]], Response]


@attrs.frozen
class Gateway:
    """What the builders may look at beside the request.  `status` tells {"ready": bool, "reason": str}; `document` is the OpenAPI JSON; `types` are
    the task types that workers have declared."""

    limits: HttpLimits
    status: Status
    document: bytes
    types: enqueue.Declared = attrs.field(factory=dict)

    def call(self, request: Request) -> Call:
        """The call that a request stands for.  Raises an Answer: no such path, no such method, or a bad request."""
        methods, task_id = _find(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        route = methods.get(method)
        if route is None:
            raise MethodNotAllowed(f"{echo(request.path)} takes {_allowed(methods)}, not {request.method}", _allowed(methods))
        if request.grant is not None and route.asks is not None:
            check_kind(request.grant, route.asks)
        if route.body or request.body:
            _check_json(request)
        return route.build(self, request, Given(task_id, _query(request.query, route.query)))


@attrs.frozen
class Given:
    """The variable parts of a URL."""

    task_id: str
    query: dict[str, str]


Build: TypeAlias = Callable[[Gateway, Request, Given], Call]


@attrs.frozen
class Query:
    """A query parameter and its description."""

    schema: dict[str, Any]
    description: str


@attrs.frozen
class Route:
    """One method on one path.  `answers`: status → name of the schema of the body; `errors`: the codes that it may be refused with.  `asks`: the kind
    of message that it becomes, whose scope is looked at before anything else of the request.  `is_open`: it is for everybody, also where a token
    is asked for; it says nothing of tasks."""

    method: str
    path: str
    build: Build
    summary: str
    answers: dict[int, str]
    errors: tuple[str, ...] = ()
    query: dict[str, Query] = attrs.field(factory=dict)
    asks: type | None = None
    body: str = ""
    is_open: bool = False


def _find(path: str) -> tuple[dict[str, Route], str]:
    """The methods of a path, and the task id in it."""
    methods = BY_PATH.get(path)
    if methods is not None and "{" not in path:
        return methods, ""
    parent, _, last = path.rpartition("/")
    methods = BY_PATH.get(f"{parent}/{{id}}")
    if methods is None or not last:
        raise PathNotFound(f"there is nothing at {echo(path)}; GET /openapi.json lists what there is")
    return methods, last


def _allowed(methods: dict[str, Route]) -> str:
    return ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))


def _check_json(request: Request) -> None:
    """A body is JSON and said to be, which a page of another site cannot say without being asked for leave first."""
    content_type = request.content_type.partition(";")[0].strip().lower()
    if content_type != "application/json":
        what = f"the body is said to be {echo(content_type)}" if content_type else "the request has no Content-Type"
        raise UnsupportedMediaType(f"{what}; tasks are JSON, send them with -H 'Content-Type: application/json'", field="Content-Type")


def _query(text: str, known: dict[str, Query]) -> dict[str, str]:
    """The query parameters; unknown and repeated ones are refused."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=16) if text else []
    except ValueError:
        raise BadRequest("the query has more than 16 parameters") from None
    for name, value in pairs:
        if name not in known:
            names = ", ".join(known) or "none"
            raise BadRequest(f"{name[:64]}: unknown query parameter; known are: {names}", field=name[:64])
        if name in found:
            raise BadRequest(f"{name}: is given twice", field=name)
        found[name] = value
    return found


# ---- enqueue ---------------------------------------------------------------------------------------------------------------------------


def build_enqueue(gateway: Gateway, request: Request, given: Given) -> Call:
    plan = enqueue.plan(request.body, gateway.limits.payload_bytes_max, request.grant, gateway.types)
    return Call(plan.messages, lambda replies: enqueue.respond(plan, replies))


# ---- tasks -----------------------------------------------------------------------------------------------------------------------------


def build_get_task(gateway: Gateway, request: Request, given: Given) -> Call:
    task_id = _task_id(given.task_id)
    wait_ms = _wait_ms(given.query.get("wait", "0"), gateway.limits.wait_s_max)
    with_payload = _flag(given.query, "payload")
    return Call([m.Get(task_id, wait_ms)], lambda replies: _show_task(replies[0], with_payload))


def build_cancel_task(gateway: Gateway, request: Request, given: Given) -> Call:
    task_id = _task_id(given.task_id)
    return Call([m.Cancel(task_id)], lambda replies: _show_cancelled(replies[0], task_id))


def _task_id(text: str) -> bytes:
    """The id in a path.  Anything of the right form is asked for; what is no id of ours is then simply not found."""
    found = enqueue.task_id(text)
    if not found:
        raise BadRequest(f"id: {echo(text)} is not a task id; write it as 32 hex digits", field="id")
    return found


def _wait_ms(text: str, wait_s_max: float) -> int:
    try:
        found = seconds(text, "wait")
    except ValueError as error:
        raise BadRequest(str(error), field="wait") from None
    if found > wait_s_max:
        raise BadRequest(f"wait: must be at most {wait_s_max:g} seconds; ask again to wait longer", field="wait")
    return round(found * 1000)


_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def _flag(query: dict[str, str], name: str) -> bool:
    text = query.get(name, "0").lower()
    if text not in _FLAGS:
        raise BadRequest(f"{name}: must be 1 or 0", field=name)
    return _FLAGS[text]


def _show_task(reply: Message, with_payload: bool) -> Response:
    if not isinstance(reply, m.TaskInfo):
        return _refused(reply)
    shown = dict(reply.info)
    payload, result = reply.payloads
    encoding, result_encoding = shown["encoding"], shown["result_encoding"]
    shown["encoding"], shown["result_encoding"] = m.ENCODINGS[encoding], m.ENCODINGS[result_encoding]
    shown["result"] = as_json(result, result_encoding) if shown["state"] == "completed" else None
    if with_payload:
        shown["payload"] = as_json(payload, encoding)
    return json_response(200, shown)


def _show_cancelled(reply: Message, task_id: bytes) -> Response:
    if not isinstance(reply, m.Cancelled):
        return _refused(reply)
    return CANCEL_ANSWERS[reply.outcomes[0]](task_id.hex())


CANCEL_ANSWERS: dict[int, Callable[[str], Response]] = {
    m.CANCEL_DONE: lambda text: json_response(200, {"id": text, "state": "cancelled"}),
    m.CANCEL_REQUESTED: lambda text: json_response(202, {"id": text, "state": "running", "cancel_requested": True}),
    m.CANCEL_ALREADY_FINAL: lambda text: error_response(AlreadyFinal(f"task {text} has ended already, so there is nothing to cancel", field="id")),
    m.CANCEL_NOT_FOUND: lambda text: error_response(NotFound(f"no task {text}: it never existed, or its retention has passed", field="id")),
}


def _refused(reply: Message) -> Response:
    """The response to a refusal; any other kind of reply is a bug."""
    if not isinstance(reply, m.Error):
        raise InternalError(f"unexpected reply {type(reply).__name__}")
    return error_response(reply)


# ---- payloads and results as JSON --------------------------------------------------------------------------------------------------------


NOT_FINITE = {inf: "Infinity", -inf: "-Infinity"}


def as_json(data: m.Payload, encoding: int) -> Any:
    """A payload or result as part of a JSON body: JSON as it stands, msgpack translated.  Bytes, and whatever is not what its encoding says or has
    no equal in JSON, become {"$bytes": base64}, infinities and NaN {"$float": name}.  Nothing at all is null."""
    if not len(data):
        return None
    try:
        return DECODERS[encoding](data)
    except (ValueError, TypeError, RecursionError):
        return _bytes_as_json(data)


def _bytes_as_json(data: m.Payload) -> dict[str, str]:
    return {"$bytes": base64.b64encode(data).decode()}


def _json_as_json(data: m.Payload) -> msgspec.Raw:
    """Checked, because a worker's bytes must not break out of the body."""
    text = bytes(data)
    text.decode()
    msgspec.json.decode(text, type=msgspec.Raw)
    return msgspec.Raw(text)


def _msgpack_as_json(data: m.Payload) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(_plain(msgspec.msgpack.decode(data))))


def _plain(value: Any) -> Any:
    """The same value with bytes, extension types and what is no number in a form that JSON has.  ValueError if two keys are one there."""
    if isinstance(value, dict):
        shown = {_plain_key(key): _plain(part) for key, part in value.items()}
        if len(shown) < len(value):
            raise ValueError("two keys of a map are the same text in JSON")
        return shown
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bytes):
        return _bytes_as_json(value)
    if isinstance(value, float) and not isfinite(value):
        return {"$float": NOT_FINITE.get(value, "NaN")}
    if isinstance(value, msgspec.msgpack.Ext):
        return {"$ext": value.code, **_bytes_as_json(bytes(value.data))}
    return value


def _plain_key(key: Any) -> str:
    return key if isinstance(key, str) else msgspec.json.encode(_plain(key)).decode()


DECODERS: dict[int, Callable[[m.Payload], Any]] = {m.BYTES: _bytes_as_json, m.MSGPACK: _msgpack_as_json, m.JSON: _json_as_json}


# ---- inspection ------------------------------------------------------------------------------------------------------------------------


def build_inspect(what: str) -> Build:
    def build(gateway: Gateway, request: Request, given: Given) -> Call:
        return Call([m.Inspect(what)], lambda replies: _show_rows(replies[0], what))

    return build


def _show_rows(reply: Message, what: str) -> Response:
    if not isinstance(reply, m.Inspected):
        return _refused(reply)
    return json_response(200, {what: [_plain(row) for row in reply.rows]})


def build_healthz(gateway: Gateway, request: Request, given: Given) -> Call:
    """That this answers at all is the news."""
    return Call((), lambda replies: json_response(200, {"status": "ok"}))


def build_readyz(gateway: Gateway, request: Request, given: Given) -> Call:
    status = gateway.status()
    if not status["ready"]:
        raise Unready(f"the broker is not ready: {status.get('reason') or 'no reason given'}")
    return Call((), lambda replies: json_response(200, {"status": "ready"}))


def build_openapi(gateway: Gateway, request: Request, given: Given) -> Call:
    return Call((), lambda replies: Response(200, gateway.document))


# ---- the table -------------------------------------------------------------------------------------------------------------------------

_WAIT = Query({"type": "string", "default": "0", "examples": ["30", "1m"]}, "Wait for the end of the task, at most 60 seconds.")
_PAYLOAD = Query({"enum": list(_FLAGS), "default": "0"}, "Whether to show the payload.")
_ENQUEUE_ERRORS = (
    "BAD_REQUEST", "ID_CONFLICT", "KEY_CONFLICT", "ID_TOO_OLD", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE", "OVERLOADED", "DRAINING"
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/enqueue",
        build_enqueue,
        "Enqueue one task, or a list of up to 1,000.",
        {201: "Enqueued", 200: "Enqueued"},
        _ENQUEUE_ERRORS,
        asks=m.Enqueue,
        body="Tasks",
    ),
    Route(
        "GET",
        "/v1/tasks/{id}",
        build_get_task,
        "One task.",
        {200: "Task"},
        ("BAD_REQUEST", "NOT_FOUND", "DRAINING"),
        {"wait": _WAIT, "payload": _PAYLOAD},
        asks=m.Get,
    ),
    Route(
        "DELETE",
        "/v1/tasks/{id}",
        build_cancel_task,
        "Cancel a task: at once (200), or, while it runs, by asking its worker (202).",
        {200: "Cancelled", 202: "Cancelled"},
        ("BAD_REQUEST", "NOT_FOUND", "ALREADY_FINAL"),
        asks=m.Cancel,
    ),
    Route("GET", "/v1/queues", build_inspect("queues"), "The queues and their tasks by state.", {200: "Queues"}, asks=m.Inspect),
    Route("GET", "/v1/workers", build_inspect("workers"), "The connected workers.", {200: "Workers"}, asks=m.Inspect),
    Route("GET", "/v1/types", build_inspect("types"), "The task types that workers have declared.", {200: "Types"}, asks=m.Inspect),
    Route("GET", "/healthz", build_healthz, "Whether the process answers.", {200: "Health"}, is_open=True),
    Route("GET", "/readyz", build_readyz, "Whether the broker takes work.", {200: "Health"}, ("NOT_READY",), is_open=True),
    Route("GET", "/openapi.json", build_openapi, "This document.", {200: "Document"}, is_open=True),
)


def _by_path(routes: Sequence[Route]) -> dict[str, dict[str, Route]]:
    found: dict[str, dict[str, Route]] = {}
    for route in routes:
        found.setdefault(route.path, {})[route.method] = route
    return found


BY_PATH = _by_path(ROUTES)
OPEN_PATHS = frozenset(route.path for route in ROUTES if route.is_open)
