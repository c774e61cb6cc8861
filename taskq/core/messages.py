"""The messages of taskq: each class is at once the wire frame, the command to a shard and the reply from it.

Rules of this file: the order of the fields is their order on the wire, new fields are appended with a default and never removed, and a
message is not changed after it was made.  A field `payloads`, always the first, stands in the head as the list of the payloads' sizes; their
bytes follow the head untouched.  A *column* is a list with one entry a task, or with exactly one entry that counts for all tasks.
Ids and tokens travel as one block: 16·n and 8·n bytes.  `docs/protocol.md` is the normative text.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import attrs

Payload: TypeAlias = "bytes | memoryview"

# durability levels, also the values of Enqueued.durability
MEMORY, OS, FSYNC = 0, 1, 2
DURABILITY = ("memory", "os", "fsync")

# encodings of payloads and results
BYTES, MSGPACK, JSON = 0, 1, 2
ENCODINGS = ("bytes", "msgpack", "json")

# Enqueued.outcomes
CREATED, EXISTS, REFUSED = 0, 1, 2
# Reported.outcomes and Resumed.outcomes
REPORT_OK, REPORT_LEASE_LOST = 0, 1
KEPT, LOST, KEPT_BUT_CANCELLED = 0, 1, 2
# Cancelled.outcomes
CANCEL_DONE, CANCEL_REQUESTED, CANCEL_ALREADY_FINAL, CANCEL_NOT_FOUND = 0, 1, 2, 3
# Fail.dispositions
RETRY, DISCARD, RETRY_AFTER = 0, 1, 2

# names for some of the priorities, which go from 0, the most urgent, to 9
PRIORITIES = {"critical": 0, "high": 2, "normal": 5, "low": 7, "bulk": 9}
DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5
DEFAULT_MAX_ATTEMPTS = 10
DEFAULT_RETRY: tuple[int, float, int] = (2_000, 2.0, 3_600_000)

# bounds of an enqueue that clients check as well: they must not have to import the broker's book for them
KEY_CHARS_MAX = 256
ATTEMPTS_MAX = 1_000
FACTOR_MAX = 100
HORIZON_MS = 366 * 86_400_000


# ---- session ---------------------------------------------------------------------------------------------------------------------


@attrs.define
class Hello:
    """The first frame of a connection.  `role` is producer, worker or keeper; `client` holds name, host, pid, version and sdk; `auth` the
    client-first message of SCRAM-SHA-256, from who has an access token.  Answer: Welcome, or Challenge."""

    version: int
    role: str
    client: dict[str, Any] = attrs.field(factory=dict)
    auth: bytes = b""


@attrs.define
class Challenge:
    """Answers the Hello of a client that has to prove an access token: the server-first message of SCRAM-SHA-256.  Answer: Proof."""

    challenge: bytes


@attrs.define
class Proof:
    """The client-final message of SCRAM-SHA-256.  Answer: Welcome, or AUTH_FAILED."""

    proof: bytes


@attrs.define
class Welcome:
    """`session` (16 bytes) and `secret` (32 bytes) allow a later Resume and the keeper's Keepalive; `now_ms` is the broker's clock for ids.
    `auth`: the broker's own signature (32 bytes), if it answers a Proof."""

    session: bytes
    secret: bytes
    now_ms: int
    epoch: int
    heartbeat_ms: int
    lease_ms: int
    limits: dict[str, Any] = attrs.field(factory=dict)
    partitions: dict[str, Any] = attrs.field(factory=dict)
    auth: bytes = b""


@attrs.define
class Resume:
    """A worker is back after a broken connection or a broker restart: its old session and secret, the number of deliveries it received so far
    and the tokens it still holds.  The connection takes the old session's identity; tokens that are not listed are given up.  Answer: Resumed."""

    session: bytes
    secret: bytes
    received: int
    tokens: bytes = b""


