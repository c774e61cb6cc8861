"""What must survive a power loss has its folder synced as well."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from taskq.storage import files


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced, in order."""
    names: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    return names


def test_each_new_folder_is_a_name_in_one_that_is_synced(tmp_path: Path, synced: list[str]) -> None:
    files.make_folder(tmp_path / "one" / "two" / "three")
    assert synced == [tmp_path.name, "one", "two"]
    assert stat.S_IMODE((tmp_path / "one" / "two" / "three").stat().st_mode) == 0o700
    synced.clear()
    files.make_folder(tmp_path / "one")
    assert synced == []


def test_a_file_is_replaced_as_a_whole_and_private(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        files.replace_file(path, data)
        assert path.read_bytes() == data
    assert synced == ["file.new", tmp_path.name] * 2
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
