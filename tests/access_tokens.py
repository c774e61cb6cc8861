"""Access tokens for tests, written as `taskq token create` writes them, with a secret that follows from the name."""

from __future__ import annotations

from pathlib import Path

from taskq.core.gate import AccessToken, grant_of, text_of
from taskq.storage.tokens import changing


def make(folder: Path, name: str, *scopes: str) -> str:
    """A new access token."""
    token = text_of(name, name.encode().ljust(32)[:32])
    with changing(folder) as tokens:
        tokens[name] = AccessToken.of(grant_of(name, scopes), token, bytes(16), 1)
    return token
