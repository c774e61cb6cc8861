"""Huey on Redis."""

from __future__ import annotations

from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, mark, payload, working
from huey import RedisHuey

huey = RedisHuey("bench", host=HOST, port=PORT, results=RESULTS, read_timeout=1)


@huey.task(name="work")
def work(to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


def one(n: int) -> None:
    work(**payload(n))


def bulk(numbers: range) -> None:
    """It has nothing that sends many."""
    for n in numbers:
        work(**payload(n))


def answer(n: int) -> object:
    return work(**payload(n)).get(blocking=True, timeout=30, backoff=1.0, max_delay=0.001)


if __name__ == "__main__":
    if working():
        kind = {"workers": SETTINGS["workers"], "worker_type": SETTINGS["worker_type"]}
        huey.create_consumer(**kind, periodic=False, check_worker_health=False, initial_delay=0.01, backoff=1.0, max_delay=0.01).run()
    else:
        Producer(one, bulk, answer).run()
