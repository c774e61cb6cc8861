"""A client of the protocol that costs as little as a client can: a blocking socket, one buffer that every large frame is received into.

What it does to bytes is what any client has to, so that a rate that was measured with it is the broker's own.
"""

from __future__ import annotations

import socket
from typing import Any, Self

from taskq.core import messages as m
from taskq.protocol.codec import PREFIX, decode, encode
from taskq.protocol.frames import PREFIX_BYTES, VERSION

LENGTH_BYTES = 4
WAIT_S = 60.0


class Peer:
    """A connection that is greeted.  A frame that `receive` gives is only good until the next call: it lies in the one buffer."""

    def __init__(self, address: str, role: str, frame_bytes_max: int = 1 << 20) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), WAIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(frame_bytes_max))
        self.seq = 0
        self.welcome: m.Welcome = self.ask(m.Hello(VERSION, role, {"name": f"flat-{role}"}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, message: Any) -> int:
        """Send a request; its seq."""
        self.seq += 1
        for buffer in encode(message, self.seq):
            self._socket.sendall(buffer)
        return self.seq

    def receive(self) -> tuple[int, Any]:
        """The next frame: its seq and its message.  Raises RuntimeError if it is an Error."""
        prefix = self._buffer[:PREFIX_BYTES]
        self._fill(prefix)
        length, _, _, kind, seq, head_bytes = PREFIX.unpack(prefix)
        body = self._buffer[PREFIX_BYTES : LENGTH_BYTES + length]
        self._fill(body)
        message = decode(kind, bytes(body[:head_bytes]), body[head_bytes:])
        if type(message) is m.Error:
            raise RuntimeError(f"the broker answers {message.code}: {message.message}")
        return seq, message

    def ask(self, message: Any) -> Any:
        """Send a request; the answer that has its seq.  What comes before it is dropped."""
        seq = self.send(message)
        while True:
            answered, message = self.receive()
            if answered == seq:
                return message

    def consume(self, queue: str, task_type: str, credit: int) -> None:
        self.ask(m.Consume([queue], [task_type], credit))
        self.send(m.Credit(credit))

    def wait_for(self, kind: type) -> Any:
        """The next message of this kind."""
        while True:
            _, message = self.receive()
            if type(message) is kind:
                return message

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise RuntimeError("the broker has closed the connection")
            view = view[count:]
