"""What an access token allows, and THE table of what each message needs.

    produce   enqueue, cancel                              read    tasks, queues and workers
    consume   subscribe, take, report, guard a worker      admin   all of it, and what tells of the broker itself

Each scope of a token has a glob of queues: `*` stands for any run of characters, everything else for itself, and the whole name must fit.  It is
matched in one pass; there are no patterns here that could cost more.

Both doors ask the same `check` before a message goes anywhere.  Which queue a Get or a Cancel is about only the shard knows: the grant goes there
with the command, and the shard asks `refusal`.  A report needs no queue: its lease is the proof, and counts on the session alone that was given it.

PURE.  It must not know: how a token is proved, sessions, doors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from taskq.core import messages as m
from taskq.errors import Forbidden, echo
from taskq.ids import ID_BYTES, slot_of_id, split

PRODUCE, CONSUME, READ, ADMIN = SCOPES = ("produce", "consume", "read", "admin")
SCOPES_MAX = 64
ANY_QUEUE = "*"
GLOB = re.compile(r"[A-Za-z0-9_.:*-]{1,128}")
GLOB_RULE = "1 to 128 of A-Z a-z 0-9 _ . : - and *"


def matches(glob: str, name: str) -> bool:
    """Whether the whole name fits.  Each part between two stars takes the first place it finds, so nothing is ever tried twice."""
    first, *parts = glob.split("*")
    if not parts:
        return name == first
    *middle, last = parts
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


@attrs.frozen
class Grant:
    """The scopes of one access token, each with its glob.  `admin` stands for every scope."""

    name: str
    scopes: tuple[tuple[str, str], ...]

    def allows(self, scope: str, queue: str) -> bool:
        return any(held in (scope, ADMIN) and matches(glob, queue) for held, glob in self.scopes)

    def allows_in_any_way(self, queue: str) -> bool:
        return any(matches(glob, queue) for _, glob in self.scopes)

    def allows_somewhere(self, scope: str) -> bool:
        return any(held in (scope, ADMIN) for held, _ in self.scopes)

    def allows_everywhere(self, scope: str) -> bool:
        return any(held in (scope, ADMIN) and not glob.strip("*") for held, glob in self.scopes)


# somebody who proved nothing
NOBODY = Grant("", ())


def scope_of(text: str) -> tuple[str, str]:
    """`produce:email*` as (scope, glob); without a glob it is for any queue.  ValueError says what would be right."""
    scope, separator, glob = text.strip().partition(":")
    if scope not in SCOPES:
        raise ValueError(f"{echo(text)} is no scope; write {', '.join(SCOPES)}, each alone or with the queues it is for, such as produce:email*")
    if separator and not GLOB.fullmatch(glob):
        raise ValueError(f"{echo(text)}: the queues must be {GLOB_RULE}")
    return scope, glob or ANY_QUEUE


def scope_text(scope: tuple[str, str]) -> str:
    return scope[0] if scope[1] == ANY_QUEUE else ":".join(scope)


# ---- the table ---------------------------------------------------------------------------------------------------------------------

# (grant, scope, message) → what the scope is missing for, None if nothing is missing
Where: TypeAlias = Callable[[Grant, str, Any], str | None]


def _in_its_queue(grant: Grant, scope: str, message: m.Enqueue) -> str | None:
    return None if grant.allows(scope, message.queue) else _queue(message.queue)


def _in_all_its_queues(grant: Grant, scope: str, message: m.Consume | m.Declare) -> str | None:
    if not message.queues:
        return _somewhere(grant, scope, message)
    return next((_queue(queue) for queue in message.queues if not grant.allows(scope, queue)), None)


def _somewhere(grant: Grant, scope: str, message: Any) -> str | None:
    return None if grant.allows_somewhere(scope) else "any queue"


def _everywhere(grant: Grant, scope: str, message: Any) -> str | None:
    return None if grant.allows_everywhere(scope) else "all queues"


def _in_one_slot(grant: Grant, scope: str, message: m.Cancel) -> str | None:
    """A shard takes or refuses the ids of one slot as a whole; over several slots a part would be done and the rest refused."""
    if grant.allows_everywhere(scope) or len(message.ids) % ID_BYTES or len({slot_of_id(each) for each in split(message.ids, ID_BYTES)}) <= 1:
        return _somewhere(grant, scope, message)
    return "all queues, which cancelling tasks of several queues at once takes; cancel them queue by queue"


def _queue(name: str) -> str:
    return f"the queue {echo(name)}"


# message → scope and where it must hold, None for what whoever proved a token may say
NEEDS: dict[type, tuple[str, Where] | None] = {
    m.Hello: None,
    m.Proof: None,
    m.Heartbeat: None,
    m.Bye: None,
    m.Enqueue: (PRODUCE, _in_its_queue),
    m.Cancel: (PRODUCE, _in_one_slot),
    m.Consume: (CONSUME, _in_all_its_queues),
    m.Declare: (CONSUME, _in_all_its_queues),
    m.Resume: (CONSUME, _somewhere),
    m.Credit: (CONSUME, _somewhere),
    m.Ack: (CONSUME, _somewhere),
    m.Fail: (CONSUME, _somewhere),
    m.Release: (CONSUME, _somewhere),
    m.Keepalive: (CONSUME, _somewhere),
    m.Died: (CONSUME, _somewhere),
    m.Get: (READ, _somewhere),
    m.Inspect: (READ, _somewhere),
}
# Inspect.what that needs something else; of queues, workers and types those are shown that a scope is for
INSPECT: dict[str, tuple[str, Where] | None] = {"broker": (ADMIN, _everywhere), "types": None}


def check_kind(grant: Grant, kind: type) -> None:
    """Raise Forbidden if the grant is enough for no message of this kind, whatever else stands in it: what is refused need not be read."""
    need = NEEDS[kind]
    if need is not None and not grant.allows_somewhere(need[0]):
        raise _forbidden(grant, need[0], "any queue")


def check_queue(grant: Grant, kind: type, queue: str) -> None:
    """Raise Forbidden unless the grant is enough for a message of this kind about this queue."""
    need = NEEDS[kind]
    if need is not None and not grant.allows(need[0], queue):
        raise _forbidden(grant, need[0], _queue(queue))


def check(grant: Grant, message: Any) -> None:
    """Raise Forbidden unless the grant is enough for the message, as far as the message itself tells."""
    need = NEEDS[type(message)]
    if type(message) is m.Inspect:
        need = INSPECT.get(message.what, need)
    if need is None:
        return
    scope, where = need
    missing = where(grant, scope, message)
    if missing is not None:
        raise _forbidden(grant, scope, missing)


def refusal(grant: Grant, message: Any, queues: Sequence[str]) -> Forbidden | None:
    """Why this message must not touch these queues, if it must not."""
    need = NEEDS[type(message)]
    assert need is not None
    wrong = next((queue for queue in queues if not grant.allows(need[0], queue)), None)
    return None if wrong is None else _forbidden(grant, need[0], _queue(wrong))


def _forbidden(grant: Grant, scope: str, missing: str) -> Forbidden:
    return Forbidden(f"the access token {grant.name} does not have the scope {scope} for {missing}", field="token")
