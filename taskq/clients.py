"""The clients that an App has open: one for each event loop that enqueues, one for all code without a loop; made when they are needed.

`Clients` is what an App has; `Connections` is the real one.  Tests give an App another one for a while: whatever was open stays open beside it,
unused, and is there again afterwards.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

from taskq.batch import Encoded
from taskq.blocking import Client
from taskq.client import AsyncClient
from taskq.connection import Address, address_from_environment
from taskq.durations import Duration, seconds
from taskq.handle import TaskHandle
from taskq.loops import refuse_on_loop
from taskq.options import Options

CLOSE_S = 5.0


class Clients(Protocol):
    """What an App needs to enqueue."""

    @property
    def url(self) -> str: ...

    def client(self) -> Any:
        """The client of the running event loop."""
        ...

    def blocking_client(self) -> Any:
        """The client for code without an event loop."""
        ...

    def submit_many_sync(self, task_type: str, items: list[Encoded], options: Options) -> list[TaskHandle[Any]]: ...

    async def close(self) -> None:
        """Close this loop's client and the one for code without a loop."""
        ...

    def close_sync(self) -> None:
        """Close the one for code without a loop."""
        ...


class Connections:
    """Clients of one broker.  An address or deadline that is not valid is refused here, before anything is enqueued."""

    def __init__(self, url: str | None, token: str | None, deadline: Duration, tls_ca: str | None) -> None:
        if url is not None:
            Address.parse(url)
        seconds(deadline, "deadline")
        self._url = url
        self._token = token
        self._deadline = deadline
        self._tls_ca = tls_ca
        self._clients: dict[asyncio.AbstractEventLoop, AsyncClient] = {}
        self._blocking: Client | None = None

    @property
    def url(self) -> str:
        return str(address_from_environment()) if self._url is None else self._url

    @property
    def given_url(self) -> str | None:
        return self._url

    @property
    def are_open(self) -> bool:
        return self._blocking is not None or any(not loop.is_closed() for loop in self._clients)

    def elsewhere(self, url: str | None) -> Connections:
        """The same at another address."""
        return Connections(url, self._token, self._deadline, self._tls_ca)

    def client(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        return self._new_client(loop) if client is None else client

    def _new_client(self, loop: asyncio.AbstractEventLoop) -> AsyncClient:
        self._clients = {known: client for known, client in self._clients.items() if not known.is_closed()}
        client = self._clients[loop] = AsyncClient(self._url, token=self._token, deadline=self._deadline, tls_ca=self._tls_ca)
        return client

    def blocking_client(self) -> Client:
        refuse_on_loop("with app.client()")
        if self._blocking is None:
            self._blocking = Client(self._url, token=self._token, deadline=self._deadline, tls_ca=self._tls_ca)
        return self._blocking

    def submit_many_sync(self, task_type: str, items: list[Encoded], options: Options) -> list[TaskHandle[Any]]:
        return self.blocking_client().run(lambda client: client.submit_many(task_type, items, options))

    async def close(self) -> None:
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()
        await asyncio.to_thread(self.close_sync)

    def close_sync(self) -> None:
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            blocking.close()

    async def close_all(self) -> None:
        """Close those of other loops too, as far as these run."""
        await self.close()
        clients, self._clients = self._clients, {}
        for loop, client in clients.items():
            if loop.is_running():
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(client.close(), loop)), CLOSE_S)
