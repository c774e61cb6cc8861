"""taskq, as it comes: default settings, durability fsync."""

from __future__ import annotations

import sys

import figures

from taskq.config import BrokerConfig

from .. import servers
from ..contract import Peer, Rough, Tried

TASKQ = Peer(
    name="taskq",
    title="taskq",
    durability="fsync before the ack",
    serve=servers.taskq,
    client=(sys.executable, "taskq_client.py"),
    needs=(),
    versions=(),
    rough=Rough(one_by_one=900, bulk=150_000, drain=60_000, end_to_end=45_000),
    settings={"durability": "fsync", "shards": BrokerConfig().shards, "client": "async", "batch": 1_000, "in_flight": 16},
    tried=(
        Tried("broker and worker", "the defaults", "the defaults", "nothing is tuned"),
        Tried("batch × in_flight", "1,000 × 16", "1,000 × 16", "as in bench/load"),
        Tried("client of the one-by-one stage, with 20,000 tasks", "async, blocking", "async", "1,040 and 888 a second"),
    ),
    environ=figures.environment,
)
