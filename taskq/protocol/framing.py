"""Bytes to frames, however the stream is cut.

A frame that lies within one received chunk is decoded from views of that chunk; one that spans chunks is joined once, when its last byte is
there.  A large one gets a buffer of its size as soon as a part of it is there, and the rest is received straight into it.  The length is checked
before anything is kept for it.

PURE.  What it must not know: sockets, sessions, what a message means.
"""

from __future__ import annotations

from taskq.errors import FrameTooLarge, ProtocolError, TaskqError, VersionUnsupported
from taskq.protocol.codec import LENGTH_BYTES, PREFIX, UNCOUNTED_BYTES, decode
from taskq.protocol.frames import PREFIX_BYTES, RESENT, VERSION, Frame

FLAGS_KNOWN = RESENT
PIECE_BYTES = 4_096
# a frame of this size gets a buffer of its own when so large a part of it has come: who only promises a frame costs nothing
LARGE_BYTES, LARGE_PART = 256 << 10, 8

# how those begin who speak something else, where a frame has its length → what it is and what to do
HTTP_ANSWER = "it speaks HTTP, so this is the address of the HTTP API; give the broker's TCP address, whose port is 7000 unless it was set"
HTTP_REQUEST = "an HTTP request came to the port of the binary protocol; the HTTP API has a port of its own, 3000 unless it was set"
TLS_ALERT = "it speaks TLS; write its address as tls://HOST:PORT"
TLS_GREETING = "a TLS greeting came to a port without TLS; write the address without tls://, or give the broker --tls-cert and --tls-key"
FOREIGN = {
    b"HTTP": HTTP_ANSWER,
    **dict.fromkeys((b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI "), HTTP_REQUEST),
    b"\x15\x03": TLS_ALERT,
    b"\x16\x03": TLS_GREETING,
}


def foreign(head: bytes) -> str:
    """What another protocol's first bytes are, in words for people; "" if they are not known."""
    return next((words for first, words in FOREIGN.items() if head.startswith(first)), "")


class FrameDecoder:
    """The receiving half of a connection.  The owner may change `frame_bytes_max`, the largest frame with its prefix, between two calls of `feed`.

    After a malformed frame `error` is set, and `error_seq` is the seq of that frame (0 if it has none that could be trusted): all further bytes
    are ignored; the owner sends one Error frame and closes.  A frame of an unknown kind is no such error: its message is `frames.Unknown`.
    """

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.error: TaskqError | None = None
        self.error_seq = 0
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._room: memoryview | None = None
        self._have = 0
        self._need = 0
        self._chunk = b""
        self._at = 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that are complete with this chunk, in order; those before a malformed one are among them.  Never raises."""
        self.hand(chunk)
        return self.take(len(chunk))

    def hand(self, chunk: bytes) -> None:
        """What was received; nothing is done with it yet."""
        if self.error is None:
            self._chunk, self._at = (self._chunk[self._at :] + chunk if self._chunk else chunk), 0

    def take(self, most: int) -> list[Frame]:
        """The next frames of what was received, at most so many, and one at least if one is complete.  Never raises."""
        frames: list[Frame] = []
        chunk, at, self._chunk, self._at = self._chunk, self._at, b"", 0
        try:
            if self._pieces:
                at = self._continue(chunk, frames)
            if not self._pieces:
                at = self._parse(chunk, at, frames, most)
                if len(frames) < most:
                    self._keep(chunk, at)
                elif at < len(chunk):
                    self._chunk, self._at = chunk, at
        except TaskqError as error:
            self.error = error.bare()
            self.close()
        return frames

    @property
    def has_more(self) -> bool:
        """Something was received that nobody has looked at."""
        return bool(self._chunk) or (bool(self._pieces) and self._have == self._need)

    @property
    def room(self) -> memoryview | None:
        """Where the rest of a large frame can be received straight into; None while there is no such frame."""
        return self._room if self._have < self._need else None

    def fill(self, size: int) -> None:
        """So many bytes were received into `room`."""
        assert self._room is not None
        self._have += size
        self._room = self._room[size:]

    def close(self) -> None:
        """Part with what was collected."""
        self._chunk, self._at = b"", 0
        self._part()

    def _part(self) -> None:
        self._pieces = []
        self._room = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a frame that is not complete yet, and of what nobody has looked at."""
        return (self._have if self._pieces else 0) + len(self._chunk)

    def _parse(self, chunk: bytes | bytearray, at: int, frames: list[Frame], most: int = 1) -> int:
        """Decode the frames that lie within the chunk, until there are so many; where the rest begins."""
        view = memoryview(chunk).toreadonly()
        end = len(chunk)
        while end - at >= PREFIX_BYTES and len(frames) < most:
            length, version, flags, kind, seq, head_bytes = PREFIX.unpack_from(chunk, at)
            self._check(length, version, seq, head_bytes)
            stop = at + LENGTH_BYTES + length
            if stop > end:
                break
            payload_at = at + PREFIX_BYTES + head_bytes
            self.error_seq = seq
            message = decode(kind, bytes(chunk[at + PREFIX_BYTES : payload_at]), view[payload_at:stop])
            self.error_seq = 0
            frames.append(Frame(flags & FLAGS_KNOWN, seq, message))
            at = stop
        return at

    def _check(self, length: int, version: int, seq: int, head_bytes: int) -> None:
        self._check_version(version, length)
        if length + LENGTH_BYTES > self.frame_bytes_max:
            self.error_seq = seq
            size = length + LENGTH_BYTES
            raise FrameTooLarge(f"a frame of {size} bytes is larger than the limit of {self.frame_bytes_max}; send fewer tasks at once")
        if head_bytes > length - UNCOUNTED_BYTES:
            self.error_seq = seq
            raise ProtocolError(f"the head of {head_bytes} bytes does not fit into a frame whose length field says {length}")

    def _check_version(self, version: int, length: int) -> None:
        """Told at its byte: who speaks another protocol may wait for an answer before it sends more."""
        if version != VERSION:
            stranger = foreign(length.to_bytes(LENGTH_BYTES, "big"))
            raise VersionUnsupported(stranger or f"version {version} of the protocol is not supported; this side speaks version {VERSION}")

    # ---- a frame across chunks

    def _keep(self, chunk: bytes | bytearray, at: int) -> None:
        """Begin to collect a frame with the rest of the chunk."""
        rest = len(chunk) - at
        if not rest:
            return
        self._have = 0
        if rest > LENGTH_BYTES:
            self._check_version(chunk[at + LENGTH_BYTES], int.from_bytes(chunk[at : at + LENGTH_BYTES], "big"))
        self._need = LENGTH_BYTES + int.from_bytes(chunk[at : at + LENGTH_BYTES], "big") if rest >= PREFIX_BYTES else PREFIX_BYTES
        if rest <= LENGTH_BYTES:
            self._need = LENGTH_BYTES + 1
        self._collect(chunk, at, rest)

    def _collect(self, chunk: bytes | bytearray, at: int, size: int) -> None:
        """Many small pieces go into one buffer, so that a peer that sends byte by byte costs no object a byte; a large one stays a view, if it is
        most of its chunk, which a view keeps whole."""
        if self._room is not None:
            self._room[:size] = memoryview(chunk)[at : at + size]
            self._room = self._room[size:]
            self._have += size
            return
        last = self._pieces[-1] if self._pieces else None
        if size >= PIECE_BYTES and size * 2 >= len(chunk):
            self._pieces.append(memoryview(chunk)[at : at + size])
        elif type(last) is bytearray and len(last) < PIECE_BYTES:
            last += chunk[at : at + size]
        else:
            self._pieces.append(bytearray(chunk[at : at + size]))
        self._have += size
        if self._need >= LARGE_BYTES and self._have * LARGE_PART >= self._need > self._have:
            self._make_room()

    def _make_room(self) -> None:
        """What has come of a large frame goes into a buffer of its size; each piece is let go of as soon as it is there."""
        whole, at = bytearray(self._need), 0
        room, pieces = memoryview(whole), self._pieces
        pieces.reverse()
        while pieces:
            piece = pieces.pop()
            room[at : at + len(piece)] = piece
            at += len(piece)
        self._pieces, self._room = [whole], room[at:]

    def _continue(self, chunk: bytes, frames: list[Frame]) -> int:
        """Add to the frame that is being collected what belongs to it; where the rest of the chunk begins."""
        at = 0
        while self._pieces:
            size = min(self._need - self._have, len(chunk) - at)
            if size:
                self._collect(chunk, at, size)
                at += size
            if self._have < self._need:
                break
            self._complete(frames)
        return at

    def _complete(self, frames: list[Frame]) -> None:
        """All that was needed is there: the prefix, which says how much more is needed, or the whole frame."""
        first = self._pieces[0]
        whole = first if self._room is not None and isinstance(first, bytearray) else b"".join(self._pieces)
        self._part()
        if self._parse(whole, 0, frames) == 0:
            self._keep(whole, 0)
