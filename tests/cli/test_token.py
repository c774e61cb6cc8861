"""`taskq token create, list, revoke`."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from programs import Run

from taskq.core.gate import name_of


def test_a_token_is_shown_once_listed_without_itself_and_revoked(run: Run, tmp_path: Path) -> None:
    made = run("main", "token", "create", "mailer", "--scope", "produce:email*", "--scope", "read", "--data", "d")
    assert made.returncode == 0
    token = made.stdout.strip()
    assert name_of(token) == "mailer" and made.stdout == f"{token}\n", "nothing but the token, to be put into a file"
    assert "only time" in made.stderr and token not in made.stderr
    file = tmp_path / "d" / "tokens.json"
    assert token[-43:] not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600

    listed = run("main", "token", "list", "--data", "d")
    assert re.search(r"^mailer +produce:email\*, read +\d{4}-", listed.stdout, re.M)
    (row,) = json.loads(run("main", "token", "list", "--json", "--data", "d").stdout)
    assert (row["name"], row["scopes"]) == ("mailer", ["produce:email*", "read"])
    assert token[-43:] not in listed.stdout and set(row) == {"name", "scopes", "created_ms"}

    assert run("main", "token", "revoke", "mailer", "--data", "d").stdout == "revoked mailer\n"
    assert run("main", "token", "list", "--data", "d").stdout == "no tokens\n"


def test_two_tokens_are_never_the_same(run: Run) -> None:
    first = run("main", "token", "create", "a", "--scope", "read").stdout
    run("main", "token", "revoke", "a")
    assert run("main", "token", "create", "a", "--scope", "read").stdout != first


def test_a_name_is_given_once(run: Run, tmp_path: Path) -> None:
    run("main", "token", "create", "a", "--scope", "read")
    before = (tmp_path / "taskq-data" / "tokens.json").read_bytes()
    again = run("main", "token", "create", "a", "--scope", "admin")
    assert (again.returncode, again.stdout) == (1, "") and "revoke it first" in again.stderr
    assert (tmp_path / "taskq-data" / "tokens.json").read_bytes() == before


def test_there_is_nothing_to_revoke(run: Run) -> None:
    done = run("main", "token", "revoke", "nobody")
    assert done.returncode == 1 and "no token nobody" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "--scope"),
        (["a", "--scope", "write"], "'write' is no scope; write produce, consume, read, admin"),
        (["a", "--scope", "produce:a b"], "the queues must be 1 to 128"),
        (["a b", "--scope", "read"], "the name of a token must be"),
        (["x" * 65, "--scope", "read"], "the name of a token must be"),
    ],
)
def test_what_cannot_be_a_token_is_refused_and_nothing_is_made(run: Run, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run("main", "token", "create", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
    assert not (tmp_path / "taskq-data").exists()


def test_the_folder_is_that_of_the_brokers_settings(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taskq.toml").write_text('data = "from-file"\n')
    run("main", "token", "create", "a", "--scope", "read")
    run("main", "token", "create", "b", "--scope", "read", TASKQ_DATA="from-environment")
    assert (tmp_path / "from-file" / "tokens.json").exists() and (tmp_path / "from-environment" / "tokens.json").exists()


def test_a_damaged_file_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tokens.json").write_text("{")
    for command in (["create", "a", "--scope", "read"], ["list"], ["revoke", "a"]):
        done = run("main", "token", *command, "--data", "d")
        assert done.returncode == 78 and "tokens.json: cannot be used" in done.stderr
    assert (tmp_path / "d" / "tokens.json").read_text() == "{"
    assert run("broker", "--auth", "--data", "d", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0").returncode == 78
