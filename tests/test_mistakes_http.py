"""Mistakes that people make over HTTP, each with what the broker says to it: a code, the field, and the way out."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

import pytest

from taskq import testing

JSON = {"Content-Type": "application/json"}


def ask(address: str, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request(method, path, body if isinstance(body, (str, bytes)) or body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        error: dict[str, Any] = json.loads(answer.read()).get("error", {})
        return answer.status, error
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "words"),
    [
        ("POST", "/enqueue", {"payload": {}}, JSON, 400, "task_type"),
        ("POST", "/enqueue", {"task_type": "a b"}, JSON, 400, "task_type"),
        ("POST", "/enqueue", {"task_type": "a", "retries": 3}, JSON, 400, "retries"),
        ("POST", "/enqueue", {"task_type": "a", "delay": "5 minutes"}, JSON, 400, "delay"),
        ("POST", "/enqueue", {"task_type": "a", "delay": "400d"}, JSON, 400, "delay"),
        ("POST", "/enqueue", {"task_type": "a", "priority": "urgent"}, JSON, 400, "priority"),
        ("POST", "/enqueue", "{'task_type': 'a'}", JSON, 400, "JSON"),
        ("POST", "/enqueue", {"task_type": "a"}, {}, 415, "application/json"),
        ("POST", "/enqueue", "x" * (5 << 20), JSON, 413, "bytes"),
        ("GET", "/enqueue", None, {}, 405, "POST"),
        ("GET", "/v1/tasks/17", None, {}, 400, "id"),
        ("GET", "/v1/tasks/01a226667e4580b084bcb6006d42e379", None, {}, 404, "never existed"),
        ("GET", "/nothing", None, {}, 404, "openapi.json"),
    ],
)
async def test_a_mistake_is_answered_with_its_field_and_the_way_out(
    method: str, path: str, body: Any, headers: dict[str, str], status: int, words: str
) -> None:
    async with testing.broker() as node:
        found, error = await asyncio.to_thread(ask, node.http, method, path, body, headers)
        assert found == status
        assert words in error["message"] or words == error.get("field"), error
        assert "_ms" not in error["message"], "a name of the wire"
