"""The settings: where they come from, which source wins, what is refused and how the refusal reads."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.config import (
    GIB,
    KIB,
    MIB,
    BrokerConfig,
    Setting,
    duration,
    host_port,
    load,
    settings_of,
    show_bytes,
    show_seconds,
    size,
    unknown_in_environment,
)
from taskq.errors import ConfigError

ROWS = {row.name: row for row in settings_of(BrokerConfig)}
EXAMPLE = Path(__file__).parents[1] / "taskq.example.toml"


def read(flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, file: Path | None = None) -> BrokerConfig:
    return load(BrokerConfig, flags or {}, environ or {}, file)


def refused(**sources: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**sources)
    assert caught.value.exit_code == 78
    return str(caught.value)


# ---- sources


def test_without_any_source_every_setting_has_its_default() -> None:
    config = read()
    assert config == BrokerConfig()
    assert (config.listen, config.http, config.data, config.shards) == ("127.0.0.1:7000", "127.0.0.1:3000", "./taskq-data", 4)
    assert (config.durability, config.drain, config.lease, config.heartbeat) == ("fsync", 25.0, 15.0, 5.0)
    assert (config.payload_bytes_max, config.frame_bytes_max, config.hot_bytes_max) == (MIB, 4 * MIB, 128 * MIB)
    assert (config.retention_completed, config.retention_failed, config.finished_rows_max) == (86_400.0, 604_800.0, 1_000_000)


def test_the_file_is_weaker_than_the_environment_and_that_weaker_than_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "taskq.toml"
    file.write_text('shards = 1\nlease = "1m"\nhot_bytes_max = "1GiB"\n')
    config = read({"shards": "3", "http": None}, {"TASKQ_SHARDS": "2", "TASKQ_LEASE": "2m"}, file)
    assert (config.shards, config.lease, config.hot_bytes_max, config.http) == (3, 120.0, GIB, "127.0.0.1:3000")


def test_numbers_in_a_file_are_seconds_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "taskq.toml"
    file.write_text("drain = 1.5\nhot_bytes_max = 2097152\n")
    assert (read(file=file).drain, read(file=file).hot_bytes_max) == (1.5, 2 * MIB)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert read(environ={"TASKQ_SHARDS": ""}).shards == 4


def test_code_may_give_settings_as_people_write_them() -> None:
    config = BrokerConfig(lease="1m", payload_bytes_max="512KiB")  # type: ignore[arg-type]
    assert (config.lease, config.payload_bytes_max) == (60.0, 512 * KIB)
    with pytest.raises(ConfigError, match="shards: 0 is out of range"):
        BrokerConfig(shards=0)


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_every_setting_reads_its_own_default_as_it_is_shown(row: Setting) -> None:
    assert row.parse(row.kind.show(row.default).replace(",", "")) == row.default
    assert row.environment == "TASKQ_" + row.name.upper()
    assert row.flag == "--" + row.name.replace("_", "-")
    assert row.help.endswith(".")


# ---- refusals


@pytest.mark.parametrize(
    ("sources", "name", "source", "fix"),
    [
        ({"flags": {"shards": "99"}}, "shards", "flag --shards", "at most 64"),
        ({"flags": {"shards": "x"}}, "shards", "flag --shards", "whole number"),
        ({"environ": {"TASKQ_DURABILITY": "disk"}}, "durability", "environment variable TASKQ_DURABILITY", "fsync, os, memory"),
        ({"environ": {"TASKQ_LISTEN": "7000"}}, "listen", "environment variable TASKQ_LISTEN", "127.0.0.1:7000"),
        ({"flags": {"lease": "soon"}}, "lease", "flag --lease", "1h30m"),
        ({"flags": {"hot_bytes_max": "12 parsecs"}}, "hot_bytes_max", "flag --hot-bytes-max", "64MiB"),
        ({"flags": {"lease": "nan"}}, "lease", "flag --lease", "1h30m"),
        ({"flags": {"drain": "-1"}}, "drain", "flag --drain", "30s"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_its_source_and_the_fix(sources: dict[str, Any], name: str, source: str, fix: str) -> None:
    text = refused(**sources)
    assert text.startswith(f"{name} ({source}): ")
    assert fix in text


@pytest.mark.parametrize("value", ["true", "[1]", '"four"', "4.5", "{a = 1}", "1979-05-27"])
def test_a_value_of_another_type_in_the_file_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "taskq.toml"
    file.write_text(f"shards = {value}\n")
    assert refused(file=file).startswith(f"shards ({file}): ")


def test_an_unknown_key_is_refused_with_the_name_that_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "taskq.toml"
    file.write_text("shard = 2\n")
    assert refused(file=file) == f"shard ({file}): there is no such setting; did you mean shards?"


@pytest.mark.parametrize(("content", "reason"), [(b"shards = ", "not valid TOML"), (b"\xff\xfe", "not valid TOML"), (None, "cannot be read")])
def test_a_file_that_is_no_toml_or_not_there_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "taskq.toml"
    if content is not None:
        file.write_bytes(content)
    assert reason in refused(file=file)


def test_settings_that_contradict_each_other_are_refused() -> None:
    assert "heartbeat: 10s is more than a third of lease (15s)" in refused(flags={"heartbeat": "10s"})
    assert "frame_bytes_max: 1MiB has no room for a payload of 1MiB" in refused(flags={"frame_bytes_max": "1MiB"})


def test_unknown_names_in_the_environment_are_found_and_those_of_others_are_not() -> None:
    environ = {"TASKQ_SHARD": "2", "TASKQ_SHARDS": "2", "TASKQ_URL": "x", "TASKQ_LOOP": "auto", "TASKQ_QUEUES": "a", "PATH": "/"}
    assert unknown_in_environment(BrokerConfig, environ) == ["TASKQ_SHARD"]


# ---- who can reach it

LOOPBACK = ("127.0.0.1:0", "127.8.9.10:0", "[::1]:0", "localhost:0")
# what only looks like loopback, or is it by somebody's word, is none
OTHER = ("0.0.0.0:0", "[::]:0", ":0", "10.1.2.3:0", "[fe80::1]:0", "broker.example:0", "127.0.0.1.example:0", "localhost.example:0", "127.1:0",
         "LOCALHOST:0", "[::ffff:127.0.0.1]:0")  # fmt: skip
TLS = {"tls_cert": "cert.pem", "tls_key": "key.pem"}
GUARDS = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize(("auth", "tls", "insecure"), GUARDS)
@pytest.mark.parametrize("address", [*LOOPBACK, *OTHER])
@pytest.mark.parametrize("name", ["listen", "http"])
def test_an_address_that_others_can_reach_needs_auth_and_tls_or_insecure(name: str, address: str, auth: bool, tls: bool, insecure: bool) -> None:
    flags = {name: address, "auth": auth or None, "insecure": insecure or None, **(TLS if tls else {})}
    if address in LOOPBACK or insecure or (auth and tls):
        assert getattr(read(flags), name) == address
        return
    text = refused(flags=flags)
    assert text.startswith(f"{name}: {address} can be reached from other machines")
    missing = text.partition("so ")[2].partition(" must be set")[0]
    assert (("auth" in missing), ("tls_cert" in missing)) == (not auth, not tls)
    assert "127.0.0.1" in text and "insecure" in text


@pytest.mark.parametrize(("given_one", "missing"), [("tls_cert", "tls_key"), ("tls_key", "tls_cert")])
def test_half_a_certificate_is_refused(given_one: str, missing: str) -> None:
    assert refused(flags={given_one: "a.pem"}) == f"{missing}: is missing, and {given_one} is given; TLS needs both"


# ---- kinds


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:7000", ("::1", 7000)), (":7000", ("0.0.0.0", 7000)), ("localhost:65535", ("localhost", 65535))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert host_port(text) == address


@pytest.mark.parametrize("text", ["", "7000", "localhost", "localhost:", "localhost:x", "localhost:65536", "::1:7000", "a:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        host_port(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512", 512), ("1KiB", KIB), ("64 mib", 64 * MIB), ("2GB", 2 * 10**9), ("1_000", 1_000), ("3k", 3 * KIB)]
)
def test_sizes_are_bytes_or_text_with_a_unit(text: str, count: int) -> None:
    assert size(0).read(text) == count


@given(st.integers(0, 1 << 50))
def test_a_size_that_is_shown_reads_as_itself(count: int) -> None:
    assert size(0).read(show_bytes(count)) == count


@given(st.integers(0, 10_000_000).map(lambda count: count / 4))
def test_a_duration_that_is_shown_reads_as_itself(seconds: float) -> None:
    assert duration(0).read(show_seconds(seconds)) == seconds


# ---- the example file


def test_the_example_file_has_every_setting_with_its_default(tmp_path: Path) -> None:
    file = tmp_path / "taskq.toml"
    file.write_text(re.sub(r"(?m)^# (?=\w+ = )", "", EXAMPLE.read_text()))
    assert list(tomllib.loads(file.read_text())) and set(tomllib.loads(file.read_text())) == set(ROWS)
    assert attrs.asdict(read(file=file)) == attrs.asdict(BrokerConfig())


def test_a_heartbeat_of_exactly_a_third_of_the_lease_is_accepted() -> None:
    assert BrokerConfig(heartbeat=0.2, lease=0.6).lease == 0.6
