"""`taskq-broker` as a process: its line, its signals, its exit codes, its refusals."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from programs import IN_CODE, ON_FREE_PORTS, READY, Run, Spawn, Start

from taskq import Client
from taskq.config import BrokerConfig, settings_of

LOOPS = ("uvloop", "asyncio")


def test_help_explains_every_setting_with_its_default_and_its_variable(run: Run) -> None:
    done = run("broker", "--help")
    text = " ".join(done.stdout.split())
    assert done.returncode == 0
    for row in settings_of(BrokerConfig):
        told = f"{row.flag} {row.kind.metavar} {row.help} [default: {row.shown_default()}; {row.environment}]"
        assert " ".join(told.split()) in text
    assert "A DURATION is a number of seconds" in text and "A SIZE is a number of bytes" in text


@pytest.mark.parametrize("loop", LOOPS)
def test_it_says_one_line_when_ready_and_sigterm_ends_it_with_0(start: Start, tmp_path: Path, loop: str) -> None:
    broker = start("broker", *ON_FREE_PORTS, "--shards", "3", TASKQ_DURABILITY="os", TASKQ_LOOP=loop)
    found = broker.wait_for(READY)
    assert found["data"] == str(tmp_path / "taskq-data")
    assert (found["shards"], found["durability"], int(found["pid"])) == ("3", "os", broker.process.pid)
    for address in (found["tcp"], found["http"]):
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port))).close()
    assert broker.stop() == 0
    assert [line for line in broker.said["stdout"] if line] == [found.string]


def test_what_was_acknowledged_is_there_after_a_restart(start: Start) -> None:
    first = start("broker", *ON_FREE_PORTS)
    with Client(first.wait_for(READY)["tcp"]) as client:
        handle = client.enqueue("never_run", {"a": 1})
    assert first.stop() == 0
    second = start("broker", *ON_FREE_PORTS)
    with Client(second.wait_for(READY)["tcp"]) as client:
        assert client.get(handle.id).state == "pending"


def test_a_second_signal_stops_at_once_and_keeps_what_was_acknowledged(start: Start, tmp_path: Path) -> None:
    broker = start("broker", *ON_FREE_PORTS, "--drain", "1h", "--durability", "memory")
    tcp = broker.wait_for(READY)["tcp"]
    (tmp_path / "app.py").write_text(
        "import asyncio\nfrom taskq import App\napp = App()\n@app.task\nasync def forever() -> None:\n    await asyncio.sleep(3600)\n"
    )
    worker = start("worker", "--connect", tcp, "--app", "app", "--drain", "1h")
    with Client(tcp) as client:
        handle = client.enqueue("forever")
        waiting = client.enqueue("never_run")
        while client.get(handle.id).state != "running":
            pass
        broker.signal(signal.SIGTERM)
        broker.wait_for("a second signal stops at once", "stderr")
        broker.signal(signal.SIGINT)
        assert broker.end() == 0
    assert "stopping at once" in broker.errors
    worker.signal(signal.SIGKILL)
    again = start("broker", *ON_FREE_PORTS)
    with Client(again.wait_for(READY)["tcp"]) as client:
        assert client.get(waiting.id).state == "pending"
        assert client.get(handle.id).state in ("running", "pending")


def test_two_brokers_do_not_share_a_data_folder(start: Start, tmp_path: Path) -> None:
    start("broker", *ON_FREE_PORTS).wait_for(READY)
    second = start("broker", *ON_FREE_PORTS)
    assert second.end() == 73
    assert second.errors.splitlines()[-1].startswith("taskq-broker: ")
    assert "--data" in second.errors and "Traceback" not in second.errors


def test_an_address_in_use_is_a_message_and_no_traceback(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = start("broker", "--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0")
        assert broker.end() == 1
    assert "Traceback" not in broker.errors
    assert str(port) in broker.errors and "--listen" in broker.errors


def test_a_data_folder_that_cannot_be_made_is_a_message(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broker = start("broker", *ON_FREE_PORTS, "--data", str(tmp_path / "file" / "data"))
    assert broker.end() != 0
    assert "Traceback" not in broker.errors and "taskq-broker: " in broker.errors


@pytest.mark.parametrize(
    ("arguments", "environ", "text"),
    [
        (("--shards", "65"), {}, "shards (flag --shards)"),
        ((), {"TASKQ_LEASE": "soon"}, "lease (environment variable TASKQ_LEASE)"),
        (("--config", "missing.toml"), {}, "missing.toml cannot be read"),
        ((), {"TASKQ_LOOP": "trio"}, "TASKQ_LOOP: 'trio'"),
        (("--listen", "0.0.0.0:0"), {}, "listen: 0.0.0.0:0 can be reached from other machines"),
        (("--http", "[::]:0"), {"TASKQ_AUTH": "yes"}, "so tls_cert with tls_key must be set"),
        (("--tls-cert", "cert.pem"), {}, "tls_key: is missing"),
    ],
)
def test_bad_settings_end_it_with_78(run: Run, arguments: tuple[str, ...], environ: dict[str, str], text: str) -> None:
    done = run("broker", *arguments, **environ)
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith("taskq-broker: ") and text in done.stderr
    assert done.stdout == ""


def test_taskq_toml_of_the_working_directory_is_read(start: Start, tmp_path: Path) -> None:
    (tmp_path / "taskq.toml").write_text('shards = 7\nlisten = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\ndurability = "memory"\n')
    broker = start("broker", TASKQ_SHARD="1")
    assert broker.wait_for(READY)["shards"] == "7"
    assert broker.stop() == 0
    assert "settings are read from taskq.toml" in broker.errors
    assert "TASKQ_SHARD is no setting" in broker.errors


def test_insecure_lets_others_in_and_says_so_at_each_start(start: Start) -> None:
    for _ in range(2):
        broker = start("broker", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0", "--insecure")
        assert broker.wait_for(READY)["tcp"].startswith("0.0.0.0:")
        assert broker.stop() == 0
        assert "WARNING taskq.broker insecure is set: whoever reaches 0.0.0.0:0 or 127.0.0.1:0 can enqueue, read and cancel tasks" in broker.errors


def test_an_unknown_flag_is_a_usage_error(run: Run) -> None:
    assert run("broker", "--shard", "4").returncode == 2


def test_no_file_stays_open_for_others_after_a_crash(start: Start) -> None:
    """kill -9, then start again on the same folder: nothing is in the way."""
    first = start("broker", *ON_FREE_PORTS)
    os.kill(int(first.wait_for(READY)["pid"]), signal.SIGKILL)
    assert first.end() == -signal.SIGKILL
    assert start("broker", *ON_FREE_PORTS).wait_for(READY)


def test_a_terminal_that_is_closed_does_not_end_a_broker_without_tls(start: Start) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    broker.wait_for(READY)
    broker.signal(signal.SIGHUP)
    broker.wait_for("SIGHUP: there is no certificate to read again, the broker goes on", "stderr")
    assert broker.stop() == 0


def listens(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">&-", "> >(true)"])
def test_a_broker_works_without_standard_streams_and_gives_their_numbers_to_nothing_else(spawn: Spawn, streams: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    command = [sys.executable, "-c", IN_CODE.format("broker"), "--listen", "{}:{}".format(*address), "--http", "127.0.0.1:0"]
    broker = spawn(["bash", "-c", f'exec "$@" {streams}', "bash", *command])
    while not listens(address):
        assert broker.process.poll() is None
    opened = [os.readlink(f"/proc/{broker.process.pid}/fd/{fd}") for fd in range(3)]
    assert not any(target.startswith("socket:") for target in opened)
    assert broker.stop() == 0
