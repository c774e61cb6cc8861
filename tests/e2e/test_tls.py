"""TLS on both doors: real certificates, real programs; who is let in, who is turned away, and what they are told."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import Files, issue
from programs import ON_FREE_PORTS, READY, WAIT_S, Run, Start

from taskq import AsyncClient, Client, testing
from taskq.actors.certificate import server_context
from taskq.errors import BrokerUnavailable, ConfigError, TlsFailed

MARKER = "a-payload-that-nobody-else-may-read"
APP = """
from taskq import App
app = App()

@app.task
async def first(text: str) -> str:
    handle = await second.enqueue(text=text)
    return handle.id

@app.task(pool="process")
def second(text: str) -> str:
    return text.upper()
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return issue(tmp_path / "tls")


def serve(start: Start, files: Files) -> dict[str, str]:
    found = start("broker", *ON_FREE_PORTS, *files.flags).wait_for(READY).groupdict()
    assert found["tcp"].startswith("tls://127.0.0.1:") and found["http"].startswith("https://127.0.0.1:")
    return found


def curl(*arguments: str) -> tuple[int, Any]:
    command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *arguments]
    body, _, status = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout.rpartition("\n")
    return int(status), json.loads(body)


# ---- who is let in


def test_clients_workers_and_the_command_line_speak_tls(start: Start, run: Run, files: Files, tmp_path: Path) -> None:
    broker = serve(start, files)
    (tmp_path / "mail.py").write_text(APP)
    worker = start("worker", "--connect", broker["tcp"].replace("127.0.0.1", "localhost"), "--tls-ca", str(files.ca), "--app", "mail")
    asked = run("main", "enqueue", "second", "text=hello", "--wait", "--broker", broker["tcp"], "--tls-ca", str(files.ca))
    assert (asked.returncode, asked.stdout) == (0, "HELLO\n"), asked.stderr
    asked = run("main", "workers", TASKQ_URL=broker["tcp"], TASKQ_TLS_CA=str(files.ca))
    assert "second" in asked.stdout, asked.stderr
    with Client(broker["tcp"], tls_ca=str(files.ca)) as client:
        inner = client.result(client.enqueue("first", {"text": "a task enqueues another"}), timeout=WAIT_S)
        assert client.result(inner, timeout=WAIT_S) == "A TASK ENQUEUES ANOTHER"
    assert worker.stop() == 0


def test_curl_speaks_https_and_reads_a_refusal_of_a_body_that_it_is_still_sending(start: Start, files: Files, tmp_path: Path) -> None:
    url = serve(start, files)["http"]
    trusting = ("--cacert", str(files.ca))
    body = json.dumps({"task_type": "a", "payload": MARKER})
    status, made = curl(*trusting, f"{url}/enqueue", "-H", "Content-Type: application/json", "-d", body)
    assert status == 201
    assert curl(*trusting, f"{url}/v1/tasks/{made['id']}?payload=1")[1]["payload"] == MARKER
    (tmp_path / "large").write_bytes(b"x" * (8 << 20))
    post = ("-H", "Content-Type: application/json", "-H", "Expect:", "--data-binary", f"@{tmp_path / 'large'}")
    assert curl(*trusting, *post, f"{url}/enqueue")[1]["error"]["code"] == "PAYLOAD_TOO_LARGE"


async def test_large_payloads_and_many_tasks_pass_whole(files: Files) -> None:
    async with testing.broker(**files.settings) as node, AsyncClient(node.tcp, tls_ca=str(files.ca)) as client:
        payloads = [bytes([at]) * 700_000 for at in range(20)]
        handles = [*await client.enqueue_many("a", payloads), *await client.enqueue_many("b", range(5_000))]
        assert [(await client.get(handle)).payload for handle in handles[:20]] == payloads
        assert (await client.get(handles[-1])).payload == 4_999


async def test_nothing_that_is_sent_can_be_read_on_the_way(files: Files) -> None:
    seen = bytearray()

    async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            seen.extend(data)
            target.write(data)
        target.close()

    async with testing.broker(**files.settings) as node:
        host, port = node.tcp.removeprefix("tls://").split(":")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

        listening = await asyncio.start_server(relay, "127.0.0.1", 0)
        async with listening, AsyncClient(f"tls://127.0.0.1:{listening.sockets[0].getsockname()[1]}", tls_ca=str(files.ca)) as client:
            handle = await client.enqueue("send_email", {"to": MARKER}, queue="secret-queue")
            assert (await client.get(handle)).payload == {"to": MARKER}
    assert len(seen) > 1_000
    assert not [text for text in (MARKER, "secret-queue", "send_email") if text.encode() in seen]


# ---- who is turned away


async def refused(url: str, ca: Path | None, wait: str = "enqueue") -> str:
    """What a client that would try for a minute is told within seconds."""
    began = time.monotonic()
    async with AsyncClient(url, deadline=60, tls_ca=None if ca is None else str(ca)) as client:
        with pytest.raises(TlsFailed) as caught:
            await (client.enqueue("a") if wait == "enqueue" else client.queues())
    assert time.monotonic() - began < 5
    assert not caught.value.retryable and isinstance(caught.value, BrokerUnavailable)
    return str(caught.value)


