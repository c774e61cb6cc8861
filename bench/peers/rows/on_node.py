"""Queues that run on Node: BullMQ on Redis; graphile-worker and pg-boss on Postgres, which syncs each commit."""

from __future__ import annotations

from .. import servers
from ..contract import Peer, Rough, Tried
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
    settings={"concurrency": 500, "batch": 1_000, "in_flight": 4},
    tried=(
        Tried("concurrency", "10, 100, 500", "500", "537 / 496, 636 / 569, 704 / 677"),
        Tried("batches of addBulk in flight", "1, 4", "4", "bulk 1,140 and 1,160; the same within the noise"),
        Tried("Redis: appendfsync", "off, always", "off", "in an earlier run, drain 9,091 and 9,656; always is durable at ack"),
    ),
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
    tried=(
        Tried("concurrency", "10, 50, 200", "50", "2,250 / 1,980, 2,950 / 2,300, 1,990 / 2,230"),
        Tried("local_queue", "100, 500", "500", "1,580 / 1,770, 2,950 / 2,300"),
        Tried("complete_delay_ms", "-1 (its default), 0", "0", "552 / 619, 2,950 / 2,300"),
    ),
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
    tried=(
        Tried("workers × batch", "1 × 200, 1 × 500, 2 × 500", "1 × 5000", "3,590 / 1,540, 3,350 / 2,120, 4,210 / 2,260"),
        Tried("batch", "1000, 5000", "5000", "in an earlier run, drain 8,059 and 27,900"),
        Tried("poll_s", "0.5", "0.5", "it allows no less, so latency is its polling"),
    ),
    without={"result": NO_RESULTS},
    environ=environ,
)
