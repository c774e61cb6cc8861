"""tokens.json: written whole, read again when it changes, refused when somebody else could have written it."""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

from taskq.core.gate import AccessToken, grant_of, text_of
from taskq.errors import ConfigError, DataFolderUnsafe
from taskq.storage.tokens import FILE_BYTES_MAX, TokenFile, changing


def token(name: str, secret: int = 0) -> AccessToken:
    return AccessToken.of(grant_of(name, ("read",)), text_of(name, bytes([secret]) * 32), bytes(16), 1)


def write(folder: Path, *names: str) -> None:
    with changing(folder) as tokens:
        tokens.clear()
        tokens.update({name: token(name) for name in names})


def test_without_a_file_there_are_no_tokens(tmp_path: Path) -> None:
    assert TokenFile(tmp_path).tokens() == {}
    assert not list(tmp_path.iterdir())


def test_what_was_written_is_read_and_only_its_owner_can(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    write(folder, "a", "b")
    assert TokenFile(folder).tokens() == {"a": token("a"), "b": token("b")}
    assert [path.name for path in folder.iterdir()] == ["tokens.json"]
    assert stat.S_IMODE((folder / "tokens.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_change_is_seen_at_once_and_what_did_not_change_stays_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    file = TokenFile(tmp_path)
    before = file.tokens()
    assert file.tokens() is before
    with changing(tmp_path) as tokens:
        del tokens["a"]
        tokens["c"] = token("c")
    now = file.tokens()
    assert set(now) == {"b", "c"} and now["b"] is before["b"]
    with changing(tmp_path) as tokens:
        tokens["b"] = token("b", secret=1)
    assert file.tokens()["b"] is not before["b"]
    (tmp_path / "tokens.json").unlink()
    assert file.tokens() == {}


def test_a_change_that_ends_in_an_exception_is_none(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(SystemExit), changing(tmp_path) as tokens:
        tokens.clear()
        raise SystemExit(1)
    assert set(TokenFile(tmp_path).tokens()) == {"a"}


def test_changes_at_the_same_time_are_made_one_after_the_other(tmp_path: Path) -> None:
    def add(number: int) -> None:
        with changing(tmp_path) as tokens:
            tokens[f"n{number}"] = token(f"n{number}")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(TokenFile(tmp_path).tokens()) == 20


GOOD = {"version": 1, "tokens": [token("a").dump()]}
BAD: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "another version": json.dumps({**GOOD, "version": 2}).encode(),
    "no list": json.dumps({**GOOD, "tokens": {}}).encode(),
    "a token without keys": json.dumps({**GOOD, "tokens": [{"name": "a"}]}).encode(),
    "a token that is no object": json.dumps({**GOOD, "tokens": [None]}).encode(),
    "nested": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "too large": b" " * (FILE_BYTES_MAX + 1),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used_stops_a_start_and_changes_nothing_later(tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a")
    running = TokenFile(tmp_path)
    (tmp_path / "tokens.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"tokens\.json: cannot be used.*taskq token create") as caught:
        TokenFile(tmp_path)
    assert caught.value.exit_code == 78
    with caplog.at_level(logging.ERROR):
        assert set(running.tokens()) == set(running.tokens()) == {"a"}
    assert len(caplog.records) == 1 and "still count" in caplog.text
    write_anew(tmp_path, "b")
    assert set(running.tokens()) == {"b"}


def write_anew(folder: Path, *names: str) -> None:
    (folder / "tokens.json").unlink()
    write(folder, *names)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    write(tmp_path, "a")
    (tmp_path / "tokens.json").chmod(mode)
    with pytest.raises(DataFolderUnsafe, match="chmod 600"):
        TokenFile(tmp_path)


def test_a_symbolic_link_is_followed_neither_to_read_nor_to_write(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "data"
    write(elsewhere, "a")
    folder.mkdir()
    (folder / "tokens.json").symlink_to(elsewhere / "tokens.json")
    with pytest.raises(DataFolderUnsafe, match="symbolic link"):
        TokenFile(folder)
    (folder / "tokens.json").unlink()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "tokens.new").symlink_to(victim)
    write(folder, "b")
    assert victim.read_text() == "mine" and set(TokenFile(folder).tokens()) == {"b"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files for others")
def test_a_file_made_by_root_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    write(folder, "a")
    assert (folder / "tokens.json").stat().st_uid == 1234


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused_as_the_data_folder_would_be(tmp_path: Path) -> None:
    write(tmp_path, "a")
    path = tmp_path / "tokens.json"
    TokenFile(tmp_path)
    os.chown(path, 1234, 1234)
    with pytest.raises(DataFolderUnsafe, match="belongs to user 1234") as caught:
        TokenFile(tmp_path)
    assert caught.value.exit_code == 73
    os.chown(tmp_path, 1234, 1234)
    TokenFile(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_is_given_away_later_changes_nothing_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a")
    file = TokenFile(tmp_path)
    write(tmp_path, "a", "b")
    os.chown(tmp_path / "tokens.json", 1234, 1234)
    assert list(file.tokens()) == ["a"]
    assert "belongs to user 1234" in caplog.text
