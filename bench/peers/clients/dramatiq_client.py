"""Dramatiq on Redis."""

from __future__ import annotations

import os
import sys

import dramatiq
from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, mark, payload, working
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = f"redis://{HOST}:{PORT}/0"
broker = RedisBroker(url=URL)
if RESULTS:
    broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name="work", **({"store_results": True} if RESULTS else {}))
def work(to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


def one(n: int) -> dramatiq.Message:
    return work.send_with_options(kwargs=payload(n))


def bulk(numbers: range) -> None:
    """It has nothing that sends many."""
    for n in numbers:
        one(n)


def answer(n: int) -> object:
    return one(n).get_result(block=True, timeout=30_000)


if __name__ == "__main__":
    if working():
        count = ["--processes", str(SETTINGS["processes"]), "--threads", str(SETTINGS["threads"])]
        os.environ["dramatiq_queue_prefetch"] = str(SETTINGS["prefetch"])  # noqa: SIM112  (its own spelling)
        os.execv(sys.executable, [sys.executable, "-m", "dramatiq", "dramatiq_client", *count, "--skip-logging"])
    Producer(one, bulk, answer).run()
