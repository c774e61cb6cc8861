"""Brokers without a queue library of their own: NATS JetStream with its Python client; Gearman and beanstalkd with clients that pipeline."""

from __future__ import annotations

import attrs

from .. import servers
from ..contract import Peer, Rough, Tried
from ..install import PYTHON

NO_RESULTS = "it has no results"
PIPELINED = (
    Tried("reserves in flight", "1, 100, 1000", "1000", "2,130 / 1,720, 9,280 / 6,420, 14,300 / 7,750; binlog off"),
    Tried("puts in one write", "100, 1000", "1000", "bulk 11,300 and 45,400; binlog off"),
    Tried("binlog", "off, -b -f50, -b -f0", "off, and -b -f0", "in an earlier run, drain 43,400, 31,900 and 4,200; only -f0 is durable at ack"),
)

NATS = Peer(
    name="nats",
    title="NATS JetStream",
    durability="written, fsync every 2 minutes",
    serve=servers.nats,
    client=(str(PYTHON), "nats_client.py"),
    needs=("Python packages", "nats-server"),
    versions=("nats-server", "pip:nats-py"),
    rough=Rough(one_by_one=3_100, bulk=19_000, drain=26_000, end_to_end=15_000),
    settings={"consumer": "push", "ack_pending": 5_000, "fetch": 500, "in_flight": 4_000},
    tried=(
        Tried("consumer", "pull with fetch(500), push", "push", "4,610 / 2,800, 8,550 / 3,210"),
        Tried("ack_pending", "1000, 5000", "5000", "8,900 / 3,750, 8,550 / 3,210; the same within the noise"),
        Tried("in_flight", "1000, 4000", "4000", "8,550 / 3,210, 9,640 / 4,020"),
    ),
    without={"result": NO_RESULTS},
)

GEARMAN = Peer(
    name="gearman",
    title="Gearman",
    durability="memory: lost when the server ends",
    serve=servers.gearman,
    client=(str(PYTHON), "gearman_client.py"),
    needs=("Python packages", "gearmand"),
    versions=("gearmand",),
    rough=Rough(one_by_one=4_300, bulk=113_000, drain=35_000, end_to_end=60_000),
    settings={"threads": 4, "submits": 1_000, "grabs": 100},
    tried=(
        Tried("grabs in flight", "10, 100, 1000", "100", "4,310 / 2,960, 23,400 / 13,200, 22,600 / 13,800"),
        Tried("submits in one write", "100, 1000", "1000", "bulk 26,200 and 39,900"),
        Tried("threads of the server", "1, 4", "4", "12,000 / 11,800, 23,400 / 13,200"),
    ),
)

BEANSTALKD = Peer(
    name="beanstalkd",
    title="beanstalkd",
    durability="memory: lost when the server ends",
    serve=servers.beanstalkd(synced=False),
    client=(str(PYTHON), "beanstalkd_client.py"),
    needs=("Python packages", "beanstalkd"),
    versions=("beanstalkd",),
    rough=Rough(one_by_one=6_000, bulk=55_000, drain=38_000, end_to_end=21_000),
    settings={"puts": 1_000, "reserves": 1_000},
    tried=PIPELINED,
    without={"result": NO_RESULTS},
)

BEANSTALKD_FSYNC = attrs.evolve(
    BEANSTALKD,
    name="beanstalkd-fsync",
    title="beanstalkd -b -f0",
    durability="fsync before the ack",
    serve=servers.beanstalkd(synced=True),
    rough=Rough(one_by_one=1_900, bulk=4_300, drain=4_200, end_to_end=2_000),
    tasks_max=30_000,
)
