"""The gate: who may come in.  Access tokens as text and as the broker keeps them, the check of a proof, and the count of those that failed.

    tq_NAME_SECRET     SECRET: 256 random bits as 43 characters of base64url; the whole text is the password of SCRAM, NAME its user

Of a token the broker keeps what SCRAM needs to check it (RFC 5802: salt, StoredKey, ServerKey), from which nobody can make a proof.  A name that is
not known goes the same way as one that is, with a salt and keys made of the name and the broker's own secret, so neither the answer nor its time
tells the two apart.

PURE.  It must not know: files, connections, frames.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from taskq.core import scram
from taskq.core.access import SCOPES_MAX, Grant, scope_of, scope_text
from taskq.errors import AuthFailed

PREFIX = "tq_"
SECRET_BYTES = 32
SECRET_CHARS = 43
TOKEN_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
TOKEN_NAME_RULE = "1 to 64 of A-Z a-z 0-9 _ . : -"
_TEXT = re.compile(rf"{PREFIX}([A-Za-z0-9_.:-]{{1,64}})_[A-Za-z0-9_-]{{{SECRET_CHARS}}}")
# how many proofs of an address may fail in a window before the next failures are answered late
FAILURES_MAX = 10
WINDOW_MS = 60_000
ADDRESSES_MAX = 1_024


def text_of(name: str, secret: bytes) -> str:
    """The token as its owner keeps it."""
    return f"{PREFIX}{name}_{urlsafe_b64encode(secret).decode().rstrip('=')}"


def name_of(text: str) -> str:
    """The name in a token; ValueError if the text has not the form of one, which it does not show."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"is not an access token; it has the form {PREFIX}NAME_ and {SECRET_CHARS} characters, as taskq token create has printed it")
    return found[1]


# ---- what the broker keeps -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class AccessToken:
    """A token as the broker keeps it."""

    grant: Grant
    created_ms: int
    salt: bytes
    stored_key: bytes = attrs.field(repr=False)
    server_key: bytes = attrs.field(repr=False)
    iterations: int = scram.ITERATIONS

    @classmethod
    def of(cls, grant: Grant, text: str, salt: bytes, created_ms: int) -> AccessToken:
        keys = scram.keys_of(text.encode(), salt, scram.ITERATIONS)
        return cls(grant, created_ms, salt, keys.stored, keys.server)

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.grant.name,
            "scopes": [scope_text(scope) for scope in self.grant.scopes],
            "created_ms": self.created_ms,
            "iterations": self.iterations,
            **{name: urlsafe_b64encode(getattr(self, name)).decode() for name in ("salt", "stored_key", "server_key")},
        }

    @classmethod
    def load(cls, fields: Any) -> AccessToken:
        """From JSON; ValueError says what is wrong."""
        try:
            name, scopes = fields["name"], fields["scopes"]
            created_ms, iterations = fields["created_ms"], fields["iterations"]
            salt, stored, server = (urlsafe_b64decode(fields[key]) for key in ("salt", "stored_key", "server_key"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a token needs name, scopes, created_ms, iterations, salt, stored_key and server_key: {error!r}") from None
        if not isinstance(name, str) or not TOKEN_NAME.fullmatch(name):
            raise ValueError(f"the name of a token must be {TOKEN_NAME_RULE}")
        if type(created_ms) is not int or type(iterations) is not int or not 1 <= iterations <= scram.ITERATIONS_MAX:
            raise ValueError(f"token {name}: created_ms and iterations must be numbers")
        if not salt or len(stored) != scram.DIGEST_BYTES or len(server) != scram.DIGEST_BYTES:
            raise ValueError(f"token {name}: salt, stored_key and server_key have not the right sizes")
        return cls(grant_of(name, scopes), created_ms, salt, stored, server, iterations)


def grant_of(name: str, scopes: Any) -> Grant:
    """The grant for these scopes as texts; ValueError says what is wrong."""
    if not TOKEN_NAME.fullmatch(name):
        raise ValueError(f"the name of a token must be {TOKEN_NAME_RULE}")
    if not isinstance(scopes, (list, tuple)) or not all(isinstance(scope, str) for scope in scopes) or not 1 <= len(scopes) <= SCOPES_MAX:
        raise ValueError(f"token {name}: it needs 1 to {SCOPES_MAX} scopes")
    return Grant(name, tuple(dict.fromkeys(map(scope_of, scopes))))


# ---- the check -----------------------------------------------------------------------------------------------------------------------


@attrs.define
class Failures:
    """How often a proof from an address has failed of late.  Bounded: under a flood from many addresses the oldest are forgotten."""

    _counts: OrderedDict[str, tuple[int, int]] = attrs.field(factory=OrderedDict)

    def add(self, address: str, now_ms: int) -> int:
        """One more; how many there were in this window, this one included."""
        since_ms, count = self._counts.pop(address, (now_ms, 0))
        if now_ms - since_ms >= WINDOW_MS:
            since_ms, count = now_ms, 0
        self._counts[address] = since_ms, count + 1
        if len(self._counts) > ADDRESSES_MAX:
            self._counts.popitem(last=False)
        return count + 1


@attrs.define(eq=False)
class Gate:
    """What both doors of a broker share.  `tokens` gives the access tokens as they are now, by name, the same object until they change."""

    tokens: Callable[[], Mapping[str, AccessToken]]
    secret_key: bytes = attrs.field(repr=False)
    failures: Failures = attrs.field(factory=Failures)

    def begin(self, client_first: bytes, nonce: bytes) -> scram.Exchange:
        """The challenge to who wants to come in.  ProtocolError if this is no beginning."""
        first = scram.read_first(client_first)
        token = self._token(first.name)
        return scram.Exchange.begin(first, nonce, token.salt, token.iterations, token.stored_key, token.server_key)

    def end(self, exchange: scram.Exchange, client_final: bytes) -> tuple[Grant, bytes]:
        """What the token allows, and the broker's own signature.  AuthFailed."""
        is_right, signature = exchange.verify(client_final)
        token = self.tokens().get(exchange.first.name)
        if not is_right or token is None or token.stored_key != exchange.stored_key:
            raise AuthFailed()
        return token.grant, signature

    def is_current(self, grant: Grant) -> bool:
        """Whether the access token that this grant came from still counts, unchanged."""
        token = self.tokens().get(grant.name)
        return token is not None and token.grant is grant

    def bearer(self, text: str) -> Grant:
        """What the token allows that was sent as it is.  AuthFailed."""
        found = _TEXT.fullmatch(text)
        name = found[1] if found else ""
        token = self._token(name)
        keys = scram.keys_of(text.encode(), token.salt, token.iterations)
        if not hmac.compare_digest(keys.stored, token.stored_key) or name not in self.tokens():
            raise AuthFailed()
        return token.grant

    def _token(self, name: str) -> AccessToken:
        """The token of this name, or one that nobody can prove.  That one is made in any case: it costs the same time."""
        nothing = AccessToken(Grant(name, ()), 0, self._made_of(b"salt", name)[: scram.SALT_BYTES], self._made_of(b"stored", name), bytes(32))
        return self.tokens().get(name, nothing)

    def _made_of(self, what: bytes, name: str) -> bytes:
        return hmac.digest(self.secret_key, b"no access token: %b %b" % (what, name.encode()), "sha256")
