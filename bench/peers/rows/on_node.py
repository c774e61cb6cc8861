"""Queues that run on Node: BullMQ on Redis; graphile-worker and pg-boss on Postgres, which syncs each commit."""

from __future__ import annotations

from .. import servers
from ..contract import Peer, Rough
from ..install import NODE, find
from .on_redis_python import MEMORY, SERVE

NO_RESULTS = "it has no way to wait for a result"
SYNCED = "fsync before the ack"


def environ() -> dict[str, str]:
    return {"BENCH_NODE": str(NODE)}


NODE_PROGRAM = find("node") or "node"

BULLMQ = Peer(
    name="bullmq",
    title="BullMQ",
    durability=MEMORY,
    serve=SERVE,
    client=(NODE_PROGRAM, "bullmq_client.mjs"),
    needs=("npm packages", "node", "redis-server"),
    versions=("npm:bullmq", "node", "redis-server"),
    rough=Rough(one_by_one=2_600, bulk=13_500, drain=9_000, end_to_end=5_800),
    settings={"concurrency": 100, "batch": 1_000, "in_flight": 4},
    environ=environ,
)

GRAPHILE = Peer(
    name="graphile-worker",
    title="graphile-worker on Postgres",
    durability=SYNCED,
    serve=servers.postgres,
    client=(NODE_PROGRAM, "graphile_client.mjs"),
    needs=("npm packages", "node", "postgres", "initdb"),
    versions=("npm:graphile-worker", "node", "postgres"),
    rough=Rough(one_by_one=610, bulk=35_000, drain=14_000, end_to_end=15_000),
    settings={"concurrency": 50, "pool": 10, "local_queue": 500, "complete_delay_ms": 0, "poll_ms": 100, "batch": 5_000},
    without={"result": NO_RESULTS},
    environ=environ,
)

PGBOSS = Peer(
    name="pg-boss",
    title="pg-boss on Postgres",
    durability=SYNCED,
    serve=servers.postgres,
    client=(NODE_PROGRAM, "pgboss_client.mjs"),
    needs=("npm packages", "node", "postgres", "initdb"),
    versions=("npm:pg-boss", "node", "postgres"),
    rough=Rough(one_by_one=760, bulk=27_000, drain=14_000, end_to_end=12_000),
    settings={"workers": 1, "batch": 5_000, "poll_s": 0.5, "pool": 10, "insert": 5_000},
    without={"result": NO_RESULTS},
    environ=environ,
)
