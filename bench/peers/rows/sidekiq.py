"""Sidekiq, Debian's package, on Redis."""

from __future__ import annotations

from ..contract import Peer, Rough
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
    settings={"concurrency": 5, "batch": 1_000},
    without={"result": "it keeps no results"},
)
