"""The data folder and its files belong to the broker's user alone: made so, tightened where others can read, refused where others could have
written, since what they left there is not to be trusted.

No file is opened through a symbolic link.  A folder may be one, if it is this user's or root's.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from taskq.errors import DataFolderUnsafe
from taskq.storage.files import make_folder

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def prepare(folder: Path) -> bool:
    """The folder, there and safe; True if others could read in it until now.  Raises DataFolderUnsafe, OSError."""
    if folder.is_symlink() and folder.lstat().st_uid not in (0, os.geteuid()):
        raise DataFolderUnsafe(f"{folder} is a symbolic link that user {folder.lstat().st_uid} has made; name the folder itself with --data")
    make_folder(folder)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _tighten(fd, folder, 0o700)
    finally:
        os.close(fd)


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a plain file of ours, mode 0600.  Raises DataFolderUnsafe, OSError."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataFolderUnsafe(f"{path} is a symbolic link, and nothing is opened through one; put the file itself there") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DataFolderUnsafe(f"{path} is no plain file; look at how it came there, and take it away")
        _tighten(fd, path, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _tighten(fd: int, path: Path, mode: int) -> bool:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise DataFolderUnsafe(
            f"{path} belongs to user {found.st_uid}, and the broker runs as {os.geteuid()}; run it as that user, or chown the folder"
        )
    if found.st_mode & OTHERS_WRITE:
        told = f"{path} could be changed by other users (mode {stat.S_IMODE(found.st_mode):04o})"
        raise DataFolderUnsafe(f"{told}; look at what is in there, then chmod {mode:o} it, or choose another folder with --data")
    if found.st_mode & OTHERS:
        os.fchmod(fd, mode)
    return bool(found.st_mode & OTHERS)
