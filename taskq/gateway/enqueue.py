"""POST /enqueue: from a JSON body to Enqueue messages, and from their answers back to one JSON body.

PURE.  `OPTIONS` is the table of what a task may carry; the OpenAPI document is made from it.  The rules for values are those of the core.
The payload is not decoded: its JSON text is cut out of the body as it stands, checked (see payloads.py), and travels with encoding `json`.
A task without `payload` has no arguments, which is `{}`.  An option that is null counts as not given; a null payload stays null.

One object is one task and is refused as a whole.  A list is up to 1,000 tasks, each of which is accepted or refused by itself: the tasks of
one queue become one message, and the answers come back in the order of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import msgspec

from taskq.core import messages as m
from taskq.core.access import Grant, check_queue
from taskq.core.enqueue import COLUMNS, NAME, NAME_RULE, TASKS_MAX
from taskq.core.messages import FACTOR_MAX, HORIZON_MS, KEY_CHARS_MAX
from taskq.core.task import COPY_BYTES_MAX, STATES
from taskq.core.types import TaskType
from taskq.durations import milliseconds
from taskq.errors import BY_CODE, Answer, BadRequest, Forbidden, PayloadTooLarge
from taskq.gateway import payloads
from taskq.gateway.answers import Response, error_body, error_response, json_response
from taskq.ids import ID_BYTES, NIL, is_valid, split

NO_ARGUMENTS = b"{}"

Read = Callable[[Any, str], Any]
Declared: TypeAlias = Mapping[str, TaskType]
NOTHING: Declared = {}


@attrs.define
class Task:
    """One task of a body, in the units of the wire."""

    task_type: str = ""
    payload: m.Payload = NO_ARGUMENTS
    queue: str = ""
    id: bytes = NIL
    priority: int = m.DEFAULT_PRIORITY
    max_attempts: int = m.DEFAULT_MAX_ATTEMPTS
    timeout_ms: int = 0
    delay_ms: int = 0
    key: str | None = None
    retry: list[Any] | None = None


@attrs.define
class Plan:
    """What a body asks: messages[i] carries the tasks that stand at places[i] in the body; `refused` holds the others."""

    messages: list[m.Enqueue]
    places: list[list[int]]
    refused: dict[int, Answer]
    count: int
    is_list: bool


# ---- reading one value: each takes (value, name of the option) and raises ValueError or TypeError --------------------------------------


def _name(value: Any, name: str) -> str:
    if type(value) is not str or not NAME.fullmatch(value):
        raise ValueError(f"{name}: must be {NAME_RULE}")
    return value


def _number(column: str) -> Read:
    is_good, rule = COLUMNS[column]

    def read(value: Any, name: str) -> int:
        if type(value) is not int or not is_good(value):
            raise ValueError(f"{name}: {rule}")
        return value

    return read


def _priority(value: Any, name: str) -> int:
    if type(value) is str and value in m.PRIORITIES:
        return m.PRIORITIES[value]
    if type(value) is not int or not 0 <= value <= 9:
        raise ValueError(f"{name}: must be 0 (most urgent) to 9, or one of {', '.join(m.PRIORITIES)}")
    return value


def _duration(value: Any, name: str) -> int:
    found = milliseconds(value, name)
    if found > HORIZON_MS:
        raise ValueError(f"{name}: must be at most 366 days")
    return found


def _key(value: Any, name: str) -> str:
    if type(value) is not str or not 1 <= len(value) <= KEY_CHARS_MAX:
        raise ValueError(f"{name}: must be text of 1 to {KEY_CHARS_MAX} characters")
    return value


def _id(value: Any, name: str) -> bytes:
    found = task_id(value) if type(value) is str else b""
    if not is_valid(found):
        raise ValueError(f"{name}: must be a task id of this broker, 32 hex digits; leave it out for a new one, use key for a text of your own")
    return found


def _retry(value: Any, name: str) -> list[Any]:
    if type(value) is not dict:
        raise TypeError(f"{name}: must be an object with base, factor and max")
    for part in value:
        if part not in RETRY_PARTS:
            raise Misplaced(f"{name}.{part[:64]}: unknown option; known are {', '.join(RETRY_PARTS)}", f".{part[:64]}")
    policy = list(m.DEFAULT_RETRY)
    for place, part in enumerate(RETRY_PARTS):
        if value.get(part) is not None:
            try:
                policy[place] = RETRY_PARTS[part](value[part], f"{name}.{part}")
            except (ValueError, TypeError) as error:
                raise Misplaced(str(error), f".{part}") from None
    is_good, _ = COLUMNS["retries"]
    if not is_good(policy):
        raise Misplaced(f"{name}.base: must not be more than max", ".base")
    return policy


def _factor(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 1 <= value <= FACTOR_MAX:
        raise ValueError(f"{name}: must be a number from 1 to {FACTOR_MAX}")
    return float(value)


RETRY_PARTS: dict[str, Read] = {"base": _duration, "factor": _factor, "max": _duration}


class Misplaced(ValueError):
    """The value at `path`, inside the option, is not valid."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def task_id(text: str) -> bytes:
    """The 16 bytes of an id written as 32 hex digits or as a UUID with hyphens; empty if it is neither."""
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        text = text.replace("-", "")
    if len(text) != 2 * ID_BYTES or not text.isalnum():
        return b""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