@attrs.define
class Resumed:
    """One byte for each token of the Resume: 0 kept, 1 lost, 2 kept and a cancel is requested.  Deliveries and credit count on from `received`."""

    outcomes: bytes


@attrs.define
class Heartbeat:
    """A worker is alive: the deliveries it received since the session began and the tokens it holds.  A token is given up if its delivery
    number is at most `received` and it is not listed.  `allowed` counts like that of Credit.  A producer sends (0, "").  Answer: Beat."""

    received: int = 0
    tokens: bytes = b""
    allowed: int = 0


@attrs.define
class Beat:
    """The tokens of the Heartbeat that are not current (stop that work), and those whose tasks are to be cancelled.  `delivered`: the number of the
    last delivery that was sent before this frame; who has received fewer has lost a frame, and resumes."""

    lost: bytes = b""
    cancelled: bytes = b""
    delivered: int = 0


@attrs.define
class Keepalive:
    """A keeper, on its own connection, says that the runner of a session lives and has received so many deliveries.  Answer: Ok, or NOT_FOUND."""

    session: bytes
    secret: bytes
    received: int


@attrs.define
class Died:
    """A keeper reports that the runner of a session is dead (`cause`: "SIGKILL", "exit code 3").  Its leases end as crashes at once; with an empty
    cause, because it was ended on purpose, they go back uncharged.  Answer: Ok."""

    session: bytes
    secret: bytes
    cause: str


@attrs.define
class Ok:
    """Done."""


@attrs.define
class Error:
    """The refusal of one request (same seq), or with seq 0 the reason why the connection is closed."""

    code: str
    message: str
    field: str = ""
    retryable: bool = False
    retry_after_ms: int = 0


@attrs.define
class Goaway:
    """The broker is stopping: finish what you hold, take nothing new, reconnect after the given time."""

    reason: str
    reconnect_after_ms: int = 0


@attrs.define
class Bye:
    """An orderly end: leases that the session still holds go back at once, uncharged.  Answer: Ok, then the connection is closed."""


# ---- tasks -----------------------------------------------------------------------------------------------------------------------


@attrs.define
class Enqueue:
    """1…1,000 tasks for one queue.  All lists but `payloads` and `ids` are columns.  `ids`: nil ids ask the broker to make them.  `retries`: nil
    for the default, or [base_ms, factor, cap_ms].  `timeouts_ms` 0: none.  `keys`: text or nil.  Flag RESENT: may have been sent before.
    Answer: Enqueued."""

    payloads: list[Payload]
    queue: str
    ids: bytes
    task_types: list[str]
    encodings: list[int] = attrs.field(factory=lambda: [MSGPACK])
    priorities: list[int] = attrs.field(factory=lambda: [DEFAULT_PRIORITY])
    delays_ms: list[int] = attrs.field(factory=lambda: [0])
    keys: list[str | None] = attrs.field(factory=lambda: [None])
    max_attempts: list[int] = attrs.field(factory=lambda: [DEFAULT_MAX_ATTEMPTS])
    timeouts_ms: list[int] = attrs.field(factory=lambda: [0])
    retries: list[Any] = attrs.field(factory=lambda: [None])


@attrs.define
class Enqueued:
    """For each task its id, outcome (0 created, 1 exists, 2 refused) and state code; `errors` holds [index, code, message, field] of the refused.
    The tasks are as durable as `durability` (0 memory, 1 os, 2 fsync) says when this frame leaves."""

    ids: bytes
    outcomes: bytes
    states: bytes
    durability: int
    errors: list[Any] = attrs.field(factory=list)


@attrs.define
class Consume:
    """A worker session's subscription, replacing the one before: queues in order of preference, the task types that it can run, and how many at a
    time.  `ranks` is a column: tasks of a queue with a lower rank go first, queues of one rank take turns; none: the order of the list counts.  No
    queues: take nothing.  Answer: Ok."""

    queues: list[str]
    task_types: list[str]
    concurrency: int
    ranks: list[int] = attrs.field(factory=list)