@pytest.mark.parametrize("wait", ["enqueue", "queues"])
async def test_a_certificate_of_another_authority_is_not_trusted(files: Files, tmp_path: Path, wait: str) -> None:
    stranger = issue(tmp_path / "stranger")
    async with testing.broker(**files.settings) as node:
        assert "not trusted" in await refused(node.tcp, stranger.ca, wait)
        assert "--tls-ca" in await refused(node.tcp, None, wait)


async def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    files = issue(tmp_path / "tls", "queue.example")
    async with testing.broker(**files.settings) as node:
        assert "for another host" in await refused(node.tcp, files.ca)
        assert "for another host" in await refused(node.tcp.replace("127.0.0.1", "localhost"), files.ca)


async def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    files = issue(tmp_path / "tls", days=-1)
    async with testing.broker(**files.settings) as node:
        assert "expired" in await refused(node.tcp, files.ca)


async def test_a_tls_client_never_speaks_plain(files: Files) -> None:
    async with testing.broker() as node:
        assert "does not speak TLS" in await refused(f"tls://{node.tcp}", files.ca)
        assert "does not speak TLS" in await refused(f"tls://{node.http}", files.ca)


async def test_a_plain_client_of_a_tls_broker_is_told_what_to_write(files: Files) -> None:
    async with testing.broker(**files.settings) as node:
        address = node.tcp.removeprefix("tls://")
        async with AsyncClient(address, deadline=1) as client:
            with pytest.raises(BrokerUnavailable, match=f"if it speaks TLS, write the address as tls://{address}"):
                await client.enqueue("a")


async def test_plain_http_to_the_tls_port_is_not_answered(files: Files) -> None:
    async with testing.broker(**files.settings) as node:
        reader, writer = await asyncio.open_connection(*node.http.removeprefix("https://").split(":"))
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            found = await asyncio.wait_for(reader.read(), WAIT_S)
        except ConnectionResetError:
            found = b""
        assert b"HTTP" not in found
        writer.close()


