"""What the two doors, TCP and HTTP, share and count: open files, connections by address, and the bytes that connections hold.

Rules:
- A connection is an open file from the moment that it is accepted.  Both doors together leave FILES_SPARE of those that the process may have to the
  journal, the store and the like, and half of them where there are few.  Of what they leave, connections that were refused and read why may use
  half.  With fewer than FILES_LEAST there would be too few for either.
- Where a door is full, or there are no files left, a connection that does nothing makes room, if a door has one; not for who has too many itself.
- Connections from one other machine are counted; loopback is not, because there all programs of this machine look alike.
- Bytes are held for a connection while a request is not whole, or an answer is not read.  Where all together hold too much, the connection that
  holds most is cut, so that who holds little is never hurt by who holds much.

It must not know: protocols, sessions.
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from taskq.errors import TooManyConnections

FILES_SPARE = 512
FILES_LEAST = 256
# of the spare files, those that connections may use which were refused and still read why
FILES_LINGERING = 256
HELD_BYTES_MAX = 256 << 20
NETWORK6_BITS = 64
# a connection that has done nothing for so long makes room for another, where there is none
SPARED_S = 1.0
# of one TCP connection, for tasks to end; more than this side's own clients ever have in flight
WAITS_MAX = 8_192
RETRY_MS = 1_000


@attrs.frozen
class TcpLimits:
    """The limits of the TCP door.  Durations are seconds.  `rate_bytes_min`: what a peer must send of a frame, or take of its answers, a second."""

    frame_bytes_max: int = 4 << 20
    connections_max: int = 10_000
    address_connections_max: int = 1_024
    greeting_connections_max: int = 500
    greeting_s: float = 5.0
    frame_s: float = 10.0
    silence_s: float = 15.0
    unread_s: float = 10.0
    unread_bytes_max: int = 4 << 20
    rate_bytes_min: int = 1_024
    requests_max: int = 256


class Holder(Protocol):
    """A connection, as far as the bytes matter that it holds."""

    def held_bytes(self) -> int: ...

    def cut(self) -> None:
        """End at once, and hold nothing any more."""


class Doors:
    """Both doors of a broker: `files` open connections, refused ones included, and `held_bytes` of all of them."""

    def __init__(self, files_max: int, held_bytes_max: int) -> None:
        self.files = 0
        self.files_max = files_max
        self.held_bytes = 0
        self.held_bytes_max = held_bytes_max
        self.crowds: list[Crowd] = []
        self._holders: dict[Holder, int] = {}

    @property
    def full(self) -> bool:
        """There are no files left for connections that are taken on."""
        return self.files >= self.files_max

    @property
    def crowded(self) -> bool:
        """There are no files left for connections that only read why they were refused."""
        return self.files > self.files_max + min(FILES_LINGERING, self.files_max // 2)

    def hold(self, holder: Holder, size: int) -> None:
        """A connection holds so much now.  One call may cut connections, this one too."""
        before = self._holders.pop(holder, 0)
        if size:
            self._holders[holder] = size
        self.held_bytes += size - before
        if self.held_bytes > self.held_bytes_max and size > before:
            self._relieve()

    def _relieve(self) -> None:
        """What was read meanwhile is not known yet: look first, then cut."""
        for holder in list(self._holders):
            self.hold(holder, min(self._holders[holder], holder.held_bytes()))
        while self.held_bytes > self.held_bytes_max:
            largest = max(self._holders, key=self._holders.__getitem__)
            self.hold(largest, 0)
            largest.cut()


class Crowd:
    """The connections of one door.  `make_room` ends one of them that does nothing, if there is one."""

    def __init__(self, doors: Doors, connections_max: int, address_connections_max: int) -> None:
        self.count = 0
        self.make_room: Callable[[], None] = lambda: None
        self.doors = doors
        doors.crowds.append(self)
        self._most = connections_max
        self._most_of_one = address_connections_max
        self._by_place: dict[str, int] = {}

    def enter(self, place: str) -> TooManyConnections | None:
        """One more from this place; why it is refused, if it is.  Refused or not, it is an open file until `leave`."""
        doors = self.doors
        here = self._by_place.get(place, 0)
        if place and here >= self._most_of_one:
            doors.files += 1
            return TooManyConnections(f"the broker has {here:,} connections from this address and takes no more", retry_after_ms=RETRY_MS)
        if self.count >= self._most:
            self.make_room()
        for crowd in sorted(doors.crowds, key=lambda crowd: -crowd.count) if doors.full else ():
            if doors.full:
                crowd.make_room()
        is_full = doors.full
        doors.files += 1
        if self.count >= self._most:
            return TooManyConnections(f"the broker has all {self.count:,} connections that it takes here; come back later", retry_after_ms=RETRY_MS)
        if is_full:
            told = f"the broker has {doors.files - 1:,} connections, and no open files for more; come back later"
            return TooManyConnections(told, retry_after_ms=RETRY_MS)
        self.count += 1
        if place:
            self._by_place[place] = self._by_place.get(place, 0) + 1
        return None

    def leave(self, place: str, refused: bool) -> None:
        self.doors.files -= 1
        if refused:
            return
        self.count -= 1
        if place:
            self._by_place[place] -= 1
            if not self._by_place[place]:
                del self._by_place[place]


def place_of(peer: Any) -> str:
    """Where the peer of a connection is: its IPv4 address, its IPv6 network, nothing for loopback."""
    if not isinstance(peer, tuple) or str(peer[0]).startswith("127."):
        return ""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else str(ipaddress.ip_network((address, NETWORK6_BITS), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


def files_for_connections() -> int:
    """As many as this process may open, without those that it needs itself."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if most == resource.RLIM_INFINITY else max(most - FILES_SPARE, most // 2)
