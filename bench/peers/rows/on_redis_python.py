"""Python queues on Redis.  The server keeps nothing on disk, the fastest that it has; all of them talk TCP over loopback."""

from __future__ import annotations

from .. import servers
from ..contract import Peer, Rough, Tried
from ..install import ARQ_PYTHON, PYTHON

MEMORY = "memory: lost when the server ends"
NEEDS = ("Python packages", "redis-server")
SERVE = servers.redis("--appendonly", "no")
PERSISTENCE = Tried("Redis: appendonly", "no, always", "no")

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
    tried=(PERSISTENCE,),
    tasks_max=20_000,
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
    settings={"processes": 2, "threads": 4, "prefetch": 100},
    tried=(PERSISTENCE,),
    tasks_max=50_000,
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
    tried=(PERSISTENCE,),
    tasks_max=10_000,
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
    tried=(PERSISTENCE,),
    tasks_max=30_000,
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
    settings={"poll_delay": 0.005, "max_jobs": 100, "batch": 100},
    tried=(PERSISTENCE,),
    tasks_max=20_000,
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
    settings={"workers": 2, "worker_type": "thread"},
    tried=(PERSISTENCE,),
    tasks_max=50_000,
)
