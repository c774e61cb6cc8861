"""The OpenAPI 3.1 document, made from the tables that the HTTP door works by: routes, task options, error codes, states.  PURE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from taskq.core.enqueue import TASKS_MAX
from taskq.core.messages import DURABILITY, ENCODINGS
from taskq.core.task import STATES
from taskq.gateway.answers import STATUS
from taskq.gateway.enqueue import NAME_SCHEMA, OPTIONS
from taskq.gateway.routes import ROUTES, Route
from taskq.version import VERSION

Schema = dict[str, Any]

_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{32}$", "examples": ["0193c5a2f1c8845e9a3b5c7d9e1f2a3b"]}
_STATE: Schema = {"enum": list(STATES)}
_ENCODING: Schema = {"enum": list(ENCODINGS)}
_MS: Schema = {"type": "integer", "description": "Unix milliseconds; 0 if not reached."}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXT: Schema = {"type": "string"}
_ANY: Schema = {"description": "Any JSON value."}
_DATA: Schema = {
    "description": 'The JSON value.  Bytes are {"$bytes": base64}, msgpack extension types {"$ext": code, "$bytes": base64}, '
    'NaN and infinities {"$float": name}.'
}


def _object(properties: Schema, required: Sequence[str] = (), closed: bool = False) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "required": list(required)}
    return {**found, "additionalProperties": False} if closed else found


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_ATTEMPT = _object(
    {
        "number": _COUNT,
        "worker": _TEXT,
        "started_ms": _MS,
        "ended_ms": _MS,
        "outcome": {"enum": ["completed", "failed", "crashed", "interrupted", "snoozed", "cancelled"]},
        "error_type": _TEXT,
        "error": _TEXT,
    }
)
_TASK = _object(
    {
        "id": _ID,
        "task_type": NAME_SCHEMA,
        "queue": NAME_SCHEMA,
        "state": _STATE,
        "result": {**_DATA, "description": f"Null unless completed.  {_DATA['description']}"},
        "payload": {**_DATA, "description": f"Shown with ?payload=1.  {_DATA['description']}"},
        "blocker": {**_TEXT, "description": "Why a pending task does not run yet."},
        "priority": _COUNT,
        "key": {"type": ["string", "null"]},
        "encoding": _ENCODING,
        "result_encoding": _ENCODING,
        "max_attempts": _COUNT,
        "timeout_ms": _COUNT,
        "retry": {"type": "array", "description": "base in ms, factor, max in ms", "items": {"type": "number"}},
        "enqueued_ms": _MS,
        "due_ms": _MS,
        "started_ms": _MS,
        "finished_ms": _MS,
        "attempts_used": _COUNT,
        "crashes": _COUNT,
        "interruptions": _COUNT,
        "cancel_requested": {"type": "boolean"},
        "worker": _TEXT,
        "attempts": _list(_ATTEMPT),
    },
    ["id", "task_type", "queue", "state", "result", "attempts"],
)
_ACCEPTED = _object({"id": _ID, "state": _STATE, "durability": {"enum": list(DURABILITY)}, "exists": {"const": True}}, ["id", "state", "durability"])
_PROBLEM = _object(
    {
        "code": {"enum": sorted(STATUS)},
        "message": {**_TEXT, "description": "What is wrong and what to do."},
        "field": {**_TEXT, "description": "The part of the request that is wrong.", "examples": ["tasks[3].priority"]},
        "retryable": {"type": "boolean", "description": "Whether the same request can succeed later."},
        "retry_after_ms": _COUNT,
    },
    ["code", "message", "retryable"],
)


def _new_task() -> Schema:
    payload = {**_ANY, "description": "The arguments: an object by name, a list by position, anything else is the only one."}
    options = {name: option.schema for name, option in OPTIONS.items()}
    return _object({"task_type": options["task_type"], "payload": payload, **options}, ["task_type"], closed=True)


def _schemas() -> Schema:
    outcome = {"oneOf": [_ref("Accepted"), _ref("Error")]}
    return {
        "NewTask": _new_task(),
        "Tasks": {"oneOf": [_ref("NewTask"), {"type": "array", "items": _ref("NewTask"), "minItems": 1, "maxItems": TASKS_MAX}]},
        "Accepted": _ACCEPTED,
        "Enqueued": {"oneOf": [_ref("Accepted"), _object({"tasks": _list(outcome)}, ["tasks"])]},
        "Task": _TASK,
        "Cancelled": _object({"id": _ID, "state": _STATE, "cancel_requested": {"const": True}}, ["id", "state"]),
        "Queues": _object({"queues": _list({"type": "object"})}, ["queues"]),
        "Workers": _object({"workers": _list({"type": "object"})}, ["workers"]),
        "Types": _object({"types": _list({"type": "object"})}, ["types"]),
        "Health": _object({"status": _TEXT}, ["status"]),
        "Document": {"type": "object"},
        "Error": _object({"error": _PROBLEM}, ["error"]),
    }


def _content(name: str) -> Schema:
    return {"application/json": {"schema": _ref(name)}}


def _responses(route: Route) -> Schema:
    found: Schema = {str(status): {"description": _phrase(status), "content": _content(name)} for status, name in route.answers.items()}
    for code in route.errors:
        entry = found.setdefault(str(STATUS[code]), {"description": "", "content": _content("Error")})
        entry["description"] = f"{entry['description']}, {code}" if entry["description"] else code
    if "BAD_REQUEST" in route.errors and route.body:
        found["400"]["content"] = {"application/json": {"schema": {"oneOf": [_ref("Error"), _ref("Enqueued")]}}}
    found["default"] = {"description": "Any other refusal.", "content": _content("Error")}
    return found


_PHRASES = {200: "Done, or it was there already.", 201: "Created.", 202: "Accepted; it is not done yet."}


def _phrase(status: int) -> str:
    return _PHRASES[status]


def _operation(route: Route) -> Schema:
    parameters: list[Schema] = [
        {"name": name, "in": "query", "schema": query.schema, "description": query.description} for name, query in route.query.items()
    ]
    if "{id}" in route.path:
        parameters.insert(0, {"name": "id", "in": "path", "required": True, "schema": _ID})
    found: Schema = {
        "operationId": route.build.__name__.removeprefix("build_") if route.build.__name__ != "build" else route.path.rpartition("/")[2],
        "summary": route.summary,
        "responses": _responses(route),
    }
    if parameters:
        found["parameters"] = parameters
    if route.body:
        found["requestBody"] = {"required": True, "content": _content(route.body)}
    return found


def document() -> bytes:
    """The document as JSON."""
    paths: Schema = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    about = {"title": "taskq", "version": VERSION, "summary": "Enqueue, watch and cancel tasks."}
    token = {"type": "http", "scheme": "bearer", "description": "An access token, for a broker that asks for one."}
    components = {"schemas": _schemas(), "securitySchemes": {"token": token}}
    return msgspec.json.encode({"openapi": "3.1.0", "info": about, "paths": paths, "components": components, "security": [{}, {"token": []}]})
