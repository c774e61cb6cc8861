"""Payloads and names that mean no good: a payload costs its own task alone, a name is refused at both doors."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest
from programs import ON_FREE_PORTS, READY, SOURCE, WAIT_S, Start

from taskq import AsyncClient, serial
from taskq.control import ArgumentsError
from taskq.core import messages as m
from taskq.core.messages import BYTES, JSON, MSGPACK
from taskq.errors import BadRequest
from taskq.options import Options
from taskq.worker.registry import TaskDefinition

APP = """
import os
from typing import Any
from taskq import App
app = App()

@app.task
async def by_loop(value: Any) -> int: return os.getppid()

@app.task
def by_thread(value: Any) -> int: return os.getppid()

@app.task(pool="process")
def by_process(value: Any) -> int: return os.getppid()

@app.task
async def runner() -> int: return os.getpid()
"""
KINDS = ("by_loop", "by_thread", "by_process")
DEEP = 400_000

# what no worker can read: that task fails for good, and says why
UNREADABLE: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", MSGPACK),
    "no JSON at all": (b"", JSON),
    "half a map": (b"\x82\xa1a\x01", MSGPACK),
    "more than one value": (b"\x01\x02", MSGPACK),
    "a byte that means nothing": (b"\xc1", MSGPACK),
    "arrays in arrays": (b"\x91" * DEEP + b"\xc0", MSGPACK),
    "maps in maps": (b"\x81\xa1a" * (DEEP // 2) + b"\xc0", MSGPACK),
    "an array of four billion": (b"\xdd\xff\xff\xff\xff", MSGPACK),
    "a map of four billion": (b"\xdf\xff\xff\xff\xff", MSGPACK),
    "a text of four gigabytes": (b"\xdb\xff\xff\xff\xff", MSGPACK),
    "bytes of four gigabytes": (b"\xc6\xff\xff\xff\xff", MSGPACK),
    "text that is no UTF-8": (b"\xa2\xff\xfe", MSGPACK),
    "a list as a key": (b"\x81\x90\x01", MSGPACK),
    "a timestamp of a wrong size": (b"\xd4\xff\x00", MSGPACK),
    "a pickle": (b"cos\nsystem\n(S'true'\ntR.", MSGPACK),
    "a pickle for JSON": (b"cos\nsystem\n(S'true'\ntR.", JSON),
    "JSON in JSON in JSON": (b"[" * DEEP, JSON),
    "closed JSON in JSON": (b"[" * DEEP + b"]" * DEEP, JSON),
    "objects in objects": (b'{"a":' * (DEEP // 4), JSON),
    "an endless number": (b"9" * 100_000, JSON),
    "JSON with bytes": (b'"\xff"', JSON),
    "JSON and more": (b"1 2", JSON),
    "YAML": (b"!!python/object/apply:os.system ['true']", JSON),
    "too many arguments": (b"\x92\x01\x02", MSGPACK),
    "an argument of another name": (b'{"__class__": 1}', JSON),
    "a number as the name of an argument": (b"\x81\x01\x02", MSGPACK),
}
# odd, but a value
READABLE: dict[str, tuple[bytes, int]] = {
    "an extension of unknown type": (b"\x81\xa5value\xd4\x2a\x00", MSGPACK),
    "the end of time": (b"\x81\xa5value\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff", MSGPACK),
    "a key twice": (b'{"value": 1, "value": 2}', JSON),
    "a number that is infinite": (b'{"value": 1e999}', JSON),
    "half a character": (b'{"value": "\\ud800"}', JSON),
    "controls": (b'{"value": "\\u0000\\u001b[31m"}', JSON),
    "300,000 small lists": (b"\x81\xa5value\xdd\x00\x04\x93\xe0" + b"\x90" * 300_000, MSGPACK),
    "any bytes": (bytes(range(256)), BYTES),
}


def test_a_payload_that_cannot_be_read_fails_its_own_task_and_no_runner(start: Start, tmp_path: Path) -> None:
    (tmp_path / "zoo.py").write_text(APP)
    found = start("broker", *ON_FREE_PORTS).wait_for(READY)
    worker = start("worker", "--connect", found["tcp"], "--app", "zoo")
    asyncio.run(feed(found["tcp"]))
    assert worker.stop() == 0


async def feed(address: str) -> None:
    """Everything in the zoo to every kind of task, by one runner."""
    async with AsyncClient(address) as client:

        async def settle(kind: str, item: tuple[bytes, int]) -> Any:
            return await client.wait(await client.submit(kind, item, Options()), timeout=4 * WAIT_S)

        pid = await client.result(await client.enqueue("runner"), timeout=WAIT_S)
        for kind in KINDS:
            for name, item in UNREADABLE.items():
                info = await settle(kind, item)
                (attempt,) = info.fields["attempts"]
                assert (info.state, attempt["error_type"]) == ("failed", "ArgumentsError"), (kind, name, info.error)
                assert attempt["error"].startswith(f"the payload does not fit {kind}(value"), (kind, name)
                assert len(attempt["error"]) < 1_000
            done = await asyncio.gather(*(settle(kind, item) for item in READABLE.values()))
            assert {info.state for info in done} == {"completed"}, [(info.state, info.error) for info in done]
        assert await client.result(await client.enqueue("runner"), timeout=WAIT_S) == pid, "the runner has lived through all of it"


def value(value: Any) -> None: ...


@pytest.mark.parametrize("encoding", [3, 77, 1 << 40])
async def test_an_encoding_that_nobody_knows_is_refused_by_the_broker_and_by_a_worker(broker: Any, encoding: int) -> None:
    async with AsyncClient(broker.tcp) as client:
        with pytest.raises(BadRequest, match="encodings: must be 0"):
            await client.submit("a", (b"", encoding), Options())
    with pytest.raises(ArgumentsError, match=f"unknown encoding {encoding}"):
        TaskDefinition("value", value).arguments(b"", encoding)


def test_nothing_here_can_be_told_to_run_what_it_reads() -> None:
    """No pickle, no eval, no import by a name that came in: only the module that `--app` names is imported."""
    wild = re.compile(r"\b(pickle|marshal|shelve|yaml|dill)\b|(?<![\w.])(eval|exec|__import__)\(")
    found = {path.name: line for path in (SOURCE / "taskq").rglob("*.py") for line in path.read_text().splitlines() if wild.search(line)}
    assert set(found) <= {"app.py", "serial.py", "control.py"}, found  # sentences that say so
    importing = [path.name for path in (SOURCE / "taskq").rglob("*.py") if "import_module(" in path.read_text()]
    assert importing == ["loading.py"]
    with pytest.raises(ValueError):
        serial.decode(msgpack.packb(1), 3)


# ---- names

NAMES = {
    "empty": "",
    "a folder above": "../../etc/passwd",
    "two dots": "a/../b",
    "a slash": "a/b",
    "a backslash": "..\\a",
    "NUL": "a\0b",
    "a line end": "a\nb",
    "a line end at the end": "a\n",
    "a space": "a b",
    "an escape": "\x1b[31m",
    "from right to left": "\u202eabc",
    "letters that look alike": "dеfault",
    "full width": "ｄefault",
    "an emoji": "👍",
    "a quote": "a'; DROP TABLE tasks; --",
    "a percent": "%2e%2e",
    "a star": "*",
    "129 letters": "a" * 129,
    "100,000 letters": "a" * 100_000,
    "a tag": "<script>alert(1)</script>",
}
GOOD = ("..", ".", "-", "a.b:c_d-e", "a" * 128, "CON", "__proto__", "default")


def over_http(address: str, task: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(address, timeout=WAIT_S)
    try:
        connection.request("POST", "/enqueue", json.dumps(task), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_is_none_is_refused_at_both_doors(broker: Any, name: str) -> None:
    bad = NAMES[name]
    async with AsyncClient(broker.tcp) as client:
        for message, field in (
            (m.Enqueue([b"1"], bad, bytes(16), ["a"], [JSON]), "queue"),
            (m.Enqueue([b"1"], "q", bytes(16), [bad], [JSON]), "task_types"),
        ):
            try:
                answer = await client._call(message)
                told = (answer.errors[0][1], answer.errors[0][3])
            except BadRequest as error:
                told = (error.code, error.field)
            assert told == ("BAD_REQUEST", field)
        assert await client.queues() == []
    for field, task in (("queue", {"task_type": "a", "queue": bad}), ("task_type", {"task_type": bad})):
        status, told = await asyncio.to_thread(over_http, broker.http, task)
        assert (status, told["error"]["code"], told["error"]["field"]) == (400, "BAD_REQUEST", field)


async def test_a_good_name_is_never_a_path(broker: Any) -> None:
    folder = Path(broker.config.data)
    before = {path.name for path in folder.rglob("*") if path.suffix != ".log"}
    async with AsyncClient(broker.tcp) as client:
        for name in GOOD:
            handle = await client.enqueue(name, queue=name, key="../" + name)
            assert (await client.get(handle)).queue == name
        assert {row["queue"] for row in await client.queues()} == set(GOOD)
    assert {path.name for path in folder.rglob("*") if path.suffix != ".log"} <= before | {"store.sqlite-wal", "store.sqlite-shm"}
    assert not [path for path in folder.parent.iterdir() if path.name in GOOD]
