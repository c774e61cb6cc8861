"""Which broker a client trusts: the SSLContext of a tls:// address, and what a failed handshake means.

The certificate must be signed by the system's authorities, or by those in a file (`tls_ca`, TASKQ_TLS_CA) and then by those alone, and it must
have the host of the address in it.  There is no switch that turns either off: a tls:// address is never spoken to in any other way.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from taskq.errors import ConfigError

CA_VARIABLE = "TASKQ_TLS_CA"
REASONS = {
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS; if the broker is meant to be plain, write the address without tls://",
    "RECORD_LAYER_FAILURE": "what answers there does not speak TLS; if the broker is meant to be plain, write the address without tls://",
    "PACKET_LENGTH_TOO_LONG": "what answers there does not speak TLS; if the broker is meant to be plain, write the address without tls://",
    "UNSUPPORTED_PROTOCOL": "it speaks no version of TLS that is safe; 1.2 is the least",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it speaks no version of TLS that is safe; 1.2 is the least",
}


def client_context(ca: str | None = None) -> ssl.SSLContext:
    """A context that trusts the authorities of this file, of that in TASKQ_TLS_CA, or of the system.  Raises ConfigError."""
    path = ca or os.environ.get(CA_VARIABLE) or None
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"tls_ca: {path} is no file; name the certificate (PEM) of the authority that signed the broker's", field="tls_ca")
    try:
        context = ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError) as error:
        why = "does not hold a certificate in PEM form" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        raise ConfigError(f"tls_ca: {path} {why}", field="tls_ca") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def explained(error: ssl.SSLError) -> str | None:
    """Why there will be no connection until something is changed; None for what may pass, like a connection that broke in the handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _distrust(error)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)) or not error.reason:
        return None
    return REASONS.get(error.reason, f"the TLS handshake failed: {error.reason.lower().replace('_', ' ')}")


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    said = error.verify_message.rstrip(".")
    if "match" in said:
        return f"its certificate is for another host: {said}; use a name that is in the certificate, or put this one into it"
    if "expired" in said or "not yet valid" in said:
        return f"its certificate cannot be used now: {said}; give the broker a new one, or set the clock"
    return f"its certificate is not trusted: {said}; name the authority that signed it with tls_ca, --tls-ca or {CA_VARIABLE}"