# ---- the table -------------------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Option:
    """One name in a task object: the field of Task and the column of Enqueue that it becomes, and how it is described."""

    field: str
    column: str
    read: Read
    schema: dict[str, Any]


_DURATION_SCHEMA: dict[str, Any] = {"oneOf": [{"type": "number", "minimum": 0}, {"type": "string", "examples": ["1h30m", "250ms"]}]}
NAME_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^{NAME.pattern}$"}

OPTIONS: dict[str, Option] = {
    "task_type": Option("task_type", "task_types", _name, {**NAME_SCHEMA, "description": "The name of the function that runs the task."}),
    "queue": Option("queue", "queue", _name, {**NAME_SCHEMA, "default": m.DEFAULT_QUEUE}),
    "priority": Option(
        "priority",
        "priorities",
        _priority,
        {
            "oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": list(m.PRIORITIES)}],
            "default": m.DEFAULT_PRIORITY,
            "description": "0 is the most urgent; " + ", ".join(f"{name} = {value}" for name, value in m.PRIORITIES.items()) + ".",
        },
    ),
    "max_attempts": Option(
        "max_attempts",
        "max_attempts",
        _number("max_attempts"),
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": m.DEFAULT_MAX_ATTEMPTS},
    ),
    "timeout": Option(
        "timeout_ms",
        "timeouts_ms",
        _duration,
        {**_DURATION_SCHEMA, "description": "The longest an attempt may take, in seconds or as text; 0: no limit."},
    ),
    "delay": Option("delay_ms", "delays_ms", _duration, {**_DURATION_SCHEMA, "description": "Run no sooner than after this time."}),
    "key": Option(
        "key",
        "keys",
        _key,
        {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX, "description": "Enqueued twice with the same key, a task exists once."},
    ),
    "id": Option("id", "id", _id, {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "One of the broker's ids, sent again."}),
    "retry": Option(
        "retry",
        "retries",
        _retry,
        {
            "type": "object",
            "additionalProperties": False,
            "description": "The pause after the n-th failure is random between 0 and min(max, base · factor^(n-1)).",
            "properties": {
                "base": {**_DURATION_SCHEMA, "default": m.DEFAULT_RETRY[0] / 1000},
                "factor": {"type": "number", "minimum": 1, "maximum": 100, "default": m.DEFAULT_RETRY[1]},
                "max": {**_DURATION_SCHEMA, "default": m.DEFAULT_RETRY[2] / 1000},
            },
        },
    ),
}
_OPTION_OF_COLUMN = {option.column: name for name, option in OPTIONS.items()}


# ---- from the body to messages -----------------------------------------------------------------------------------------------------------

_read_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_JSON_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


