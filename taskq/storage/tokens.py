"""tokens.json in the data folder: the access tokens in the form that checks a proof and cannot make one.

It is written by `taskq token`, beside a broker that runs or does not: whole, to a new file that takes the old one's place, while the folder is
locked against another such command.  The broker looks whenever somebody comes, and reads it again when it is another file than before.  A file that
cannot be read, or that is somebody else's, when the broker starts stops the start; later the tokens that were known stay, and the log says why.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from taskq.core.gate import AccessToken
from taskq.errors import ConfigError, DataFolderUnsafe

NAME = "tokens.json"
VERSION = 1
FILE_BYTES_MAX = 8 << 20

# what tells one version of the file from the next
Mark = tuple[int, int, int]
NO_FILE: Mark = (0, 0, 0)

log = logging.getLogger("taskq.tokens")


class TokenFile:
    """The tokens of a data folder as they are now.  Raises ConfigError if they cannot be read at first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._mark, self._tokens = read(self.path)

    def tokens(self) -> Mapping[str, AccessToken]:
        """By name; the same object until the file changes, and each token the same object until it changes."""
        mark = _mark_of(self.path)
        if mark != self._mark:
            self._mark = mark
            try:
                self._mark, found = read(self.path)
            except (ConfigError, DataFolderUnsafe) as error:
                log.error("%s; the access tokens that were known before still count", error)
            else:
                self._tokens = {name: _kept(self._tokens.get(name), token) for name, token in found.items()}
                log.info("%d access tokens are known now", len(found))
        return self._tokens


def _kept(before: AccessToken | None, now: AccessToken) -> AccessToken:
    return before if before is not None and before == now else now


def _mark_of(path: Path) -> Mark:
    try:
        found = os.lstat(path)
    except OSError:
        return NO_FILE
    return found.st_ino, found.st_mtime_ns, found.st_size


def read(path: Path) -> tuple[Mark, dict[str, AccessToken]]:
    """The tokens in the file, none if there is no file.  ConfigError says what is wrong and what to do."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return NO_FILE, {}
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataFolderUnsafe(f"{path} is a symbolic link, and nothing is opened through one; put the file itself there") from None
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", field="auth") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise DataFolderUnsafe(f"{path}: others may write to it, and so make tokens of their own; look at what is in it, then chmod 600 {path}")
        if found.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
            raise DataFolderUnsafe(f"{path} belongs to user {found.st_uid}, who may make tokens with it; look at what is in it, then chown it")
        text = file.read(FILE_BYTES_MAX + 1)
    return (found.st_ino, found.st_mtime_ns, found.st_size), _parsed(path, text)


def _parsed(path: Path, text: bytes) -> dict[str, AccessToken]:
    try:
        if len(text) > FILE_BYTES_MAX:
            raise ValueError(f"it has more than {FILE_BYTES_MAX} bytes")
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("version") != VERSION or not isinstance(found.get("tokens"), list):
            raise ValueError(f"it must be an object with version {VERSION} and a list of tokens")
        tokens = [AccessToken.load(fields) for fields in found["tokens"]]
    except (ValueError, RecursionError) as error:
        way_out = "restore it, or remove it and make the tokens anew with taskq token create"
        raise ConfigError(f"{path}: cannot be used: {error}; {way_out}", field="auth") from None
    return {token.grant.name: token for token in tokens}


@contextmanager
def changing(folder: Path) -> Iterator[dict[str, AccessToken]]:
    """The tokens of a data folder, to be changed: what they are at the end is written, whole and synced, unless an exception ends the change."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        path = folder / NAME
        _, before = read(path)
        tokens = dict(before)
        yield tokens
        if tokens != before:
            _write(path, tokens)
            os.fsync(directory)
    finally:
        os.close(directory)


def _write(path: Path, tokens: Mapping[str, AccessToken]) -> None:
    text = json.dumps({"version": VERSION, "tokens": [token.dump() for token in tokens.values()]}, indent=1)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        owner = path.parent.stat()
        if owner.st_uid != os.geteuid() == 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)  # made by root for the broker's own user
        file.write(text + "\n")
        file.flush()
        os.fsync(fd)
    fresh.rename(path)
