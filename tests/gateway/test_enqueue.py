"""POST /enqueue: bodies to messages and answers to bodies."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core import messages as m
from taskq.core.task import COMPLETED, PENDING, SCHEDULED
from taskq.errors import Answer, BadRequest, PayloadTooLarge
from taskq.gateway import enqueue
from taskq.gateway.enqueue import plan, respond
from taskq.gateway.payloads import unreadable
from taskq.ids import NIL, make_id

MAX = 1 << 20


class Rng:
    def getrandbits(self, bits: int) -> int:
        return 7


ID = make_id(1_700_000_000_000, 5, Rng())  # type: ignore[arg-type]


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def one(value: Any) -> m.Enqueue:
    [message] = plan(body(value), MAX).messages
    return message


def refusal(value: Any) -> Answer:
    with pytest.raises(Answer) as caught:
        plan(value if isinstance(value, bytes) else body(value), MAX)
    return caught.value


def created(count: int, outcome: int = m.CREATED, state: int = PENDING) -> m.Enqueued:
    return m.Enqueued(ID * count, bytes([outcome]) * count, bytes([state]) * count, m.FSYNC)


def test_the_request_of_the_readme_becomes_one_message_with_defaults() -> None:
    text = b'{"task_type":"send_email","payload":{"to":"user@example.com"}}'
    asked = plan(text, MAX)
    assert asked.messages == [m.Enqueue([b'{"to":"user@example.com"}'], "default", NIL, ["send_email"], [m.JSON])]
    assert not asked.is_list


@pytest.mark.parametrize(
    "text",
    [b'{ "b" : [1.50, 1e3,"\\u00e9"] }', b"[18446744073709551615,-9223372036854775808,0.1234567890123456789012,1e308]", b"null", b'"x"', b"[]"],
)
def test_the_payload_travels_as_the_very_text_that_came_in(text: bytes) -> None:
    [message] = plan(b'{"payload": ' + text + b' , "task_type":"a"}', MAX).messages
    assert bytes(message.payloads[0]) == text


def test_a_large_payload_is_a_view_of_the_body_and_a_small_one_a_copy() -> None:
    [small] = plan(body({"task_type": "a", "payload": "x"}), MAX).messages
    [large] = plan(body({"task_type": "a", "payload": "x" * 2000}), MAX).messages
    assert type(small.payloads[0]) is bytes
    assert type(large.payloads[0]) is memoryview


def test_a_task_without_payload_has_no_arguments() -> None:
    assert one({"task_type": "a"}).payloads == [b"{}"]


def test_all_options_arrive_in_the_units_of_the_wire() -> None:
    message = one(
        {
            "task_type": "a",
            "queue": "email",
            "priority": "high",
            "max_attempts": 3,
            "timeout": "1h30m",
            "delay": 1.5,
            "key": "ключ",
            "id": ID.hex(),
            "retry": {"base": 1, "factor": 3, "max": "10m"},
        }
    )
    expected = m.Enqueue([b"{}"], "email", ID, ["a"], [m.JSON], [2], [1500], ["ключ"], [3], [5_400_000], [[1000, 3.0, 600_000]])
    assert message == expected


def test_an_option_that_is_null_counts_as_not_given() -> None:
    names = [name for name in enqueue.OPTIONS if name != "task_type"]
    assert one({"task_type": "a", **dict.fromkeys(names)}) == one({"task_type": "a"})


@pytest.mark.parametrize(("name", "value"), m.PRIORITIES.items())
def test_priorities_have_names(name: str, value: int) -> None:
    assert one({"task_type": "a", "priority": name}).priorities == [value]


@pytest.mark.parametrize(
    "written", [ID.hex(), ID.hex().upper(), f"{ID.hex()[:8]}-{ID.hex()[8:12]}-{ID.hex()[12:16]}-{ID.hex()[16:20]}-{ID.hex()[20:]}"]
)
def test_ids_are_hex_or_uuids(written: str) -> None:
    assert one({"task_type": "a", "id": written}).ids == ID


BAD_OPTIONS = [
    ("task_type", 1),
    ("task_type", ""),
    ("task_type", "a b"),
    ("task_type", "a\n"),
    ("task_type", "ä"),
    ("task_type", "a" * 129),
    ("queue", "a/b"),
    ("queue", ["a"]),
    ("priority", 10),
    ("priority", -1),
    ("priority", True),
    ("priority", 5.0),
    ("priority", "highest"),
    ("max_attempts", 0),
    ("max_attempts", 1001),
    ("max_attempts", "3"),
    ("timeout", -1),
    ("timeout", "soon"),
    ("timeout", "400d"),
    ("timeout", []),
    ("delay", "-1s"),
    ("delay", True),
    ("delay", {}),
    ("key", ""),
    ("key", "x" * 257),
    ("key", 7),
    ("id", "abc"),
    ("id", "0" * 32),
    ("id", "g" * 32),
    ("id", 5),
    ("retry", 3),
    ("retry.base", {"base": "x"}),
    ("retry.base", {"base": "2h"}),
    ("retry.factor", {"factor": 0.5}),
    ("retry.factor", {"factor": "2"}),
    ("retry.max", {"max": -1}),
    ("retry.jitter", {"jitter": 1}),
    ("colour", 1),
]


@pytest.mark.parametrize(("field", "value"), BAD_OPTIONS)
def test_a_bad_option_is_refused_by_name(field: str, value: Any) -> None:
    name = field.partition(".")[0]
    error = refusal({"task_type": "a", name: value})
    assert isinstance(error, BadRequest)
    assert error.field == field
    assert error.message.startswith(f"{field}:")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"nul",
        b'{"task_type":"a"} x',
        b'{"task_type":"a","payload":{]}',
        b'{"task_type":"a","payload":NaN}',
        b'{"task_type":"a","payload":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"payload":' + b"[" * 100_000,
        b'[{"task_type":"a"}',
        b'{"task_type":"a","payload":"\\ud800"}',
        b'{"task_type":"a","payload":"a\nb"}',
        b'{"task_type":"\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    assert isinstance(refusal(text), BadRequest)


@pytest.mark.parametrize("value", [1, "a", None, True])
def test_a_body_that_is_no_task_is_refused(value: Any) -> None:
    assert "must be an object" in refusal(value).message


def test_a_task_without_type_is_refused() -> None:
    assert refusal({"payload": {}}).field == "task_type"
    assert refusal({"task_type": None}).field == "task_type"


def test_a_payload_over_the_limit_is_too_large() -> None:
    text = body({"task_type": "a", "payload": "x" * 98})
    assert len(plan(text, 100).messages) == 1
    with pytest.raises(PayloadTooLarge) as caught:
        plan(text, 99)
    assert caught.value.field == "payload"


@pytest.mark.parametrize("count", [0, 1001])
def test_a_list_has_one_to_a_thousand_tasks(count: int) -> None:
    assert refusal([{"task_type": "a"}] * count).field == "tasks"


def test_a_list_of_equal_tasks_is_one_message_with_columns_of_one_entry() -> None:
    [message] = plan(body([{"task_type": "a", "payload": [n]} for n in range(1000)]), MAX).messages
    assert len(message.payloads) == 1000
    assert message.ids == NIL * 1000
    assert message.task_types == ["a"]
    assert message.priorities == [5]


def test_a_list_over_several_queues_is_one_message_a_queue_and_merged_back_in_order() -> None:
    asked = plan(body([{"task_type": "a", "queue": queue} for queue in "xyxzy"]), MAX)
    assert [message.queue for message in asked.messages] == ["x", "y", "z"]
    assert asked.places == [[0, 2], [1, 4], [3]]
    replies = [m.Enqueued(bytes([n]) * 32 if n < 2 else bytes([n]) * 16, bytes(2 if n < 2 else 1), b"\2\2", m.OS) for n in range(3)]
    response = respond(asked, replies)
    assert response.status == 201
    assert [item["id"][:2] for item in json.loads(response.body)["tasks"]] == ["00", "01", "00", "02", "01"]


def test_bad_tasks_in_a_list_are_refused_by_themselves() -> None:
    asked = plan(body([{"task_type": "a"}, {"task_type": "b", "priority": 12}, 7, {"task_type": "c"}]), MAX)
    assert asked.messages[0].task_types == ["a", "c"]
    response = respond(asked, [created(2)])
    items = json.loads(response.body)["tasks"]
    assert response.status == 201
    assert ["id" in item for item in items] == [True, False, False, True]
    assert items[1]["error"]["field"] == "tasks[1].priority"
    assert items[2]["error"]["field"] == "tasks[2]"


UNREADABLE = [
    ('{"items":[0,1,2,{"n":18446744073709551616}]}', "payload.items[3].n", "64 bits"),
    ('{"items":[0,1,2,{"n":%s}]}' % ("9" * 5_000), "payload.items[3].n", "64 bits"),
    ("-9223372036854775809", "payload", "64 bits"),
    ("1e400", "payload", "no float"),
    ('{"a":[-1E+0400]}', "payload.a[0]", "no float"),
    ("%s.0" % ("9" * 400), "payload", "no float"),
    ('{"a":{"b":["x","\\uD83d y"]}}', "payload.a.b[1]", "surrogate"),
    ('{"a":{"\\udc00":1}}', "payload.a", "surrogate"),
    ('{"a":NaN}', "payload.a", "no JSON"),
    ('{"a":-Infinity}', "payload.a", "no JSON"),
    (f'{{"{"k" * 1_000}":{{"{"m" * 1_000}":[1e999]}}}}', "payload." + "k" * 64 + "." + "m" * 64 + "[0]", "no float"),
]


@pytest.mark.parametrize(("payload", "field", "words"), UNREADABLE)
def test_a_payload_that_no_worker_could_read_is_refused_at_its_place(payload: str, field: str, words: str) -> None:
    error = refusal(f'{{"task_type":"a","payload":{payload}}}'.encode())
    assert isinstance(error, BadRequest) and error.field == field
    assert error.message.startswith(f"{field}: ") and words in error.message


@pytest.mark.parametrize(("payload", "field", "words"), UNREADABLE)
def test_in_a_list_only_the_task_that_has_it_is_refused(payload: str, field: str, words: str) -> None:
    asked = plan(f' [ {{"task_type":"a"}} , {{"payload":{payload},"task_type":"b"}},{{"task_type":"c"}} ] '.encode(), MAX)
    assert asked.messages[0].task_types == ["a", "c"] and list(asked.refused) == [1]
    assert asked.refused[1].field == f"tasks[1].{field}" and words in asked.refused[1].message


@pytest.mark.parametrize(
    "text", [b'[{"task_type":"a"} {"task_type":"b","payload":NaN}]', b'[{"task_type":"a","payload":NaN},]', b'[{"payload":NaN}] x', b"[NaN"]
)
def test_a_list_that_is_no_json_is_refused_as_a_whole(text: bytes) -> None:
    assert refusal(text).field == "body"


def test_a_payload_that_is_nested_too_deep_is_refused_as_such() -> None:
    text = b'{"task_type":"a","payload":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    assert "nested too deep" in refusal(text).message


def test_what_only_looks_like_something_that_cannot_be_read_is_taken() -> None:
    payload = {"card": "1234567890123456789012", "id": "a10e0001", "pair": "😀", "hangul": "\ud7ff", "n": [2**64 - 1, -(2**63), 1e-400]}
    message = one({"task_type": "a", "payload": payload})
    assert json.loads(bytes(message.payloads[0])) == payload


@given(st.integers(0, 70_000), st.integers(0, 40))
def test_a_large_payload_is_searched_to_its_end(before: int, after: int) -> None:
    text = b'["' + b"x" * (60_000 + before) + b'",' + b"9" * 25 + b',"' + b"y" * after + b'"]'
    assert unreadable(text) == ("[1]", "an integer of more than 64 bits; send it as text")


def test_a_list_of_which_all_is_refused_is_a_bad_request_with_every_reason() -> None:
    asked = plan(body([{"task_type": 1}, {}]), MAX)
    assert asked.messages == []
    response = respond(asked, [])
    assert response.status == 400
    assert [item["error"]["field"] for item in json.loads(response.body)["tasks"]] == ["tasks[0].task_type", "tasks[1].task_type"]


def test_a_created_task_is_answered_with_id_state_and_durability() -> None:
    response = respond(plan(body({"task_type": "a", "delay": 5}), MAX), [created(1, state=SCHEDULED)])
    assert response.status == 201
    assert json.loads(response.body) == {"id": ID.hex(), "state": "scheduled", "durability": "fsync"}


def test_what_exists_already_is_answered_with_200() -> None:
    single = respond(plan(body({"task_type": "a"}), MAX), [created(1, m.EXISTS, COMPLETED)])
    assert (single.status, json.loads(single.body)["state"]) == (200, "completed")
    several = respond(plan(body([{"task_type": "a"}] * 2), MAX), [created(2, m.EXISTS)])
    assert (several.status, json.loads(several.body)["tasks"][0]["exists"]) == (200, True)
    mixed = respond(plan(body([{"task_type": "a"}] * 2), MAX), [m.Enqueued(ID * 2, b"\1\0", b"\2\2", m.OS)])
    assert mixed.status == 201


def test_the_refusal_of_a_single_task_has_the_status_of_its_code() -> None:
    reply = m.Enqueued(ID, bytes([m.REFUSED]), b"\0", m.OS, [[0, "KEY_CONFLICT", "other content", "key"]])
    response = respond(plan(body({"task_type": "a", "key": "k"}), MAX), [reply])
    assert response.status == 409
    assert json.loads(response.body) == {"error": {"code": "KEY_CONFLICT", "message": "other content", "field": "key", "retryable": False}}


def test_the_field_of_a_refusal_is_named_as_in_the_body() -> None:
    reply = m.Enqueued(ID * 2, bytes([m.CREATED, m.REFUSED]), b"\2\0", m.OS, [[1, "BAD_REQUEST", "too long", "timeouts_ms"]])
    response = respond(plan(body([{"task_type": "a"}] * 2), MAX), [reply])
    assert json.loads(response.body)["tasks"][1]["error"]["field"] == "tasks[1].timeout"


def test_an_overloaded_broker_is_a_503_that_says_when_to_come_back() -> None:
    response = respond(plan(body({"task_type": "a"}), MAX), [m.Error("OVERLOADED", "behind", "", True, 1500)])
    assert response.status == 503
    assert response.headers == (("Retry-After", "2"),)
    assert json.loads(response.body)["error"]["retry_after_ms"] == 1500


def test_one_queue_that_refuses_does_not_hide_what_another_accepted() -> None:
    asked = plan(body([{"task_type": "a", "queue": "x"}, {"task_type": "a", "queue": "y"}]), MAX)
    response = respond(asked, [created(1), m.Error("OVERLOADED", "behind", "", True, 500)])
    items = json.loads(response.body)["tasks"]
    assert response.status == 201
    assert items[0]["id"] == ID.hex()
    assert items[1]["error"]["retryable"] is True


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=4), max_leaves=6)
_OBJECT = st.dictionaries(st.sampled_from([*enqueue.OPTIONS, "payload", "other"]), _JSON | st.just("a"), max_size=5)


@given(_OBJECT | st.lists(_OBJECT | _JSON, max_size=5) | _JSON)
def test_any_json_is_planned_or_refused_and_each_task_of_a_list_has_its_answer(value: Any) -> None:
    try:
        asked = plan(body(value), MAX)
    except Answer:
        return
    assert sorted([at for places in asked.places for at in places] + [*asked.refused]) == [*range(asked.count)]
    response = respond(asked, [created(len(places)) for places in asked.places])
    assert None not in json.loads(response.body).get("tasks", [])


@given(st.binary(max_size=64))
def test_any_bytes_are_planned_or_refused(text: bytes) -> None:
    with contextlib.suppress(Answer):
        plan(text, MAX)
