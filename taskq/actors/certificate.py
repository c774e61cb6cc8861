"""The broker's certificate: one SSLContext for both doors, that follows its files when it is told to.

    Certificate(cert, key).context ──► create_server(ssl=…)          reload() ──► new connections are shown the new certificate

TLS 1.2 and newer, no renegotiation, no certificates of clients: who they are is proved by tokens.  Connections that stand keep what they had.
A file that cannot be used is a ConfigError that names the setting, at the start and at a reload; what was loaded before stays in use then.
"""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

from taskq.errors import ConfigError

# a peer that is slower than this to agree on a key is no peer; then how long its goodbye is waited for
HANDSHAKE_S = 5.0
SHUTDOWN_S = 2.0
# who may not have a private key; a group may, that is how some systems keep them
OTHERS = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP
MARKS = {"tls_cert": b"-----BEGIN CERTIFICATE-----", "tls_key": b"PRIVATE KEY-----"}
# a key of another kind than the certificate's is told in the second way
MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
WHOLE = {"tls_cert": "a certificate in PEM form", "tls_key": "a private key in PEM form"}

log = logging.getLogger("taskq.tls")


class Certificate:
    """See the module.  `context` is the one to listen with; it stays the same object."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = cert, key
        self.context = self._newest = server_context(cert, key)
        self.context.sni_callback = self._show_newest

    def reload(self) -> None:
        """Read the files again.  A context of its own for each reading: in one context an old certificate of another key type would stay."""
        self._newest = server_context(*self._files)

    def _show_newest(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in each handshake, with or without a name."""
        connection.context = self._newest


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """A context with this certificate.  Raises ConfigError."""
    for field, path in (("tls_cert", cert), ("tls_key", key)):
        _check_form(field, path)
    if (mode := stat.S_IMODE(Path(key).stat().st_mode)) & OTHERS:
        log.warning(
            "tls_key: other users of this machine can read or change %s (mode %04o); chmod 600 it, and make a new key if they may have", key, mode
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase(key))
    except ssl.SSLError as error:
        raise _explained(error, cert, key) from None
    return context


def _check_form(field: str, path: str) -> None:
    try:
        found = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}: {path} cannot be read: {error.strerror}; name a file that this user can read", field=field) from None
    if MARKS[field] not in found:
        raise ConfigError(f"{field}: {path} does not hold {WHOLE[field]}", field=field)


def _no_passphrase(key: str) -> Callable[[], str]:
    """OpenSSL would ask on the terminal."""

    def refuse() -> str:
        raise ConfigError(f"tls_key: {key} has a passphrase, and nobody is there to type it; store the key without one, mode 0600", field="tls_key")

    return refuse


def _explained(error: ssl.SSLError, cert: str, key: str) -> ConfigError:
    if error.reason in MISMATCHES:
        return ConfigError(f"tls_key: {key} is not the key of the certificate in {cert}", field="tls_key")
    if error.reason and error.reason != "PEM_LIB" and "LIB" not in error.reason:
        return ConfigError(f"tls_cert: OpenSSL does not take {cert}: {error.reason.lower().replace('_', ' ')}; make a new one", field="tls_cert")
    field, path = ("tls_key", key) if _is_certificate(cert) else ("tls_cert", cert)
    return ConfigError(f"{field}: {path} is damaged: it does not hold {WHOLE[field]} that OpenSSL can read", field=field)


def _is_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
