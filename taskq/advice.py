"""The way out, for messages: what to write instead of a name that does not exist.

It is asked when something is refused already, so it may take its time.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

# words of other queues → what to write here
ELSEWHERE = {
    "retries": "max_attempts",
    "max_retries": "max_attempts",
    "retry": "max_attempts, backoff_base, retry_on",
    "attempts": "max_attempts",
    "max_tries": "max_attempts",
    "time_limit": "timeout",
    "soft_time_limit": "timeout",
    "job_timeout": "timeout",
    "default_retry_delay": "backoff_base",
    "retry_delay": "backoff_base",
    "retry_backoff": "backoff_base",
    "min_backoff": "backoff_base",
    "backoff": "backoff_base",
    "retry_backoff_max": "backoff_max",
    "max_backoff": "backoff_max",
    "autoretry_for": "retry_on",
    "retry_for": "retry_on",
    "throws": "no_retry_on",
    "dont_autoretry_for": "no_retry_on",
    "queue_name": "queue",
    "routing_key": "queue",
    "actor_name": "name",
    "task_name": "name",
    "task_id": "id",
    "job_id": "id",
    "countdown": "delay",
    "eta": "delay",
    "defer_by": "delay",
    "idempotency_key": "key",
    "executor": "pool",
}
# settings of the function that hold for one enqueue as well, and the other way round
FOR_ONE_ENQUEUE = ("delay", "key", "id", "deadline")
OF_THE_TASK = {"backoff_base": "retry", "backoff_factor": "retry", "backoff_max": "retry"}


def unknown_option(name: str, known: Collection[str]) -> str:
    """`unknown option 'retries'; write max_attempts; known are …`."""
    text = f"unknown option {name!r}"
    if name in FOR_ONE_ENQUEUE:
        text += f"; it belongs to one enqueue: task.options({name}=…).enqueue(…)"
    else:
        meant = [each for each in (OF_THE_TASK.get(name) or ELSEWHERE.get(name, "")).split(", ") if each in known]
        if meant:
            text += f"; write {' or '.join(meant)}"
        elif near := did_you_mean(name, known):
            text += f"; {near}"
    return f"{text}; known are {', '.join(known)}"


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`did you mean send_email`, "" if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"did you mean {near[0]}" if near else ""