@attrs.define
class Declare:
    """A worker says which options its functions have; they hold for tasks that are enqueued by name.  All but `task_types` are columns.  Answer:
    Ok."""

    task_types: list[str]
    queues: list[str] = attrs.field(factory=lambda: [DEFAULT_QUEUE])
    priorities: list[int] = attrs.field(factory=lambda: [DEFAULT_PRIORITY])
    max_attempts: list[int] = attrs.field(factory=lambda: [DEFAULT_MAX_ATTEMPTS])
    timeouts_ms: list[int] = attrs.field(factory=lambda: [0])
    retries: list[Any] = attrs.field(factory=lambda: [None])


@attrs.define
class Credit:
    """How many deliveries the session allows in all since it began; never falls.  No answer."""

    allowed: int


@attrs.define
class Deliver:
    """The broker hands tasks of one queue to the session, each under a lease.  `first` is the delivery number of the first one, counted from 1 over
    the session.  `task_types`, `encodings`, `attempts`, `timeouts_ms`, `max_attempts` and `retries` are columns; the last two are for people, so that
    a worker can say whether and when a task that failed is tried again; 0 and nil: not told."""

    payloads: list[Payload]
    queue: str
    first: int
    ids: bytes
    tokens: bytes
    task_types: list[str]
    encodings: list[int]
    attempts: list[int]
    timeouts_ms: list[int]
    max_attempts: list[int] = attrs.field(factory=lambda: [0])
    retries: list[Any] = attrs.field(factory=lambda: [None])


@attrs.define
class Ack:
    """Tasks completed, with their results.  Answer: Reported."""

    payloads: list[Payload]
    ids: bytes
    tokens: bytes
    encodings: list[int] = attrs.field(factory=lambda: [MSGPACK])


@attrs.define
class Fail:
    """Attempts failed.  `dispositions`: 0 retry by the task's policy, 1 discard (dead letter now), 2 retry after `delays_ms`.  `errors` are texts
    for people, cut at 16 KiB of UTF-8.  All lists are columns.  Answer: Reported."""

    ids: bytes
    tokens: bytes
    dispositions: list[int]
    delays_ms: list[int]
    error_types: list[str]
    errors: list[str]


@attrs.define
class Release:
    """Tasks handed back without using up an attempt: at once (delay 0, an interruption), or snoozed for `delays_ms` (a column).  Answer: Reported."""

    ids: bytes
    tokens: bytes
    delays_ms: list[int]


@attrs.define
class Reported:
    """One byte for each task of an Ack, Fail or Release: 0 done, 1 LEASE_LOST (the token was not current and nothing changed)."""

    outcomes: bytes


@attrs.define
class Revoke:
    """The broker asks a worker session to cancel the tasks under these tokens; each is still reported with Ack, Fail or Release."""

    tokens: bytes


@attrs.define
class Cancel:
    """Cancel tasks.  Answer: Cancelled."""

    ids: bytes


@attrs.define
class Cancelled:
    """One byte for each id: 0 cancelled, 1 running and asked to stop, 2 already final, 3 not found."""

    outcomes: bytes


@attrs.define
class Get:
    """One task: at once (`wait_ms` 0), or when it reaches a final state, at the latest after `wait_ms`.  Answer: TaskInfo, or NOT_FOUND."""

    id: bytes
    wait_ms: int = 0


@attrs.define
class TaskInfo:
    """`payloads` = [payload, result].  `info` holds the task's fields by name; `docs/protocol.md` lists them."""

    payloads: list[Payload]
    info: dict[str, Any]


# ---- administration --------------------------------------------------------------------------------------------------------------


@attrs.define
class Inspect:
    """`what` is queues, workers or broker.  Answer: Inspected."""

    what: str


@attrs.define
class Inspected:
    rows: list[Any]
