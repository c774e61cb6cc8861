"""The OpenAPI document agrees with the tables and with itself."""

from __future__ import annotations

import json
import re
from typing import Any

from taskq.gateway.answers import STATUS
from taskq.gateway.enqueue import OPTIONS
from taskq.gateway.openapi import document
from taskq.gateway.routes import ROUTES


def doc() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(document())
    return found


def test_every_route_is_described() -> None:
    paths = doc()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {(route.method, route.path) for route in ROUTES}


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    text = document().decode()
    used = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert used == doc()["components"]["schemas"].keys()


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for methods in doc()["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_every_option_and_every_error_code_is_described() -> None:
    schemas = doc()["components"]["schemas"]
    assert set(schemas["NewTask"]["properties"]) == {"payload", *OPTIONS}
    assert schemas["Error"]["properties"]["error"]["properties"]["code"]["enum"] == sorted(STATUS)


def test_every_operation_tells_its_refusals() -> None:
    responses = doc()["paths"]["/enqueue"]["post"]["responses"]
    assert {"200", "201", "400", "409", "413", "415", "503", "default"} <= responses.keys()
    assert "409" in doc()["paths"]["/v1/tasks/{id}"]["delete"]["responses"]
