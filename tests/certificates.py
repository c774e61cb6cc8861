"""Real certificates for tests: an authority of the test's own, and what it signs, as files."""

from __future__ import annotations

import datetime
from pathlib import Path

import attrs
import trustme


@attrs.frozen
class Files:
    """A certificate with its key, and the authority to trust for it.  `flags`: those of a broker that shows it."""

    cert: Path
    key: Path
    ca: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.cert), "--tls-key", str(self.key)

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}


def issue(folder: Path, *hosts: str, ca: trustme.CA | None = None, days: int = 1, rsa: bool = False) -> Files:
    """A certificate for these hosts (default: loopback by every name), signed by a new authority or by this one.  Negative days: it has expired."""
    folder.mkdir(exist_ok=True, parents=True)
    authority = ca or trustme.CA()
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
    made = authority.issue_cert(*(hosts or ("localhost", "127.0.0.1", "::1")), not_after=end, key_type=kind)
    files = Files(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    files.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    files.key.touch(0o600)
    files.key.write_bytes(made.private_key_pem.bytes())
    authority.cert_pem.write_to_path(files.ca)
    return files
