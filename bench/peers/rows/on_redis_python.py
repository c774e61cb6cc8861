"""Python queues on Redis.  The server keeps nothing on disk, the fastest that it has; all of them talk TCP over loopback."""

from __future__ import annotations

from .. import servers
from ..contract import Peer, Rough, Tried
from ..install import ARQ_PYTHON, PYTHON

MEMORY = "memory: lost when the server ends"
NEEDS = ("Python packages", "redis-server")
SERVE = servers.redis("--appendonly", "no")
CELERY = Peer(
    name="celery",
    title="Celery + Redis",
    durability=MEMORY,
    serve=SERVE,
    client=(str(PYTHON), "celery_client.py"),
    needs=NEEDS,
    versions=("pip:celery", "pip:redis", "redis-server"),
    rough=Rough(one_by_one=960, bulk=730, drain=1_360, end_to_end=720),
    settings={"pool": "prefork", "concurrency": 2, "prefetch_multiplier": 100},
    tried=(
        Tried("pool × concurrency", "prefork × 1, prefork × 2, solo, threads × 4", "prefork × 2", "214 / 194, 258 / 311, 366 / 204, 395 / 184"),
        Tried("prefetch_multiplier", "4, 100, 1000", "100", "245 / 197, 258 / 311, 232 / 193"),
        Tried("Redis: appendfsync", "off, always", "off", "in an earlier run, drain 1,363 and 569; always is durable at ack"),
        Tried("sending many", "group, one by one with one producer", "one by one", "in an earlier run: a group sends one by one as well"),
    ),
    tasks_max=10_000,
)

DRAMATIQ = Peer(
    name="dramatiq",
    title="Dramatiq + Redis",
    durability=MEMORY,
    serve=SERVE,
    client=(str(PYTHON), "dramatiq_client.py"),
    needs=NEEDS,
    versions=("pip:dramatiq", "pip:redis", "redis-server"),
    rough=Rough(one_by_one=2_400, bulk=2_200, drain=3_900, end_to_end=2_400),
    settings={"processes": 1, "threads": 8, "prefetch": 100},
    tried=(
        Tried("processes × threads", "1 × 2, 1 × 8, 2 × 4, 2 × 8", "1 × 8", "1,114 / 808, 1,932 / 1,398, 1,538 / 838, 2,207 / 737"),
        Tried("prefetch", "0 (its default), 100, 1000", "100", "1,662 / 960, 1,538 / 838, 1,916 / 1,570"),
        Tried("prefetch, with 3,000 tasks", "100, 1000", "100", "2,130 / 3,100, 1,800 / 2,200"),
    ),
    tasks_max=30_000,
)

RQ = Peer(
    name="rq",
    title="RQ",
    durability=MEMORY,
    serve=SERVE,
    client=(str(PYTHON), "rq_client.py"),
    needs=NEEDS,
    versions=("pip:rq", "pip:redis", "redis-server"),
    rough=Rough(one_by_one=1_100, bulk=5_900, drain=270, end_to_end=250),
    settings={"worker": "simple", "batch": 1_000},
    tried=(
        Tried("worker", "simple, fork", "simple", "102 / 55, 19 / 21"),
        Tried("batch of enqueue_many", "100, 1000", "1000", "bulk 2,970 and 2,740; the same within the noise"),
    ),
    tasks_max=5_000,
)

SAQ = Peer(
    name="saq",
    title="SAQ",
    durability=MEMORY,
    serve=SERVE,
    client=(str(PYTHON), "saq_client.py"),
    needs=NEEDS,
    versions=("pip:saq", "pip:redis", "redis-server"),
    rough=Rough(one_by_one=2_400, bulk=5_500, drain=1_700, end_to_end=1_250),
    settings={"concurrency": 50, "batch": 1_000, "concurrent_ops": 20, "result_poll": 0.002},
    tried=(
        Tried("concurrency", "10, 50, 200", "50", "326 / 392, 478 / 372, 200 loses its connections to Redis and does not finish"),
        Tried("concurrent_ops", "20, 200", "20", "with 200 the producer runs out of connections"),
        Tried("result_poll", "0.5 (its default), 0.002", "0.002", "result round trip 1,010 ms and 6 ms"),
        Tried("Redis: appendfsync", "off, always", "off", "in an earlier run, drain 1,725 and 1,624; always is durable at ack"),
    ),
    tasks_max=20_000,
)

ARQ = Peer(
    name="arq",
    title="arq",
    durability=MEMORY,
    serve=SERVE,
    client=(str(ARQ_PYTHON), "arq_client.py"),
    needs=("arq", "redis-server"),
    versions=("arq:arq", "arq:redis", "redis-server"),
    rough=Rough(one_by_one=1_600, bulk=3_300, drain=1_180, end_to_end=870),
    settings={"poll_delay": 0.005, "max_jobs": 100, "batch": 1_000},
    tried=(
        Tried("max_jobs", "10 (its default), 100, 500", "100", "104 / 99, 123 / 103, 110 / 107"),
        Tried("batch that is enqueued at once", "100, 1000", "1000", "123 / 103, 122 / 135"),
        Tried("poll_delay", "0.5 (its default), 0.005", "0.005", "in an earlier run, latency p50 280 ms and 7 ms"),
    ),
    tasks_max=10_000,
)

HUEY = Peer(
    name="huey",
    title="Huey",
    durability=MEMORY,
    serve=SERVE,
    client=(str(PYTHON), "huey_client.py"),
    needs=NEEDS,
    versions=("pip:huey", "pip:redis", "redis-server"),
    rough=Rough(one_by_one=3_500, bulk=3_500, drain=3_350, end_to_end=2_440),
    settings={"workers": 2, "worker_type": "process"},
    tried=(
        Tried("workers × thread, with 3,000 tasks", "1, 2, 8", "2", "1,360 / 1,640, 1,950 / 2,040, 1,660 / 2,100"),
        Tried("worker_type × 2, with 3,000 tasks", "thread, process, greenlet", "process", "1,950 / 2,040, 2,840 / 2,560, greenlet does not start"),
    ),
    tasks_max=30_000,
)
