"""The log of a broker and of a worker at its most talkative, under odd traffic: nothing that tasks carry is in it, and no line is forged.

And what `taskq` prints on a terminal about a worker that calls itself strange things."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
from programs import IN_CODE, ON_FREE_PORTS, READY, WAIT_S, Start, environment

from taskq import Client
from taskq.core import messages as m
from taskq.errors import NotFound, TaskqError
from taskq.printable import UNFIT
from taskq.protocol.codec import encode
from taskq.protocol.framing import FrameDecoder

MARKER = "payl0ad-marker"
FORGED = "\r\n2026-01-01 00:00:00,000 CRITICAL taskq.node \x1b[31mforged\x9b0m\u202e"
APP = """
import logging
from taskq import App, Discard
app = App()

@app.task
async def echo(text: str) -> str: return text

@app.task(max_attempts=1)
async def fail(text: str) -> None: raise ValueError("no such order")

@app.task(max_attempts=1)
async def forge(text: str) -> None: raise ValueError(text.partition("marker")[2])

@app.task(pool="process", max_attempts=1)
def die(text: str) -> None:
    import os
    os._exit(3)
"""


def send(address: str, *frames: bytes) -> bytes:
    """What a broker says to raw bytes."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.settimeout(WAIT_S)
        connection.sendall(b"".join(frames))
        connection.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while data := connection.recv(1 << 16):
                found += data
        except ConnectionResetError:
            pass
        return found


def frame(message: Any, seq: int) -> bytes:
    return b"".join(map(bytes, encode(message, seq)))


def greeting(name: str = "n") -> bytes:
    return frame(m.Hello(1, "worker", {"name": name, "host": name, "version": name}), 1)


def odd_frames() -> list[bytes]:
    """Each says the marker where it has no business to be."""
    text = MARKER + FORGED
    head = msgpack.packb([[4], text, b"", [text], [1]])
    prefix = struct.pack(">IBBHII", 12 + len(head) + 4, 1, 0, 0x0100, 2, len(head))
    return [
        frame(m.Enqueue([text.encode()], "q", bytes(16), ["a"]), 2),
        frame(m.Enqueue([text.encode()], "bad" + text, bytes(16), ["a"]), 2),
        frame(m.Enqueue([text.encode()], "q", bytes(16), ["bad" + text]), 2),
        frame(m.Enqueue([text.encode()] * 2, "q", bytes(16), ["a"]), 2),
        frame(m.Consume(["q" + text], ["a" + text], 1), 2),
        frame(m.Inspect(text), 2),
        frame(m.Fail(bytes(16), bytes(8), [m.DISCARD], [0], [text], [text]), 2),
        prefix + head + text.encode()[:4],
        text.encode() * 10,
    ]


def odd_requests() -> list[tuple[str, str, bytes, dict[str, str]]]:
    body = json.dumps({"task_type": "a", "payload": MARKER}).encode()
    json_type = {"Content-Type": "application/json"}
    return [
        ("POST", "/enqueue", body, json_type),
        ("POST", "/enqueue", body, {"Content-Type": MARKER}),
        ("POST", "/enqueue", body[:-1], json_type),
        ("POST", "/enqueue", json.dumps({"task_type": MARKER + FORGED, MARKER: FORGED}).encode(), json_type),
        ("POST", "/enqueue", body, {**json_type, "Authorization": f"Bearer {MARKER}", "Cookie": MARKER, "X-Odd": MARKER}),
        ("POST", "/enqueue", body, {**json_type, "Origin": f"http://{MARKER}"}),
        ("GET", f"/{MARKER}?{MARKER}={MARKER}", b"", {}),
        ("GET", "/v1/queues", b"", {"Host": MARKER}),
        ("GET", "/v1/queues", b"", {"Expect": MARKER}),
    ]


