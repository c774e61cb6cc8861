"""What a worker's processes log, and how: their own lines, the failures of tasks, and what the code of tasks logs.

Rules:
- The configuration that the application makes while it is imported wins.  Ours is a default, for a root logger that has no handlers then.
- Each record that is made inside a task knows it: `taskq_id` and `taskq_type`, "" outside of tasks, whichever handler and format it goes to.
- A failed attempt is one record at ERROR of `taskq.worker.tasks` with its `exc_info`, made where the exception is, so that what listens to
  `logging` gets the exception itself.  A `Retry` was asked for by the task: a WARNING, without.
- Nothing here raises, whatever an exception or a handler of the application does, and nothing keeps an exception.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from taskq.control import Retry
from taskq.core.messages import DEFAULT_RETRY, DISCARD, RETRY_AFTER
from taskq.core.retry import ceiling_ms
from taskq.foreign import is_one_of
from taskq.printable import LogFormatter, printable, printable_lines
from taskq.worker.context import CURRENT
from taskq.worker.failure import error_text

if TYPE_CHECKING:
    from taskq.worker.job import Job
    from taskq.worker.registry import Verdict

log = logging.getLogger("taskq.worker.tasks")

OURS = "taskq"
FORMATS = ("text", "json")


@attrs.frozen
class Logging:
    """`level` None: info, or as the application configures it."""

    level: str | None = None
    form: str = "text"

    def start(self) -> None:
        """Before the application is imported: from here on records know their task."""
        factory = logging.getLogRecordFactory()

        def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = factory(*args, **kwargs)
            job = CURRENT.get(None)
            record.taskq_id, record.taskq_type = ("", "") if job is None else (job.id.hex(), job.task_type)
            return record

        logging.setLogRecordFactory(make)

    def settle(self) -> None:
        """After the application was imported: ours where it has configured nothing."""
        root, ours = logging.getLogger(), logging.getLogger(OURS)
        for name in [OURS, *root.manager.loggerDict]:
            if name.partition(".")[0] == OURS:
                logging.getLogger(name).disabled = False  # dictConfig silences whatever it does not name
        level = logging.getLevelNamesMapping()[(self.level or "info").upper()]
        if not root.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(JsonFormatter() if self.form == "json" else TextFormatter())
            root.addHandler(handler)
            if root.level == logging.WARNING:
                root.setLevel(level)
        if self.level is not None:
            ours.setLevel(level)


BY_DEFAULT = Logging()


class TextFormatter(LogFormatter):
    """One line a record; those of tasks say which task."""

    def __init__(self) -> None:
        super().__init__(f"%(asctime)s %(levelname)s %(name)s[{os.getpid()}] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        task_id = getattr(record, "taskq_id", "")
        if not task_id or record.name.partition(".")[0] == OURS:
            return super().formatMessage(record)
        shown = logging.makeLogRecord(record.__dict__)
        shown.message = f"({record.taskq_type} {task_id}) {record.message}"  # type: ignore[attr-defined]
        return super().formatMessage(shown)

    def formatException(self, ei: Any) -> str:
        return "\n".join("    " + line for line in printable_lines(error_text(ei[1])).splitlines())


class JsonFormatter(logging.Formatter):
    """One object a record: time, level, logger, pid, message; inside of tasks task_id and task_type; exception, if there was one."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if getattr(record, "taskq_id", ""):
            fields |= {"task_id": record.taskq_id, "task_type": record.taskq_type}  # type: ignore[attr-defined]
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = error_text(record.exc_info[1])
        return json.dumps(fields, ensure_ascii=False)


def tell_failure(job: Job, verdict: Verdict, error: BaseException | None = None) -> None:
    """Say once that this attempt has failed, of what, and what comes next."""
    job.told = True
    asked = error is not None and is_one_of(error, (Retry,))
    token = CURRENT.set(job)
    try:
        last_line = printable(verdict.error.rstrip().rpartition("\n")[2] or verdict.error_type)
        said = last_line if last_line.startswith(verdict.error_type) else f"{verdict.error_type}: {last_line}"
        level = logging.WARNING if asked and not is_final(job, verdict) else logging.ERROR
        log.log(level, "%s: failed with %s; %s", job.label, said, what_next(job, verdict), exc_info=None if asked else error)
    except BaseException:  # a handler of the application, or the exception itself
        with suppress(OSError, ValueError):
            print(f"taskq: {job.label} failed with {verdict.error_type}, which could not be logged", file=sys.stderr)
    finally:
        CURRENT.reset(token)
        del error


def is_final(job: Job, verdict: Verdict) -> bool:
    return verdict.disposition == DISCARD or 0 < job.max_attempts <= job.attempt


def what_next(job: Job, verdict: Verdict) -> str:
    """In words: whether the task is tried again, and when."""
    if verdict.disposition == DISCARD:
        return "it failed for good"
    if is_final(job, verdict):
        return f"it failed for good, after {job.attempt} attempts"
    of = f", as attempt {job.attempt + 1} of {job.max_attempts}" if job.max_attempts else ", if it has attempts left"
    if verdict.disposition == RETRY_AFTER:
        return f"it is tried again in {verdict.delay_ms / 1000:g} s{of}"
    return f"it is tried again within {ceiling_ms(job.retry or DEFAULT_RETRY, job.attempt) / 1000:g} s{of}"
