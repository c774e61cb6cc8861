"""A mail server on loopback that keeps what it receives.  The protocol is real SMTP, by aiosmtpd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
from aiosmtpd.smtp import SMTP, Envelope


@attrs.define
class Mailbox:
    """Every mail that came, as text."""

    address: str = ""
    mails: list[str] = attrs.field(factory=list)

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Envelope) -> str:
        content = envelope.content or b""
        self.mails.append(content.decode("utf-8", "replace") if isinstance(content, bytes) else content)
        return "250 kept"


@asynccontextmanager
async def mail_server() -> AsyncIterator[Mailbox]:
    mailbox = Mailbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(mailbox, hostname="demo.localhost"), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    mailbox.address = f"{host}:{port}"
    try:
        yield mailbox
    finally:
        server.close()
        await server.wait_closed()
