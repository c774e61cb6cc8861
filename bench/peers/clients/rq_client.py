"""RQ: jobs run inside the worker's process, without a fork for each."""

from __future__ import annotations

from bench_client import HOST, PORT, RESULTS, SETTINGS, Producer, chunks, mark, payload, working
from redis import Redis
from rq import Queue, SimpleWorker, Worker

redis = Redis(HOST, PORT)
queue = Queue("bench", connection=redis)
RESULT_S = 60 if RESULTS else 0


def work(to: str, n: int) -> int | None:
    mark(n)
    return n if RESULTS else None


def one(n: int) -> None:
    queue.enqueue_call("rq_client.work", kwargs=payload(n), result_ttl=RESULT_S)


def bulk(numbers: range) -> None:
    for chunk in chunks(numbers, SETTINGS["batch"]):
        queue.enqueue_many([Queue.prepare_data("rq_client.work", kwargs=payload(n), result_ttl=RESULT_S) for n in chunk])


def answer(n: int) -> object:
    job = queue.enqueue_call("rq_client.work", kwargs=payload(n), result_ttl=RESULT_S)
    result = job.latest_result(timeout=30)
    return None if result is None else result.return_value


if __name__ == "__main__":
    if working():
        kind = {"simple": SimpleWorker, "fork": Worker}[SETTINGS["worker"]]
        kind([queue], connection=redis, log_job_description=False).work(logging_level="ERROR")
    else:
        Producer(one, bulk, answer).run()