def plan(body: bytes | bytearray, payload_bytes_max: int, grant: Grant | None = None, types: Declared = NOTHING) -> Plan:
    """What this body asks for; of a task whose queue is not for this grant nothing more is read.  What a task does not say itself, `types` says.
    Raises an Answer if nothing can be done."""
    text = _json_text(body)
    if text[:1] != b"[":
        task = read_task(text, "", payload_bytes_max, grant, types)
        return Plan([_message(task.queue, [task])], [[0]], {}, 1, False)
    tasks, refused = _read_tasks(_raw_tasks(text), payload_bytes_max, grant, types)
    if not tasks and all(isinstance(error, Forbidden) for error in refused.values()):
        raise refused[0]
    queues: dict[str, list[int]] = {}
    for at, task in tasks.items():
        queues.setdefault(task.queue, []).append(at)
    messages = [_message(queue, [tasks[at] for at in places]) for queue, places in queues.items()]
    return Plan(messages, list(queues.values()), refused, len(tasks) + len(refused), True)


def _json_text(body: bytes | bytearray) -> bytes | bytearray:
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise BadRequest(f"the body is not valid UTF-8 at byte {error.start}", field="body") from None
    return body.lstrip(b" \t\r\n") if body[:1] in (b" ", b"\t", b"\r", b"\n") else body


def _raw_tasks(text: bytes | bytearray) -> list[msgspec.Raw]:
    try:
        found = _read_list(text)
    except _JSON_ERRORS as error:
        found = _cut(text, error)
    if not 1 <= len(found) <= TASKS_MAX:
        raise BadRequest(f"tasks: a list carries 1 to {TASKS_MAX} tasks, not {len(found)}", field="tasks")
    return found


def _cut(text: bytes | bytearray, error: Exception) -> list[msgspec.Raw]:
    """The tasks of a list in which something cannot be read, so that only the tasks that have it are refused."""
    try:
        return [msgspec.Raw(entry) for entry in payloads.cut(bytes(text))]
    except (ValueError, RecursionError):
        raise BadRequest(f"the body is not valid JSON: {error}", field="body") from None


def _read_tasks(found: list[msgspec.Raw], payload_bytes_max: int, grant: Grant | None, types: Declared) -> tuple[dict[int, Task], dict[int, Answer]]:
    tasks: dict[int, Task] = {}
    refused: dict[int, Answer] = {}
    for at, text in enumerate(found):
        try:
            tasks[at] = read_task(text, f"tasks[{at}]", payload_bytes_max, grant, types)
        except Answer as error:
            refused[at] = error.bare()
    return tasks, refused


def read_task(
    text: bytes | bytearray | msgspec.Raw, where: str, payload_bytes_max: int, grant: Grant | None = None, types: Declared = NOTHING
) -> Task:
    """One task object; `where` is its place in a list ("tasks[3]"), which the names of its fields are given with.  Raises an Answer."""
    prefix = f"{where}." if where else ""
    try:
        values = _read_object(text)
    except msgspec.ValidationError:
        raise BadRequest(f"{where or 'the body'}: must be an object with task_type and payload", field=where or "body") from None
    except _JSON_ERRORS as error:
        _check_readable(payloads.closely(bytes(text)), where)
        raise BadRequest(f"{where or 'the body'} is not valid JSON: {error}", field=where or "body") from None
    task = Task()
    for name in ("queue", "task_type"):
        if name in values:
            _set(task, name, values.pop(name), prefix)
    _take_declared(task, types.get(task.task_type))
    if grant is not None:
        check_queue(grant, m.Enqueue, task.queue)
    for name, raw in values.items():
        if name == "payload":
            task.payload = _payload(raw, prefix, payload_bytes_max)
        elif name in OPTIONS:
            _set(task, name, raw, prefix)
        else:
            known = ", ".join(("payload", *OPTIONS))
            raise BadRequest(f"{prefix}{name[:64]}: unknown option; known are {known}", field=prefix + name[:64])
    if not task.task_type:
        raise BadRequest(f"{prefix}task_type: is missing; it names the function that is to run", field=f"{prefix}task_type")
    return task


def _take_declared(task: Task, found: TaskType | None) -> None:
    """What its worker says of the task type, which what the task itself says replaces."""
    if found is None:
        task.queue = task.queue or m.DEFAULT_QUEUE
        return
    task.queue = task.queue or found.queue
    task.priority, task.max_attempts, task.timeout_ms = found.priority, found.max_attempts, found.timeout_ms
    task.retry = None if found.retry is None else list(found.retry)


