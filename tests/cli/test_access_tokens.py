"""Access tokens from the first command to the last result, with the programs as they are started: where a token is used, and where it never shows."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from programs import ON_FREE_PORTS, READY, Program, Run, Start

from taskq import AsyncClient
from taskq.core.gate import AccessToken, grant_of, text_of
from taskq.errors import AuthFailed
from taskq.storage.tokens import changing

APP = """
import os
from taskq import App
app = App()

@app.task(queue="email")
async def greet(name: str) -> str:
    return "hello " + name

@app.task(queue="email")
async def pass_on(name: str) -> str:
    return (await greet.enqueue(name=name)).id

@app.task(queue="email", pool="process")
def from_a_child(name: str) -> str:
    return greet.enqueue_sync(name=name).id
"""


@attrs.define
class Site:
    """A broker that asks for tokens, and the tokens by name."""

    broker: Program
    address: dict[str, str]
    tokens: dict[str, str]
    folder: Path

    def file(self, name: str) -> str:
        """A file with this token, and the line end that an editor leaves."""
        path = self.folder / f"{name}.token"
        path.write_text(self.tokens[name] + "\n")
        return str(path)


TOKENS = {
    "mailer": ("produce:email*", "read:email"),
    "worker": ("consume", "produce:email"),
    "consumer": ("consume:email", "consume:default"),
    "wrong": ("consume:images",),
}


@pytest.fixture
def site(start: Start, tmp_path: Path) -> Site:
    (tmp_path / "tasks.py").write_text(APP)
    tokens = {}
    with changing(tmp_path / "taskq-data") as known:
        for name, scopes in TOKENS.items():
            tokens[name] = text_of(name, secrets.token_bytes(32))
            known[name] = AccessToken.of(grant_of(name, scopes), tokens[name], secrets.token_bytes(16), 1)
    broker = start("broker", "--auth", *ON_FREE_PORTS)
    return Site(broker, broker.wait_for(READY).groupdict(), tokens, tmp_path)


@asynccontextmanager
async def overheard(address: str) -> AsyncIterator[tuple[str, Callable[[], bytes]]]:
    """A cable to this address that keeps everything that passes, in both directions."""
    host, port = address.rsplit(":", 1)
    heard = bytearray()
    cables: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                heard.extend(data)
                writer.write(data)
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        cables.extend((asyncio.ensure_future(copy(reader, back)), asyncio.ensure_future(copy(there, writer))))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    yield "{}:{}".format(*server.sockets[0].getsockname()), lambda: bytes(heard)
    server.close()
    for cable in cables:
        cable.cancel()
    await asyncio.gather(*cables, return_exceptions=True)


def traces(token: str) -> list[bytes]:
    """What of a token must never be seen: all of it, its secret, and any longer part of that."""
    secret = token[-43:]
    return [secret[at : at + 12].encode() for at in range(32)]


async def test_a_worker_with_a_token_runs_the_tasks_of_a_client_with_another_and_neither_token_is_seen(site: Site, start: Start, run: Run) -> None:
    for name in ("worker", "mailer"):
        run("main", "token", "revoke", name)
        scopes = [part for scope in TOKENS[name] for part in ("--scope", scope)]
        site.tokens[name] = run("main", "token", "create", name, *scopes).stdout.strip()
    async with overheard(site.address["tcp"]) as (address, heard):
        worker = start("worker", "--connect", address, "--app", "tasks", "--token-file", site.file("worker"))
        async with AsyncClient(address, token=site.tokens["mailer"]) as client:
            handle = await client.enqueue("greet", {"name": "world"}, queue="email")
            assert await handle.result(timeout=20) == "hello world"
            runner, keeper = runner_of(worker), worker.process.pid
            command_lines = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (runner, keeper))
        assert await asyncio.to_thread(worker.stop) == 0  # its goodbye goes through this loop
        wire = heard()
    assert site.broker.stop() == 0
    stored = b"".join(path.read_bytes() for path in (site.folder / "taskq-data").rglob("*") if path.is_file())
    logs = (site.broker.errors + worker.errors + "".join(site.broker.said["stdout"])).encode()
    assert b"n,,n=worker,r=" in wire and b"n,,n=mailer,r=" in wire, "the names are seen, so this is the wire"
    assert b'"name": "worker"' in stored and b"taskq-broker listening" in logs and b"launch" in command_lines
    for name in ("worker", "mailer"):
        for trace in traces(site.tokens[name]):
            assert trace not in wire and trace not in stored and trace not in logs and trace not in command_lines


def runner_of(worker: Program) -> int:
    (pid,) = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()[:1]
    return int(pid)


@pytest.mark.parametrize("task", ["pass_on", "from_a_child"])
async def test_what_a_task_enqueues_goes_with_the_token_of_its_worker(site: Site, start: Start, task: str) -> None:
    start("worker", "--connect", site.address["tcp"], "--app", "tasks", TASKQ_TOKEN=site.tokens["worker"])
    async with AsyncClient(site.address["tcp"], token=site.tokens["mailer"]) as client:
        handle = await client.enqueue(task, {"name": "world"}, queue="email")
        assert await client.result(await handle.result(timeout=20), timeout=20) == "hello world"


async def test_a_worker_that_may_not_produce_fails_the_task_that_does(site: Site, start: Start) -> None:
    start("worker", "--connect", site.address["tcp"], "--app", "tasks", TASKQ_TOKEN=site.tokens["consumer"])
    async with AsyncClient(site.address["tcp"], token=site.tokens["mailer"]) as client:
        handle = await client.enqueue("pass_on", {"name": "world"}, queue="email", max_attempts=1)
        info = await client.wait(handle, timeout=20)
    assert info.state == "failed"
    assert "access token consumer does not have the scope produce for the queue 'email'" in info.error


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "TASKQ_TOKEN"),
        ("tq_worker_" + "A" * 43, "is not known to this broker"),
        ("tq_nobody_" + "A" * 43, "is not known to this broker"),
        ("wrong", "access token wrong does not have the scope consume for the queue 'default'"),
        ("nonsense", "TASKQ_TOKEN: what was given is not an access token"),
    ],
)
def test_a_worker_that_is_not_let_in_ends_and_says_why(site: Site, start: Start, token: str, said: str) -> None:
    worker = start("worker", "--connect", site.address["tcp"], "--app", "tasks", TASKQ_TOKEN=site.tokens.get(token, token))
    assert worker.end() == 78
    assert said in worker.errors
    assert "nonsense" not in worker.errors


async def test_a_worker_comes_back_after_the_broker_was_killed_and_proves_itself_again(site: Site, start: Start) -> None:
    worker = start("worker", "--connect", site.address["tcp"], "--app", "tasks", TASKQ_TOKEN=site.tokens["worker"])
    worker.wait_for("new session", "stderr")
    site.broker.discard()
    again = start("broker", "--auth", "--listen", site.address["tcp"], "--http", "127.0.0.1:0")
    again.wait_for(READY)
    worker.wait_for("resumed session|new session.*", "stderr")
    async with AsyncClient(site.address["tcp"], token=site.tokens["mailer"]) as client:
        assert await (await client.enqueue("greet", {"name": "again"}, queue="email")).result(timeout=20) == "hello again"
    assert worker.stop() == 0


async def test_a_token_that_is_revoked_ends_its_client_and_its_worker_waits_for_another_day(site: Site, start: Start, run: Run) -> None:
    worker = start("worker", "--connect", site.address["tcp"], "--app", "tasks", "--drain", "1", TASKQ_TOKEN=site.tokens["worker"])
    worker.wait_for("new session", "stderr")
    async with AsyncClient(site.address["tcp"], token=site.tokens["mailer"]) as client:
        await client.enqueue("greet", {"name": "first"}, queue="email")
        assert run("main", "token", "revoke", "mailer").returncode == 0
        assert run("main", "token", "revoke", "worker").returncode == 0
        worker.wait_for("the broker ended the connection", "stderr")
        with pytest.raises(AuthFailed):
            await client.enqueue("greet", {"name": "second"}, queue="email")
    assert worker.process.poll() is None
    assert worker.stop() == 0


def test_the_commands_for_people_take_a_file_and_never_the_token_itself(site: Site, run: Run) -> None:
    made = run("main", "--token-file", site.file("mailer"), "enqueue", "greet", "name=me", "--queue", "email", "--broker", site.address["tcp"])
    assert made.returncode == 0
    shown = run("main", "task", made.stdout.strip(), "--token-file", site.file("mailer"), "--broker", site.address["tcp"])
    assert shown.returncode == 0 and "pending" in shown.stdout
    listed = run("main", "queues", "--json", TASKQ_TOKEN_FILE=site.file("mailer"), TASKQ_URL=site.address["tcp"])
    assert [row["queue"] for row in json.loads(listed.stdout)] == ["email"]
    refused = run("main", "enqueue", "greet", "name=me", TASKQ_TOKEN=site.tokens["mailer"], TASKQ_URL=site.address["tcp"])
    assert refused.returncode == 1 and "the scope produce for the queue 'default'" in refused.stderr
    without = run("main", "queues", TASKQ_URL=site.address["tcp"])
    assert without.returncode == 1 and "TASKQ_TOKEN" in without.stderr and "--token-file" in without.stderr


@pytest.mark.parametrize(("text", "said"), [(None, "cannot be read"), ("", "is empty"), ("secret-of-something-else", "is not an access token")])
def test_a_file_without_a_token_is_named_and_what_is_in_it_is_not_shown(run: Run, tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "t").write_text(text)
    for program in (("worker",), ("main", "queues")):
        done = run(*program, "--token-file", "t")
        assert done.returncode in (2, 78) and said in done.stderr and "t " in done.stderr
        assert "secret-of" not in done.stderr


def test_over_http_the_token_works_from_this_machine_and_is_in_no_log(site: Site) -> None:
    request = urllib.request.Request(
        f"http://{site.address['http']}/enqueue",
        json.dumps({"task_type": "greet", "payload": {"name": "web"}, "queue": "email"}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {site.tokens['mailer']}"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 201
    wrong = urllib.request.Request(f"http://{site.address['http']}/v1/queues", headers={"Authorization": f"Bearer {site.tokens['mailer']}x"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(wrong, timeout=10)
    assert site.broker.stop() == 0
    assert "an access token that is not known" in site.broker.errors
    assert not [trace for trace in traces(site.tokens["mailer"]) if trace.decode() in site.broker.errors]
