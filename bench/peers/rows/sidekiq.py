"""Sidekiq, Debian's package, on Redis."""

from __future__ import annotations

from ..contract import Peer, Rough, Tried
from ..install import find
from .on_redis_python import MEMORY, SERVE

SIDEKIQ = Peer(
    name="sidekiq",
    title="Sidekiq",
    durability=MEMORY,
    serve=SERVE,
    client=(find("ruby") or "ruby", "sidekiq_client.rb"),
    needs=("ruby", "sidekiq", "redis-server"),
    versions=("sidekiq", "ruby", "redis-server"),
    rough=Rough(one_by_one=3_500, bulk=83_000, drain=7_600, end_to_end=8_400),
    settings={"concurrency": 10, "batch": 1_000},
    tried=(
        Tried("concurrency", "1, 5, 10", "10", "457 / 473, 599 / 657, 788 / 935"),
        Tried("batch of push_bulk", "100, 1000", "1000", "bulk 7,770 and 9,820"),
        Tried("Redis: appendfsync", "off, always", "off", "in an earlier run, drain 7,607 and 5,707; always is durable at ack"),
    ),
    without={"result": "it keeps no results"},
)
