"""A connection that is to end as soon as what was asked for is answered."""

from __future__ import annotations

import attrs

from taskq.errors import TaskqError


@attrs.frozen
class Leaving:
    """A connection that takes nothing more and waits for answers since `since_s`; its last frame will be `error`, if there is one."""

    seq: int
    error: TaskqError | None
    since_s: float
