"""The table: taskq and what it is measured beside, in the order in which they are measured and shown."""

from __future__ import annotations

from ..contract import Peer
from .brokers import BEANSTALKD, BEANSTALKD_FSYNC, GEARMAN, NATS
from .of_taskq import TASKQ
from .on_node import BULLMQ, GRAPHILE, PGBOSS
from .on_redis_python import ARQ, CELERY, DRAMATIQ, HUEY, RQ, SAQ
from .sidekiq import SIDEKIQ

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        TASKQ, CELERY, DRAMATIQ, RQ, SAQ, ARQ, HUEY, BULLMQ, SIDEKIQ, GRAPHILE, PGBOSS, NATS, GEARMAN, BEANSTALKD, BEANSTALKD_FSYNC,
    )
}  # fmt: skip
