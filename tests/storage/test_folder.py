"""Who else may get at the data folder: nobody."""

from __future__ import annotations

import os
import stat
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from taskq import testing
from taskq.errors import DataFolderUnsafe
from taskq.storage.folder import open_own, prepare

STRANGER = 12_345
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return folder


async def test_everything_in_the_folder_of_a_broker_is_its_own_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with testing.broker(data=tmp_path / "data", durability="fsync") as node:
            assert node.tcp
            found = list((tmp_path / "data").rglob("*"))
            assert {path.name for path in found} >= {"lock", "secret.key", "store.sqlite", "store.sqlite-wal", "journal"}
            assert {mode(path) for path in found if path.is_dir()} | {mode(tmp_path / "data")} == {0o700}
            assert {mode(path) for path in found if path.is_file()} == {0o600}
    finally:
        os.umask(before)


@pytest.mark.parametrize("wide", [0o755, 0o750, 0o711, 0o744])
async def test_a_folder_that_others_can_read_is_closed_to_them_and_used(data: Path, wide: int, caplog: pytest.LogCaptureFixture) -> None:
    data.chmod(wide)
    (data / "lock").touch(0o644)
    async with testing.broker(data=data):
        assert (mode(data), mode(data / "lock")) == (0o700, 0o600)
    assert f"{data} could be read by other users" in caplog.text
    assert prepare(data) is False


@pytest.mark.parametrize("wide", [0o777, 0o770, 0o775, 0o757, 0o720, 0o702, 0o1777])
async def test_a_folder_that_others_can_write_to_is_refused_and_left_as_it_was(data: Path, wide: int) -> None:
    data.chmod(wide)
    with pytest.raises(DataFolderUnsafe, match=f"could be changed by other users .mode {wide:04o}.*chmod 700") as caught:
        async with testing.broker(data=data):
            pass
    assert caught.value.exit_code == 73
    assert list(data.iterdir()) == [] and mode(data) == wide


@root
async def test_a_folder_of_somebody_else_is_refused(data: Path) -> None:
    os.chown(data, STRANGER, STRANGER)
    with pytest.raises(DataFolderUnsafe, match=f"belongs to user {STRANGER}"):
        async with testing.broker(data=data):
            pass


@root
def test_a_link_that_somebody_else_has_made_is_not_followed(tmp_path: Path, data: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(data)
    prepare(link)
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(DataFolderUnsafe, match=f"symbolic link that user {STRANGER} has made"):
        prepare(link)


@pytest.mark.parametrize("name", ["lock", "secret.key", "secret.key.new", "store.sqlite"])
@pytest.mark.parametrize("trap", ["a link", "a dangling link", "a pipe", "a file of all"])
async def test_a_trap_in_the_folder_is_not_stepped_into(tmp_path: Path, data: Path, name: str, trap: str) -> None:
    victim = tmp_path / "victim"
    if trap == "a link":
        victim.write_text("precious")
    if trap.endswith("link"):
        (data / name).symlink_to(victim)
    elif trap == "a pipe":
        os.mkfifo(data / name)
    else:
        (data / name).touch()
        (data / name).chmod(0o666)
    replaced = name == "secret.key.new" or (name, trap) == ("secret.key", "a dangling link")  # by a new file, which follows nothing
    with nullcontext() if replaced else pytest.raises((DataFolderUnsafe, OSError)):
        async with testing.broker(data=data):
            pass
    assert victim.exists() is (trap == "a link") and (trap != "a link" or victim.read_text() == "precious")


async def test_the_folder_of_the_journal_is_looked_at_too(data: Path) -> None:
    (data / "journal").mkdir()
    (data / "journal").chmod(0o777)
    with pytest.raises(DataFolderUnsafe, match="journal could be changed by other users"):
        async with testing.broker(data=data):
            pass


def test_a_descriptor_of_ours_is_not_inherited(data: Path) -> None:
    fd = open_own(data / "file", os.O_RDWR | os.O_CREAT)
    try:
        assert subprocess.run(["test", "-e", f"/proc/self/fd/{fd}"], check=False).returncode == 1
    finally:
        os.close(fd)
