"""HTTP as its users speak it: curl, wrk and http.client against a real broker."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from programs import ON_FREE_PORTS, READY, Start

from taskq import Client

README = '{"task_type":"send_email","payload":{"to":"user@example.com"}}'
JSON = {"Content-Type": "application/json"}
POST = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"task_type":"send_email","payload":{"to":"user@example.com"}}'
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format("asked %d wrong %d broken %d", summary.requests, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@pytest.fixture
def addresses(start: Start) -> dict[str, str]:
    return start("broker", *ON_FREE_PORTS).wait_for(READY).groupdict()


def curl(*arguments: str) -> tuple[int, Any]:
    """Status and decoded body."""
    command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *arguments]
    body, _, status = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_the_request_of_the_readme_enqueues_a_task(addresses: dict[str, str]) -> None:
    base = f"http://{addresses['http']}"
    status, made = curl("-X", "POST", f"{base}/enqueue", "-H", "Content-Type: application/json", "-d", README)
    assert status == 201
    assert (made["state"], made["durability"]) == ("pending", "fsync")
    assert re.fullmatch("[0-9a-f]{32}", made["id"])
    status, task = curl(f"{base}/v1/tasks/{made['id']}?payload=1")
    assert (status, task["task_type"], task["payload"]) == (200, "send_email", {"to": "user@example.com"})
    assert curl("-X", "DELETE", f"{base}/v1/tasks/{made['id']}") == (200, {"id": made["id"], "state": "cancelled"})
    assert curl("-X", "DELETE", f"{base}/v1/tasks/{made['id']}")[0] == 409


def test_a_key_makes_the_second_enqueue_the_first(addresses: dict[str, str]) -> None:
    body = '{"task_type":"send_email","payload":{"to":"a"},"key":"order-1"}'
    command = ("-X", "POST", f"http://{addresses['http']}/enqueue", "-H", "Content-Type: application/json", "-d")
    first, second = curl(*command, body), curl(*command, body)
    assert (first[0], second[0]) == (201, 200)
    assert first[1]["id"] == second[1]["id"]
    status, refused = curl(*command, body.replace('"a"', '"b"'))
    assert (status, refused["error"]["code"]) == (409, "KEY_CONFLICT")


def test_a_list_is_answered_item_by_item_in_its_order(addresses: dict[str, str]) -> None:
    items = [{"task_type": "a", "queue": "one"}, {"task_type": "no spaces please"}, {"task_type": "b", "queue": "two"}, {"payload": 1}]
    with closing(http.client.HTTPConnection(addresses["http"], timeout=10)) as connection:
        connection.request("POST", "/enqueue", json.dumps(items), JSON)
        response = connection.getresponse()
        tasks = json.loads(response.read())["tasks"]
    assert response.status == 201
    assert ["id" in task for task in tasks] == [True, False, True, False]
    assert [tasks[at]["error"]["field"] for at in (1, 3)] == ["tasks[1].task_type", "tasks[3].task_type"]


def test_a_name_of_the_broker_is_taken_when_it_was_told(start: Start) -> None:
    broker = start("broker", *ON_FREE_PORTS, "--http-hosts", "queue.example, Other").wait_for(READY)
    url = f"http://{broker['http']}/healthz"
    assert [curl(url, "-H", f"Host: {name}")[0] for name in ("queue.example", "other:3000", "stranger")] == [200, 200, 421]


def test_the_first_request_of_the_readme_reaches_a_task_with_a_queue_of_its_own(start: Start, addresses: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mail.py").write_text(
        "from taskq import App\napp = App()\n@app.task(queue='email')\nasync def send_email(to: str) -> str: return 'sent to ' + to\n"
    )
    start("worker", "--connect", addresses["tcp"], "--app", "mail")
    _, made = curl("-X", "POST", f"http://{addresses['http']}/enqueue", "-H", "Content-Type: application/json", "-d", README)
    assert curl(f"http://{addresses['http']}/v1/tasks/{made['id']}?wait=30")[1]["result"] == "sent to user@example.com"


def test_a_wait_over_http_is_answered_when_the_task_ends(start: Start, addresses: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mail.py").write_text("from taskq import App\napp = App()\n@app.task\ndef send_email(to: str) -> dict: return {'sent': to}\n")
    status, made = curl("-X", "POST", f"http://{addresses['http']}/enqueue", "-H", "Content-Type: application/json", "-d", README)
    worker = start("worker", "--connect", addresses["tcp"], "--app", "mail")
    status, task = curl(f"http://{addresses['http']}/v1/tasks/{made['id']}?wait=30")
    assert (status, task["state"], task["result"]) == (200, "completed", {"sent": "user@example.com"})
    assert [attempt["outcome"] for attempt in task["attempts"]] == ["completed"]
    assert worker.stop() == 0


def test_wrk_gets_an_answer_to_every_request_and_every_answered_task_is_there(addresses: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    script.write_text(POST)
    command = ["wrk", "-t1", "-c16", "-d2s", "-s", str(script), f"http://{addresses['http']}/enqueue"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = re.search(r"asked (\d+) wrong (\d+) broken (\d+)", said)
    assert found is not None, said
    asked, wrong, broken = map(int, found.groups())
    assert (wrong, broken) == (0, 0)
    assert asked > 100
    with Client(addresses["tcp"]) as client:
        (queue,) = client.queues()
    assert queue["pending"] >= asked
