"""The table of paths: requests to messages, replies to responses."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgpack
import pytest

from taskq.core import messages as m
from taskq.core.access import Grant
from taskq.errors import Answer, BadRequest, Forbidden
from taskq.gateway import enqueue
from taskq.gateway.answers import STATUS, MethodNotAllowed, PathNotFound, Response, Unready, UnsupportedMediaType, error_response
from taskq.gateway.http1 import HttpLimits, Request
from taskq.gateway.routes import ROUTES, Call, Gateway, as_json

HEX = "0193c5a2f1c8845e9a3b5c7d9e1f2a3b"
UUID = "0193c5a2-f1c8-845e-9a3b-5c7d9e1f2a3b"


def gateway(ready: bool = True) -> Gateway:
    return Gateway(HttpLimits(), lambda: {"ready": ready, "reason": "the journal is replayed"}, b'{"openapi":"3.1.0"}')


def call(method: str, path: str, query: str = "", **options: Any) -> Call:
    return gateway().call(Request(method, path, query, **options))


def shown(response: Response) -> Any:
    return json.loads(response.body)


def refusal(method: str, path: str, query: str = "", **options: Any) -> Answer:
    with pytest.raises(Answer) as caught:
        call(method, path, query, **options)
    return caught.value


def info(**changes: Any) -> dict[str, Any]:
    return {"id": HEX, "state": "completed", "encoding": m.JSON, "result_encoding": m.JSON, "attempts": [{"number": 1}], "blocker": "", **changes}


def task(result: bytes = b"1", payload: bytes = b'{"to":1}', query: str = "", **changes: Any) -> Any:
    return shown(call("GET", f"/v1/tasks/{HEX}", query).respond([m.TaskInfo([payload, result], info(**changes))]))


def test_enqueue_takes_json_only_and_says_how() -> None:
    assert len(call("POST", "/enqueue", content_type="application/json; charset=utf-8", body=b'{"task_type":"a"}').messages) == 1
    for content_type in ("", "application/x-www-form-urlencoded", "text/plain"):
        error = refusal("POST", "/enqueue", content_type=content_type, body=b'{"task_type":"a"}')
        assert isinstance(error, UnsupportedMediaType)
        assert "-H 'Content-Type: application/json'" in error.message


@pytest.mark.parametrize("written", [HEX, HEX.upper(), UUID])
def test_a_task_is_asked_for_by_its_id(written: str) -> None:
    assert call("GET", f"/v1/tasks/{written}").messages == [m.Get(bytes.fromhex(HEX))]


@pytest.mark.parametrize(("query", "wait_ms"), [("", 0), ("wait=30", 30_000), ("wait=0.5", 500), ("wait=1m", 60_000), ("wait=60", 60_000)])
def test_the_end_of_a_task_can_be_waited_for(query: str, wait_ms: int) -> None:
    assert call("GET", f"/v1/tasks/{HEX}", query).messages == [m.Get(bytes.fromhex(HEX), wait_ms)]


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        (HEX, "wait=61", "wait"),
        (HEX, "wait=soon", "wait"),
        (HEX, "wait=-1", "wait"),
        (HEX, "wait=1&wait=2", "wait"),
        (HEX, "payload=maybe", "payload"),
        (HEX, "colour=red", "colour"),
        ("abc", "", "id"),
        (HEX + "0", "", "id"),
        ("0" * 31 + "g", "", "id"),
        ("%30" + HEX[1:], "", "id"),
    ],
)
def test_a_bad_part_of_the_url_is_refused_by_name(path: str, query: str, field: str) -> None:
    error = refusal("GET", f"/v1/tasks/{path}", query)
    assert isinstance(error, BadRequest)
    assert error.field == field


@pytest.mark.parametrize(("method", "path", "scope"), [
    ("POST", "/enqueue", "read"), ("GET", f"/v1/tasks/{HEX}", "produce"), ("DELETE", f"/v1/tasks/{HEX}", "read"), ("GET", "/v1/queues", "consume"),
    ("GET", "/v1/workers", "produce"),
])  # fmt: skip
def test_who_lacks_the_scope_is_told_so_before_anything_of_the_request_is_read(method: str, path: str, scope: str) -> None:
    broken = {"query": "wait=soon&wait=1&colour=1", "content_type": "text/plain", "body": b"{"}
    assert isinstance(refusal(method, path, grant=Grant("x", ((scope, "zzz"),)), **broken), Forbidden)
    assert not isinstance(refusal(method, path, grant=Grant("x", (("admin", "*"),)), **broken), Forbidden)


@pytest.mark.parametrize("is_list", [False, True])
def test_of_a_task_in_a_queue_of_others_nothing_but_the_queue_is_read(is_list: bool) -> None:
    producer = Grant("x", (("produce", "zzz"),))
    for queue, kind in (("", Forbidden), ('"queue":"other",', Forbidden), ('"queue":"zzz",', BadRequest)):
        text = f'{{"task_type":"t",{queue}"delay":"{"1" * 100_000}x"}}'
        body = (f"[{text}]" if is_list else text).encode()
        asked = {"grant": producer, "content_type": "application/json", "body": body}
        if is_list and kind is BadRequest:
            assert [type(error) for error in enqueue.plan(body, 1 << 20, producer).refused.values()] == [BadRequest]
        else:
            assert type(refusal("POST", "/enqueue", **asked)) is kind


def test_in_a_list_each_task_is_allowed_or_forbidden_by_its_own_queue() -> None:
    body = b'[{"task_type":"t","queue":"zzz"},{"task_type":"t","queue":"other","delay":"soon"},{"task_type":"t","queue":"zzz","delay":"soon"}]'
    plan = enqueue.plan(body, 1 << 20, Grant("x", (("produce", "zzz"),)))
    assert (plan.places, {at: type(error) for at, error in plan.refused.items()}) == ([[0]], {1: Forbidden, 2: BadRequest})


def test_a_query_with_too_many_parameters_is_refused() -> None:
    assert isinstance(refusal("GET", f"/v1/tasks/{HEX}", "&".join(["a=1"] * 20)), BadRequest)


def test_a_task_is_shown_with_all_its_fields_and_the_names_of_its_encodings() -> None:
    found = task(b'{"n": 1.50}', blocker="no connected worker has it")
    assert found["result"] == {"n": 1.5}
    assert (found["encoding"], found["result_encoding"]) == ("json", "json")
    assert found["attempts"] == [{"number": 1}]
    assert found["blocker"] == "no connected worker has it"
    assert "payload" not in found


def test_the_payload_is_shown_on_demand() -> None:
    assert task(query="payload=1")["payload"] == {"to": 1}
    assert task(query="payload=true", payload=b"")["payload"] is None


def test_a_task_that_is_not_completed_has_no_result() -> None:
    assert task(b"", state="running")["result"] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, {"a": [1, 2.5, None, True, "é"]}),
        (b"\xff\x00", {"$bytes": "/wA="}),
        ([b"x"], [{"$bytes": "eA=="}]),
        ({1: "a", b"k": 2}, {"1": "a", '{"$bytes":"aw=="}': 2}),
        (float("nan"), {"$float": "NaN"}),
        ({"a": [float("inf")], "b": float("-inf")}, {"a": [{"$float": "Infinity"}], "b": {"$float": "-Infinity"}}),
        ({1: "a", "1": "b"}, {"$bytes": base64.b64encode(msgpack.packb({1: "a", "1": "b"})).decode()}),
        (msgpack.ExtType(4, b"x"), {"$ext": 4, "$bytes": "eA=="}),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_a_msgpack_result_is_translated_to_json(value: Any, expected: Any) -> None:
    assert task(msgpack.packb(value), result_encoding=m.MSGPACK)["result"] == expected


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b'1},"state":"x"', m.JSON),
        (b"\xff", m.JSON),
        (b'"\xff"', m.JSON),
        (b"\xc1", m.MSGPACK),
        (b"\x91" * 5000, m.MSGPACK),
        (b"[" * 5000, m.JSON),
        (b"\0", m.BYTES),
    ],
)
def test_bytes_that_are_not_what_their_encoding_says_are_shown_as_bytes(data: bytes, encoding: int) -> None:
    assert set(as_json(data, encoding)) == {"$bytes"}
    assert set(task(data, result_encoding=encoding)["result"]) == {"$bytes"}


def test_json_travels_as_the_very_text() -> None:
    response = call("GET", f"/v1/tasks/{HEX}").respond([m.TaskInfo([b"", b"[1.50, 123456789012345678901234567890]"], info())])
    assert b'"result":[1.50, 123456789012345678901234567890]' in response.body


def test_an_unknown_task_is_not_found() -> None:
    response = call("GET", f"/v1/tasks/{HEX}").respond([m.Error("NOT_FOUND", "no task")])
    assert (response.status, shown(response)["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("outcome", "status", "expected"),
    [
        (m.CANCEL_DONE, 200, {"id": HEX, "state": "cancelled"}),
        (m.CANCEL_REQUESTED, 202, {"id": HEX, "state": "running", "cancel_requested": True}),
        (m.CANCEL_ALREADY_FINAL, 409, "ALREADY_FINAL"),
        (m.CANCEL_NOT_FOUND, 404, "NOT_FOUND"),
    ],
)
def test_cancel_answers_by_outcome(outcome: int, status: int, expected: Any) -> None:
    asked = call("DELETE", f"/v1/tasks/{HEX}")
    assert asked.messages == [m.Cancel(bytes.fromhex(HEX))]
    response = asked.respond([m.Cancelled(bytes([outcome]))])
    found = shown(response)
    assert response.status == status
    assert (found["error"]["code"] if "error" in found else found) == expected


@pytest.mark.parametrize("what", ["queues", "workers"])
def test_lists_are_shown_by_name(what: str) -> None:
    asked = call("GET", f"/v1/{what}")
    assert asked.messages == [m.Inspect(what)]
    assert shown(asked.respond([m.Inspected([{"name": "default", "session": b"x"}])])) == {what: [{"name": "default", "session": {"$bytes": "eA=="}}]}


def test_health_and_readiness_answer_without_the_broker() -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        asked = call("GET", path)
        assert not asked.messages
        assert asked.respond(()).status == 200
    with pytest.raises(Unready, match="the journal is replayed"):
        gateway(ready=False).call(Request("GET", "/readyz"))
    assert gateway(ready=False).call(Request("GET", "/healthz")).respond(()).status == 200


@pytest.mark.parametrize(
    "path", ["/", "/enqueue/", "/v1/tasks", "/v1/tasks/", "/v1/tasks/a/b", "/v2/queues", "//enqueue", "/v1/../enqueue", "/v1/tasks2/a"]
)
def test_an_unknown_path_is_not_found(path: str) -> None:
    assert isinstance(refusal("GET", path), PathNotFound)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/enqueue", "POST"),
        ("PUT", f"/v1/tasks/{HEX}", "DELETE, GET, HEAD"),
        ("OPTIONS", "/v1/queues", "GET, HEAD"),
        ("HEAD", "/enqueue", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(method: str, path: str, allow: str) -> None:
    error = refusal(method, path)
    assert isinstance(error, MethodNotAllowed)
    response = error_response(error)
    assert response.status == 405
    assert response.headers == (("Allow", allow),)


def test_head_asks_what_get_asks() -> None:
    assert call("HEAD", "/v1/queues").messages == call("GET", "/v1/queues").messages


def test_every_error_code_of_a_route_has_a_status() -> None:
    assert {code for route in ROUTES for code in route.errors} <= STATUS.keys()