@pytest.mark.parametrize(("version", "is_spoken"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
def test_tls_older_than_1_2_is_not_spoken(start: Start, files: Files, version: str, is_spoken: bool) -> None:
    broker = serve(start, files)
    for address in (broker["tcp"], broker["http"]):
        target = address.partition("://")[2]
        command = [
            "openssl",
            "s_client",
            "-connect",
            target,
            version,
            "-cipher",
            "DEFAULT@SECLEVEL=0",
            "-CAfile",
            str(files.ca),
            "-verify_return_error",
        ]
        done = subprocess.run(command, input=b"", capture_output=True, timeout=WAIT_S, check=False)
        assert (done.returncode == 0) is is_spoken, done.stderr


async def test_who_does_not_finish_the_handshake_is_cut_off(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.actors.sockets.HANDSHAKE_S", 0.3)
    async with testing.broker(**files.settings) as node:
        for address in (node.tcp, node.http):
            for begin in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
                reader, writer = await asyncio.open_connection(*address.partition("://")[2].split(":"))
                writer.write(begin)
                began = time.monotonic()
                with suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), WAIT_S) == b""
                assert time.monotonic() - began < 5
                writer.close()
        async with AsyncClient(node.tcp, tls_ca=str(files.ca)) as client:
            assert await client.queues() == []


async def test_a_peer_that_says_goodbye_in_the_middle_of_everything_disturbs_nobody(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    trusting = ssl.create_default_context(cafile=files.ca)
    async with testing.broker(**files.settings) as node, AsyncClient(node.tcp, tls_ca=str(files.ca)) as client:
        for address, data in ((node.http, b"GET /v1/tasks/" + b"0" * 32), (node.http, b""), (node.tcp, b"\0\0"), (node.tcp, b"")):
            for how in ("goodbye", "reset"):
                _, writer = await asyncio.open_connection(*address.partition("://")[2].split(":"), ssl=trusting, server_hostname="localhost")
                writer.write(data)
                writer.close() if how == "goodbye" else writer.transport.abort()
        assert (await client.enqueue("a")).created
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


# ---- the files


def test_sighup_shows_new_connections_the_new_certificate(start: Start, tmp_path: Path) -> None:
    old, new = issue(tmp_path / "tls", rsa=True), issue(tmp_path / "new")
    broker = start("broker", *ON_FREE_PORTS, *old.flags)
    tcp = broker.wait_for(READY)["tcp"]
    old_ca = old.ca.rename(tmp_path / "old-ca.pem")
    with Client(tcp, tls_ca=str(old_ca)) as before:
        before.queues()
        new.cert.rename(old.cert)
        broker.signal(signal.SIGHUP)
        broker.wait_for("the old one stays: tls_key: .* is not the key of the certificate", "stderr")
        with Client(tcp, tls_ca=str(old_ca)) as client:
            assert client.queues() == []
        new.key.rename(old.key)
        broker.signal(signal.SIGHUP)
        broker.wait_for("the certificate was read again", "stderr")
        with Client(tcp, tls_ca=str(new.ca)) as client:
            assert client.queues() == []
        with Client(tcp, tls_ca=str(old_ca)) as client, pytest.raises(TlsFailed):
            client.queues()
        assert before.queues() == [], "a connection that stands is not asked again"
    assert broker.stop() == 0


def spoiled(files: Files, how: str, tmp_path: Path) -> tuple[str, str]:
    """(certificate, key), one of them not usable."""
    cert, key = files.cert, files.key
    if how == "no certificate":
        cert = tmp_path / "nowhere.pem"
    elif how == "no key":
        key = tmp_path / "nowhere.pem"
    elif how == "a folder":
        cert = tmp_path
    elif how == "an empty certificate":
        cert.write_text("")
    elif how == "the key as certificate":
        cert = key
    elif how == "the certificate as key":
        key = cert
    elif how == "the key of another":
        key = issue(tmp_path / "other").key
    elif how == "a damaged certificate":
        cert.write_text(cert.read_text().replace("MII", "AAA"))
    elif how == "a damaged key":
        key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif how == "a passphrase":
        locked = tmp_path / "locked.pem"
        subprocess.run(["openssl", "pkey", "-in", key, "-out", locked, "-aes256", "-passout", "pass:word"], check=True, timeout=WAIT_S)
        key = locked
    return str(cert), str(key)


BAD_FILES = {
    "no certificate": ("tls_cert", "cannot be read: No such file"),
    "no key": ("tls_key", "cannot be read: No such file"),
    "a folder": ("tls_cert", "cannot be read: Is a directory"),
    "an empty certificate": ("tls_cert", "does not hold a certificate in PEM form"),
    "the key as certificate": ("tls_cert", "does not hold a certificate in PEM form"),
    "the certificate as key": ("tls_key", "does not hold a private key in PEM form"),
    "the key of another": ("tls_key", "is not the key of the certificate"),
    "a damaged certificate": ("tls_cert", "damaged"),
    "a damaged key": ("tls_key", "damaged"),
    "a passphrase": ("tls_key", "has a passphrase"),
}


@pytest.mark.parametrize("how", BAD_FILES)
async def test_files_that_cannot_be_used_are_refused_by_the_name_of_the_setting(files: Files, tmp_path: Path, how: str) -> None:
    field, text = BAD_FILES[how]
    cert, key = spoiled(files, how, tmp_path)
    with pytest.raises(ConfigError, match=text) as caught:
        async with testing.broker(tls_cert=cert, tls_key=key):
            pass
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")


def test_a_broker_with_the_wrong_key_ends_with_78_and_makes_no_data_folder(run: Run, files: Files, tmp_path: Path) -> None:
    cert, key = spoiled(files, "the key of another", tmp_path)
    done = run("broker", *ON_FREE_PORTS, "--tls-cert", cert, "--tls-key", key)
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith("taskq-broker: tls_key: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "taskq-data").exists()


def test_an_authority_that_cannot_be_read_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for path in ("nowhere.pem", "empty.pem"):
        with pytest.raises(ConfigError, match="tls_ca: ") as caught:
            Client("tls://localhost:1", tls_ca=str(tmp_path / path))
        assert caught.value.field == "tls_ca"
        done = run("worker", "--connect", "tls://localhost:1", "--tls-ca", path)
        assert (done.returncode, "tls_ca: " in done.stderr) == (78, True), done.stderr
        assert run("main", "queues", "--broker", "tls://localhost:1", "--tls-ca", path).returncode == 2


def test_an_authority_for_an_address_without_tls_is_refused(files: Files) -> None:
    with pytest.raises(ConfigError, match="tls_ca: is given for localhost:7000, which is no TLS address; write tls://localhost:7000"):
        Client("localhost:7000", tls_ca=str(files.ca))


def test_a_worker_that_does_not_trust_the_broker_says_so_and_goes_on_trying(start: Start, files: Files, tmp_path: Path) -> None:
    broker = serve(start, files)
    worker = start("worker", "--connect", broker["tcp"], "--tls-ca", str(issue(tmp_path / "stranger").ca))
    worker.wait_for("not connected, trying again: .*its certificate is not trusted", "stderr")
    assert worker.process.poll() is None


def test_ports_of_a_tls_broker_are_reached_by_their_names_too(start: Start, files: Files) -> None:
    found = start("broker", "--listen", "localhost:0", "--http", "localhost:0", *files.flags).wait_for(READY)
    port = found["tcp"].rpartition(":")[2]
    hosts = ["localhost", "127.0.0.1", *(["[::1]"] if socket.has_ipv6 else [])]
    for host in hosts:
        with Client(f"tls://{host}:{port}", tls_ca=str(files.ca)) as client:
            assert client.queues() == []


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True)])
def test_a_key_that_others_can_read_or_change_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_told: bool) -> None:
    files = issue(tmp_path)
    files.key.chmod(mode)
    server_context(*files.settings.values())
    assert ("chmod 600" in caplog.text) is is_told
