"""`taskq enqueue --wait`: the id at once, then what the task waits for whenever that changes, and the end.

All of it is on stderr, so that stdout has the result alone.  Ctrl-C ends the waiting, never the task, and says how to go on.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NoReturn

from taskq.advice import did_you_mean
from taskq.errors import BrokerUnavailable, ResultTimeout, TaskqError
from taskq.printable import printable

if TYPE_CHECKING:
    from taskq.blocking import Client
    from taskq.handle import TaskInfo

LOOK_S = 1.0
EXIT_INTERRUPTED = 130
NAMELESS = re.compile(r"no connected worker (?:has task type|takes queue) ")
SECONDS = re.compile(r"\d{1,12}\.\d s")


def watched(client: Client, task_id: str) -> TaskInfo:
    """The task when it has ended."""
    _say(f"task {task_id}")
    told = ""
    try:
        while True:
            try:
                return client.wait(task_id, LOOK_S)
            except ResultTimeout:
                info = client.get(task_id)
            line = state_of(info) + suggestion(client, info)
            if not info.is_final and _essence(line) != told:
                told = _essence(line)
                _say(line)
    except KeyboardInterrupt:
        _interrupted(task_id)
    except BrokerUnavailable:
        _say(f"the task goes on; look at it with: taskq task {task_id}")
        raise


def state_of(info: TaskInfo) -> str:
    """What the task waits for, or that it runs, and what its last attempt said."""
    fields = info.fields
    failed = f"; the last attempt said {info.error.strip().rpartition(chr(10))[2]}" if info.error and info.state != "running" else ""
    if info.state == "running":
        return f"runs on {fields['worker'] or 'a worker'}, attempt {fields['attempts_used'] + 1}"
    return f"{info.state}: {fields.get('blocker') or 'about to run'}{failed}"


def suggestion(client: Client, info: TaskInfo) -> str:
    """`; did you mean send_email`, from what the connected workers take, for a task that none of them takes."""
    if not NAMELESS.search(info.fields.get("blocker") or ""):
        return ""
    try:
        workers = client.workers()
    except TaskqError:  # a token that may not look
        return ""
    what, name = ("queues", info.queue) if "takes queue" in info.fields["blocker"] else ("task_types", info.task_type)
    if not workers:
        return "; start one with taskq-worker --app MODULE"
    near = did_you_mean(name, {each for worker in workers for each in worker[what]})
    return near and f"; {near}"


def _essence(text: str) -> str:
    """What a line says beside its numbers, which change all the time."""
    return SECONDS.sub("", text)


def _interrupted(task_id: str) -> NoReturn:
    _say(f"the task goes on; look at it with: taskq task {task_id}, or end it with: taskq cancel {task_id}")
    sys.exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    print(f"taskq: {printable(text)}", file=sys.stderr, flush=True)
