"""Access tokens over HTTP: `Authorization: Bearer tq_…`, as RFC 6750 says.  PURE.

A bearer token is the password itself, so it is taken only where nobody can have listened: over TLS, or from this very machine.
"""

from __future__ import annotations

import ipaddress

from taskq.errors import AuthRequired

SCHEME = b"bearer"


def token_of(authorization: bytes) -> str:
    """The token in an Authorization header; AuthRequired, which does not show it, if there is none."""
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.lower() != SCHEME or not token:
        raise AuthRequired("this broker wants an access token: send the header Authorization: Bearer TOKEN; taskq token create makes one")
    return token.strip().decode("latin-1")


def is_loopback(host: str) -> bool:
    """Whether a peer with this address is on this machine."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
