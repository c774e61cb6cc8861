"""Unread: how a peer of the TCP door takes what was written to it.  It knows bytes and seconds, no connection."""

from __future__ import annotations

import attrs

from taskq.actors.doors import TcpLimits


@attrs.define
class Unread:
    """How a peer takes what was written to it, since it last kept the pace: at `since_s` `bytes` were waiting, `added_bytes` came since."""

    since_s: float = 0.0
    bytes: int = 0
    added_bytes: int = 0

    def begin(self, now_s: float, waiting: int) -> None:
        self.since_s, self.bytes, self.added_bytes = now_s, waiting, 0

    def is_slow(self, now_s: float, waiting: int, limits: TcpLimits) -> bool:
        """Nothing worth it was taken for `unread_s`: not `rate_bytes_min` a second, or, where more than `unread_bytes_max` waits, not at a pace that
        takes as much in that time."""
        age_s = now_s - self.since_s
        pace = limits.unread_bytes_max / limits.unread_s if waiting > limits.unread_bytes_max else limits.rate_bytes_min
        taken = self.bytes + self.added_bytes - waiting
        if taken and taken >= pace * age_s:
            self.begin(now_s, waiting)
            return False
        return age_s >= limits.unread_s