def _set(task: Task, name: str, raw: msgspec.Raw, prefix: str) -> None:
    option = OPTIONS[name]
    try:
        value = msgspec.json.decode(raw)
        if value is not None:
            setattr(task, option.field, option.read(value, prefix + name))
    except Misplaced as error:
        raise BadRequest(str(error), field=prefix + name + error.path) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"{prefix}{name}: {error}", field=prefix + name) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRequest(str(error), field=prefix + name) from None


def _payload(raw: msgspec.Raw, prefix: str, bytes_max: int) -> m.Payload:
    view = memoryview(raw)
    if len(view) > bytes_max:
        rule = f"{len(view)} bytes, the limit is {bytes_max}; store it elsewhere and enqueue a reference"
        raise PayloadTooLarge(f"{prefix}payload: {rule}", field=f"{prefix}payload")
    _check_readable(payloads.unreadable(view), f"{prefix}payload")
    return bytes(view) if len(view) <= COPY_BYTES_MAX else view


def _check_readable(found: tuple[str, str] | None, where: str) -> None:
    """What no worker could read is refused at its place."""
    if found is not None:
        path, why = found
        place = f"{where}{path}".lstrip(".") or "body"
        raise BadRequest(f"{place}: {why}", field=place)


def _message(queue: str, tasks: list[Task]) -> m.Enqueue:
    return m.Enqueue(
        [task.payload for task in tasks],
        queue,
        b"".join([task.id for task in tasks]),
        _column([task.task_type for task in tasks]),
        [m.JSON],
        _column([task.priority for task in tasks]),
        _column([task.delay_ms for task in tasks]),
        _column([task.key for task in tasks]),
        _column([task.max_attempts for task in tasks]),
        _column([task.timeout_ms for task in tasks]),
        _column([task.retry for task in tasks]),
    )


def _column(values: list[Any]) -> list[Any]:
    """One entry for all if they are the same."""
    return values[:1] if len(values) > 1 and values.count(values[0]) == len(values) else values


# ---- from the answers to the response ----------------------------------------------------------------------------------------------------


def respond(asked: Plan, replies: Sequence[Any]) -> Response:
    """The response to a body from the replies to its messages, in the same order: Enqueued, or an Error for all of a message."""
    failed = [reply for reply in replies if isinstance(reply, m.Error)]
    if failed and len(failed) == len(replies):
        return error_response(_renamed(failed[0]))
    items: list[Any] = [None] * asked.count
    outcomes = {m.REFUSED} if asked.refused else set()
    for places, reply in zip(asked.places, replies, strict=True):
        if isinstance(reply, m.Enqueued):
            _fill(items, places, reply, asked.is_list)
            outcomes.update(reply.outcomes)
        else:
            for at in places:
                items[at] = {"error": error_body(reply)}
    for at, refusal in asked.refused.items():
        items[at] = {"error": error_body(refusal)}
    if not asked.is_list and m.REFUSED in outcomes:
        return error_response(_refusal(replies[0].errors[0], ""))
    status = 201 if m.CREATED in outcomes else 200 if m.EXISTS in outcomes else 400
    return json_response(status, {"tasks": items} if asked.is_list else items[0])


def _fill(items: list[Any], places: list[int], reply: m.Enqueued, is_list: bool) -> None:
    """Put the outcome of each task of a message at its place."""
    durability = m.DURABILITY[reply.durability]
    refused = {error[0]: error for error in reply.errors}
    for index, (at, found) in enumerate(zip(places, split(reply.ids, ID_BYTES), strict=True)):
        if reply.outcomes[index] == m.REFUSED:
            items[at] = {"error": error_body(_refusal(refused[index], f"tasks[{at}]." if is_list else ""))}
        else:
            items[at] = {"id": found.hex(), "state": STATES[reply.states[index]], "durability": durability}
            if is_list and reply.outcomes[index] == m.EXISTS:
                items[at]["exists"] = True


def _refusal(error: Sequence[Any], prefix: str) -> m.Error:
    """An entry of Enqueued.errors as an Error whose field is named as in the body."""
    _, code, message, field = error
    cls = BY_CODE.get(code)
    name = prefix + _OPTION_OF_COLUMN.get(field, field) if field else ""
    return m.Error(code, message, name, cls.retryable if cls is not None else False)


def _renamed(error: m.Error) -> m.Error:
    return attrs.evolve(error, field=_OPTION_OF_COLUMN.get(error.field, error.field))
