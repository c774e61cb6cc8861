"""Celery on Redis."""

from __future__ import annotations

from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, mark, payload, working
from celery import Celery

URL = f"redis://{HOST}:{PORT}/0"
app = Celery("bench", broker=URL, backend=URL if RESULTS else None)
app.conf.update(
    task_ignore_result=not RESULTS,
    task_acks_late=False,
    worker_prefetch_multiplier=SETTINGS["prefetch_multiplier"],
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="work")
def work(to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


def one(n: int) -> None:
    work.apply_async(kwargs=payload(n))


def bulk(numbers: range) -> None:
    """Its groups are sent one by one as well."""
    with app.producer_pool.acquire(block=True) as producer:
        for n in numbers:
            work.apply_async(kwargs=payload(n), producer=producer)


def answer(n: int) -> object:
    return work.apply_async(kwargs=payload(n)).get(timeout=30, interval=0.001)


if __name__ == "__main__":
    if working():
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
        app.worker_main(["worker", f"--pool={SETTINGS['pool']}", f"--concurrency={SETTINGS['concurrency']}", *quiet])
    else:
        Producer(one, bulk, answer).run()
