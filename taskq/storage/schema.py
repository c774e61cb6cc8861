"""The schema of the SQLite store, and what brings a store of an older format to it.

A change here is a new FORMAT, an entry in UPGRADES, and a new stored data folder (tests/storage/formats/make.py).
"""

from __future__ import annotations

APPLICATION_ID = 0x7461736B  # "task"
FORMAT = 3

_FIELDS = """seq INTEGER PRIMARY KEY, id BLOB NOT NULL, queue TEXT NOT NULL, task_type TEXT NOT NULL, state INTEGER NOT NULL,
    priority INTEGER NOT NULL, position INTEGER NOT NULL, due_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL, key TEXT,
    payload BLOB NOT NULL, result BLOB NOT NULL, meta BLOB NOT NULL"""

# `tasks`: live tasks and dead letters.  tasks_line begins with the constant state, else SQLite reads the rows too when it only counts.
# `finished`: appended in finish order, pruned from its old end, so place has no gaps.  `body` is a msgpack list of the row's values but for
# its id and finished_ms; queue and key are there for the index, and NULL without a key; payload and result are NULL if the body holds them.
# Behind the meta of a live row and the body of a finished one stands the seal
TASKS_STATE = "CREATE INDEX tasks_state ON tasks (state) WHERE state NOT IN (0, 2, 4)"
TASKS_DUE = "CREATE INDEX tasks_due ON tasks (due_ms) WHERE state IN (0, 4)"
COUNTS_TABLE = """CREATE TABLE counts (queue TEXT, state INTEGER, priority INTEGER, task_type TEXT, tasks INTEGER NOT NULL, seal INTEGER NOT NULL,
    PRIMARY KEY (queue, state, priority, task_type)) WITHOUT ROWID"""
SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL, seal INTEGER NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE tasks ({_FIELDS})",
    "CREATE INDEX tasks_id ON tasks (id)",
    "CREATE INDEX tasks_key ON tasks (queue, key) WHERE key IS NOT NULL",
    "CREATE INDEX tasks_line ON tasks (state, queue, priority, task_type, position) WHERE state = 2",
    TASKS_STATE,
    TASKS_DUE,
    COUNTS_TABLE,
    "CREATE INDEX tasks_failed ON tasks (finished_ms) WHERE state = 6",
    """CREATE TABLE finished (place INTEGER PRIMARY KEY, id BLOB NOT NULL, finished_ms INTEGER NOT NULL, body BLOB NOT NULL,
    queue TEXT, key TEXT, payload BLOB, result BLOB)""",
    "CREATE INDEX finished_id ON finished (id)",
    "CREATE INDEX finished_key ON finished (queue, key) WHERE key IS NOT NULL",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)

# by the format that a store has: what brings it to this one; its counts are made anew
UPGRADES: dict[int, tuple[str, ...]] = {
    2: ("DROP INDEX tasks_state", TASKS_STATE, TASKS_DUE, COUNTS_TABLE, f"PRAGMA user_version = {FORMAT}"),
}
