"""Whether the broker admits new tasks: one object a broker, set by whoever sees the load, asked by every enqueue.

Finishing work is never refused."""

from __future__ import annotations

import attrs

from taskq.errors import Answer


@attrs.define
class Admission:
    """The reasons not to admit, by who gave them; the first one given is the answer.  While draining, nothing is
    delivered either."""

    reasons: dict[str, Answer] = attrs.field(factory=dict)
    draining: bool = False

    def refuse(self, who: str, why: Answer) -> None:
        self.reasons.setdefault(who, why)

    def admit(self, who: str) -> None:
        self.reasons.pop(who, None)

    @property
    def refusal(self) -> Answer | None:
        return next(iter(self.reasons.values()), None)