def test_the_logs_have_nothing_of_what_tasks_and_requests_carry_and_no_forged_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(APP)
    broker = start("broker", *ON_FREE_PORTS, "--log-level", "debug")
    found = broker.wait_for(READY)
    worker = start("worker", "--connect", found["tcp"], "--app", "odd")
    with Client(found["tcp"]) as client:
        for task_type in ("echo", "fail", "forge", "die"):
            client.wait(client.enqueue(task_type, {"text": MARKER + FORGED}, max_attempts=1, key=MARKER + task_type), timeout=WAIT_S)
        client.wait(client.enqueue("echo", MARKER.encode() + b"\xff", max_attempts=1), timeout=WAIT_S)
        client.wait(client.enqueue("echo", {MARKER: MARKER}, max_attempts=1), timeout=WAIT_S)
        with pytest.raises((NotFound, TaskqError, ValueError)):
            client.get(MARKER)
    for odd in odd_frames():
        send(found["tcp"], greeting(MARKER + FORGED), odd)
        send(found["tcp"], odd)
    for method, path, body, headers in odd_requests():
        connection = http.client.HTTPConnection(found["http"], timeout=WAIT_S)
        connection.request(method, path, body, headers)
        connection.getresponse().read()
        connection.close()
    send(found["http"], f"GET /{MARKER}{FORGED} HTTP/1.1\r\nHost: {MARKER}\r\n\r\n".encode())
    assert worker.stop() == 0
    assert broker.stop() == 0
    for program in (broker, worker):
        assert MARKER not in program.errors
        assert not UNFIT.search(program.errors.replace("\n", ""))
        assert not re.search(r"^\S.{0,60}CRITICAL", program.errors, re.MULTILINE), "what is forged stands indented in a traceback"
    assert "failed with ValueError: no such order" in worker.errors


def on_a_terminal(*arguments: str) -> str:
    """What `taskq` writes to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", IN_CODE.format("main"), *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment())
    os.close(theirs)
    said = b""
    try:
        while data := os.read(ours, 1 << 16):
            said += data
    except OSError:
        pass  # the terminal is closed
    os.close(ours)
    process.wait(WAIT_S)
    return re.sub("\x1b\\[[01]m|\r\n", "", said.decode())  # the bold letters of a heading, the ends of lines


def test_a_worker_cannot_write_on_the_terminal_of_who_looks_at_it(start: Start) -> None:
    found = start("broker", *ON_FREE_PORTS).wait_for(READY)
    host, port = found["tcp"].split(":")
    with socket.create_connection((host, int(port)), WAIT_S) as connection, Client(found["tcp"]) as client:
        connection.sendall(greeting("evil" + FORGED) + frame(m.Consume(["default"], ["nasty"], 1), 2) + frame(m.Credit(1), 0))
        handle = client.enqueue("nasty")
        decoder, frames = FrameDecoder(1 << 20), []
        while not any(isinstance(each.message, m.Deliver) for each in frames):
            frames += decoder.feed(connection.recv(1 << 16))
        (deliver,) = [each.message for each in frames if isinstance(each.message, m.Deliver)]
        for arguments in (("workers",), ("workers", "--json"), ("task", handle.id)):
            said = on_a_terminal(*arguments, "--broker", found["tcp"])
            assert "evil" in said and not UNFIT.search(said)
        text = "broken" + FORGED
        connection.sendall(frame(m.Fail(bytes(deliver.ids), bytes(deliver.tokens), [m.DISCARD], [0], [text], [text]), 3))
        while client.get(handle).state != "failed":
            pass
        for arguments in (("task", handle.id), ("task", handle.id, "--json"), ("task", FORGED)):
            said = on_a_terminal(*arguments, "--broker", found["tcp"])
            assert "forged" in said and not UNFIT.search(said)


def test_a_result_can_only_be_read_on_a_terminal_and_in_a_pipe(start: Start, run: Any, tmp_path: Path) -> None:
    found = start("broker", *ON_FREE_PORTS).wait_for(READY)
    (tmp_path / "odd.py").write_text(APP)
    start("worker", "--connect", found["tcp"], "--app", "odd")
    result = "one\n\x1b[31mtwo"
    command = ("enqueue", "echo", "--payload", json.dumps({"text": result}), "--wait", "--broker", found["tcp"])
    assert run("main", *command).stdout == "one\n\\x1b[31mtwo\n"
    assert json.loads(run("main", *command, "--json").stdout)["result"] == result
    assert on_a_terminal(*command).endswith("one\\x1b[31mtwo")
