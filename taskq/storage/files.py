"""Files and folders that are there after a power loss: a name is durable only when its folder has been synced.  Everything here blocks."""

from __future__ import annotations

import os
from pathlib import Path


def sync_path(path: Path) -> None:
    """fsync of a folder, or of a file that is not open for writing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a private folder, and those above it, if they are not there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_path(folder.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Put these bytes in the place of the file, private and as a whole: a power loss leaves the old ones or the new ones.  What stands in the
    way of the new file is taken away, never followed."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    fresh.rename(path)
    sync_path(path.parent)
