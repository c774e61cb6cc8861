"""SCRAM-SHA-256 (RFC 5802, RFC 7677): two sides prove to each other that they know a password which never travels.

    client-first   n,,n=NAME,r=NONCE                     server-first   r=NONCE+NONCE,s=SALT,i=ITERATIONS
    client-final   c=biws,r=NONCE+NONCE,p=PROOF          server-final   the server's signature, as bytes

The iterations of the RFC slow down who guesses passwords that people think of.  Ours have 256 random bits: nobody guesses them, with one iteration
as little as with a million, and one costs a broker microseconds when ten thousand workers come back at once.  So ITERATIONS is 1.  The client takes
what the server says up to ITERATIONS_MAX, beyond which a server could only want to keep it busy.

Channel binding is not used (`n`; `y` is taken too, `p=` is not): that the connection ends at the right broker is for TLS to prove.

PURE: nonces are handed in.  It must not know: tokens, scopes, frames.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable

import attrs

from taskq.errors import AuthFailed, ProtocolError

ITERATIONS = 1
ITERATIONS_MAX = 10_000
NONCE_BYTES = 18
SALT_BYTES = 16
DIGEST_BYTES = 32
_FIRST = re.compile(rb"([ny],,)n=([A-Za-z0-9_.:-]{1,64}),r=([!-+\--~]{8,128})")
_CHALLENGE = re.compile(rb"r=([!-+\--~]{8,256}),s=([A-Za-z0-9+/=]{4,128}),i=([1-9][0-9]{0,8})")
_FINAL = re.compile(rb"(c=([A-Za-z0-9+/=]{4,16}),r=([!-+\--~]{8,256})),p=([A-Za-z0-9+/=]{44})")


@attrs.frozen
class Keys:
    """What a password becomes.  The server keeps `stored` and `server`: enough to check a proof, not enough to make one."""

    client: bytes = attrs.field(repr=False)
    stored: bytes = attrs.field(repr=False)
    server: bytes = attrs.field(repr=False)


def keys_of(password: bytes, salt: bytes, iterations: int) -> Keys:
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    return Keys(client, hashlib.sha256(client).digest(), hmac.digest(salted, b"Server Key", "sha256"))


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


# ---- the client's side -------------------------------------------------------------------------------------------------------------


class Prover:
    """One client, for one connection after the other: `first`, `final`, `confirms`.  `nonce` gives so many random bytes."""

    def __init__(self, name: str, password: str, nonce: Callable[[int], bytes]) -> None:
        self._name = name.encode()
        self._password = password.encode()
        self._random = nonce
        self._nonce = self._expected = b""

    def first(self) -> bytes:
        self._nonce = b64encode(self._random(NONCE_BYTES))
        return b"n,," + self._bare()

    def _bare(self) -> bytes:
        return b"n=%b,r=%b" % (self._name, self._nonce)

    def final(self, challenge: bytes) -> bytes:
        """The proof.  AuthFailed when the challenge does not answer our `first`, or asks for an absurd amount of work."""
        found = _CHALLENGE.fullmatch(challenge)
        salt = _decoded(found[2]) if found else b""
        if not found or not salt or not found[1].startswith(self._nonce) or len(found[1]) == len(self._nonce):
            raise AuthFailed("the broker's challenge is not SCRAM-SHA-256, or answers somebody else")
        iterations = int(found[3])
        if iterations > ITERATIONS_MAX:
            raise AuthFailed(f"the broker asks for {iterations} iterations, which no broker of ours does")
        keys = keys_of(self._password, salt, iterations)
        final = b"c=biws,r=" + found[1]
        message = b",".join((self._bare(), challenge, final))
        self._expected = hmac.digest(keys.server, message, "sha256")
        return final + b",p=" + b64encode(_xor(keys.client, hmac.digest(keys.stored, message, "sha256")))

    def confirms(self, signature: bytes) -> bool:
        """Whether the server has shown that it knows the token as well."""
        return hmac.compare_digest(signature, self._expected)


# ---- the server's side -------------------------------------------------------------------------------------------------------------


@attrs.frozen
class First:
    """A client-first message, taken apart."""

    header: bytes
    name: str
    nonce: bytes
    bare: bytes


def read_first(message: bytes) -> First:
    found = _FIRST.fullmatch(message)
    if found is None:
        raise ProtocolError("HELLO.auth: must be n,,n=NAME,r=NONCE (SCRAM-SHA-256 without channel binding)", field="auth")
    return First(found[1], found[2].decode(), found[3], message[len(found[1]) :])


@attrs.frozen
class Exchange:
    """The server's side after its challenge.  The same steps are taken whatever is wrong, so that the time tells nothing."""

    first: First
    nonce: bytes
    challenge: bytes
    stored_key: bytes = attrs.field(repr=False)
    server_key: bytes = attrs.field(repr=False)

    @classmethod
    def begin(cls, first: First, nonce: bytes, salt: bytes, iterations: int, stored_key: bytes, server_key: bytes) -> Exchange:
        """`nonce`: NONCE_BYTES that nobody could foresee."""
        whole = first.nonce + b64encode(nonce)
        return cls(first, whole, b"r=%b,s=%b,i=%d" % (whole, b64encode(salt), iterations), stored_key, server_key)

    def verify(self, final: bytes) -> tuple[bool, bytes]:
        """Whether the proof is right, and this side's signature.  ProtocolError if it is no proof at all."""
        found = _FINAL.fullmatch(final)
        proof = _decoded(found[4]) if found else b""
        if found is None or len(proof) != DIGEST_BYTES:
            raise ProtocolError("PROOF.proof: must be c=biws,r=NONCE,p=PROOF, as RFC 5802 says", field="proof")
        message = b",".join((self.first.bare, self.challenge, found[1]))
        client_key = _xor(proof, hmac.digest(self.stored_key, message, "sha256"))
        is_key = hmac.compare_digest(hashlib.sha256(client_key).digest(), self.stored_key)
        is_ours = hmac.compare_digest(found[3], self.nonce) & hmac.compare_digest(found[2], b64encode(self.first.header))
        return is_key & is_ours, hmac.digest(self.server_key, message, "sha256")


def _decoded(text: bytes) -> bytes:
    try:
        return b64decode(text, validate=True)
    except Base64Error:
        return b""
