"""The child process that runs CPU-bound tasks, one at a time, and the frames on its pipe.  `python -m taskq.worker.child '{"app": …, …}'`.

A frame is a length (u32, big endian) and a msgpack array.  The child says READY after it has imported the app (or BROKEN with the error), then
answers every job with one frame that names its task: id and token.  It ends when the pipe is closed or its parent dies; signals that ask to stop are
the parent's business.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from contextvars import copy_context
from typing import Any

import attrs
import msgpack

from taskq.worker.context import CURRENT, SERVING, Serving
from taskq.worker.copies import Copies
from taskq.worker.growth import Growth, resident_meter
from taskq.worker.job import Handback, Job, Outcome
from taskq.worker.loading import explain, load_app
from taskq.worker.logs import Logging
from taskq.worker.origin import take_signals
from taskq.worker.parent import die_with_parent, leave_to_parent
from taskq.worker.registry import TaskDefinition, Verdict
from taskq.worker.threads import call

READY, BROKEN, RESULT, FAILED, HANDED_BACK = range(5)
LENGTH = struct.Struct(">I")


@attrs.frozen
class ChildStart:
    """What a child is told on its command line."""

    app: str
    fd: int
    parent_pid: int
    queues: list[str]
    blocked: list[int]
    ignored: list[int]
    logging: Logging

    @classmethod
    def load(cls, text: str) -> ChildStart:
        fields = json.loads(text)
        return cls(**{**fields, "logging": Logging(**fields["logging"])})


def pack_job(job: Job) -> bytes:
    about = [job.attempt, job.timeout_ms, job.deadline_s, job.max_attempts, job.retry]
    return pack([job.id, job.token, job.queue, job.task_type, job.encoding, bytes(job.payload), *about])


def pack_outcome(task_id: bytes, token: bytes, outcome: Outcome) -> bytes:
    if isinstance(outcome, bytes):
        return pack([RESULT, task_id, token, outcome])
    if isinstance(outcome, Handback):
        return pack([HANDED_BACK, task_id, token, outcome.delay_ms])
    return pack([FAILED, task_id, token, *outcome])


def is_about(fields: list[Any], job: Job | None) -> bool:
    """Whether a child's answer is about this job."""
    return job is not None and fields[1:3] == [job.id, job.token]


def unpack_outcome(fields: list[Any]) -> Outcome:
    kind, _, _, *rest = fields
    if kind == RESULT:
        return bytes(rest[0])
    return Handback(rest[0]) if kind == HANDED_BACK else Verdict(*rest)


def pack(fields: list[Any]) -> bytes:
    body: bytes = msgpack.packb(fields)
    return LENGTH.pack(len(body)) + body


def main() -> None:
    start = ChildStart.load(sys.argv[1])
    take_signals(start.blocked, start.ignored)
    leave_to_parent(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    die_with_parent(start.parent_pid)
    pipe = socket.socket(fileno=start.fd)
    pipe.setblocking(True)  # whatever the app has set as the default of its sockets
    os.set_inheritable(start.fd, False)
    copies = Copies()
    copies.keep_from(lambda: [start.fd], lambda: None)
    copies.guard()
    try:
        start.logging.start()
        tasks = load_app(start.app).tasks
        start.logging.settle()
    except BaseException as error:
        pipe.sendall(pack([BROKEN, explain(error)]))
        return
    pipe.sendall(pack([READY]))
    growth = Growth(resident_meter())
    with pipe.makefile("rb") as stream:
        while head := stream.read(LENGTH.size):
            fields = msgpack.unpackb(stream.read(*LENGTH.unpack(head)))
            outcome = _run(tasks, start.queues, copies, fields)
            pipe.sendall(pack_outcome(fields[0], fields[1], outcome))
            del fields, outcome  # what has ended is not kept while this child waits
            growth.check()


def _run(tasks: dict[str, TaskDefinition], queues: list[str], copies: Copies, fields: list[Any]) -> Outcome:
    task_id, token, queue, task_type, encoding, payload, attempt, timeout_ms, deadline_s, *policy = fields
    job = Job(task_id, token, queue, tasks[task_type], payload, encoding, attempt, timeout_ms, "process", *policy)
    job.deadline_s = deadline_s
    context = copy_context()
    context.run(CURRENT.set, job)
    context.run(SERVING.set, Serving(queues, tasks, {token}))
    return context.run(call, job, copies)


if __name__ == "__main__":
    main()
