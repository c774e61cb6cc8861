"""Every error of taskq, each with a stable wire code.

An *answer* is a typed refusal: it travels as an Error frame or an HTTP error body and leaves everything as it was.  A *protocol error* closes
the connection that caused it.  A *start error* makes a program exit with a message.  Anything else that is raised is a bug, and stops the process.

The docstring of a class is its default message; `retryable` says whether the same request can succeed later without being changed.

What somebody sent stands in a message only as `echo` shows it, so that a message is short whatever was sent; a door passes each message through
`told` besides.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

ECHO_CHARACTERS_MAX = 200
MESSAGE_CHARACTERS_MAX = 1_000


def echo(value: object) -> str:
    """What somebody sent, as a message may show it: its repr, of which a long one loses its end.  Never raises."""
    part = value[:ECHO_CHARACTERS_MAX] if isinstance(value, (str, bytes)) else value
    try:
        shown = repr(part)
    except Exception:  # an int of more than 4,300 digits, an object of somebody else
        shown = f"<{type(value).__name__}>"
    return _cut(shown if part is value or len(part) == len(value) else shown + "…", ECHO_CHARACTERS_MAX)  # type: ignore[arg-type]


def told(message: str) -> str:
    """A message, or the name of a field, as it goes to a peer."""
    return _cut(message, MESSAGE_CHARACTERS_MAX)


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


class TaskqError(Exception):
    """Something went wrong inside taskq."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, field: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.field = field
        self.retry_after_ms = retry_after_ms

    @property
    def message(self) -> str:
        return str(self.args[0])

    def bare(self) -> Self:
        """The same error without where it came from: that refers to all that was at hand there, the bytes of a peer above all, in cycles that
        only a collection frees.  For an error that is kept, or handed on as a value."""
        self.__traceback__ = self.__context__ = self.__cause__ = None
        return self


class Answer(TaskqError):
    """The request was refused and nothing was changed."""


class BadRequest(Answer):
    """A field of the request is not valid."""

    code = "BAD_REQUEST"


class PayloadTooLarge(Answer):
    """The payload is larger than the broker accepts; store it elsewhere and enqueue a reference."""

    code = "PAYLOAD_TOO_LARGE"


class NotFound(Answer):
    """No task with this id: it never existed, or its retention has passed."""

    code = "NOT_FOUND"


class IdConflict(Answer):
    """A task with this id exists with other content; use a new id."""

    code = "ID_CONFLICT"


class KeyConflict(Answer):
    """A task with this key exists in the queue with other content; use another key."""

    code = "KEY_CONFLICT"


class IdTooOld(Answer):
    """The id is older than the finished tasks that are still kept, so its outcome is unknown; it was not run again."""

    code = "ID_TOO_OLD"


class LeaseLost(Answer):
    """The lease token is not current; the report changed nothing."""

    code = "LEASE_LOST"


class Overloaded(Answer):
    """The broker is behind with its work; retry after the given time."""

    code = "OVERLOADED"
    retryable = True


class QueueFull(Answer):
    """The queue has as many unfinished tasks, or as many bytes of them, as it may have; retry when workers have taken some."""

    code = "QUEUE_FULL"
    retryable = True


class QueuesFull(Answer):
    """The broker has as many queues as it may have, or this access token has brought its share of them; retry when some have run empty."""

    code = "QUEUES_FULL"
    retryable = True


class DiskLow(Answer):
    """The broker's disk is nearly full, so it admits nothing new; what it has goes on.  Retry when there is space."""

    code = "DISK_LOW"
    retryable = True


class Draining(Answer):
    """The broker is stopping and admits nothing new; retry on the next broker or after the restart."""

    code = "DRAINING"
    retryable = True


class Forbidden(Answer):
    """The session's role, or its access token, does not allow the request."""

    code = "FORBIDDEN"


class ProtocolError(TaskqError):
    """The peer broke the protocol; the connection is closed."""

    code = "BAD_FRAME"


class FrameTooLarge(ProtocolError):
    """The frame is larger than the limit; the stream cannot be resynchronised."""

    code = "FRAME_TOO_LARGE"


class UnknownKind(ProtocolError):
    """The frame kind is unknown to this broker."""

    code = "UNKNOWN_KIND"


class OutOfOrder(ProtocolError):
    """The frame is not allowed in this state of the session."""

    code = "OUT_OF_ORDER"


class SessionOver(ProtocolError):
    """The session is over, since its keeper said that the worker died; connect anew and begin a new one."""

    code = "SESSION_OVER"


class SessionTaken(ProtocolError):
    """The session was taken over by another connection that resumed it; connect anew and begin a new one."""

    code = "SESSION_TAKEN"


class VersionUnsupported(ProtocolError):
    """The protocol version is not supported."""

    code = "VERSION_UNSUPPORTED"


class SlowConsumer(ProtocolError):
    """The peer does not read what it asked for."""

    code = "SLOW_CONSUMER"


class TooManyConnections(ProtocolError):
    """The broker has reached its connection limit."""

    code = "TOO_MANY_CONNECTIONS"
    retryable = True


class AuthRequired(ProtocolError):
    """This broker wants an access token: set TASKQ_TOKEN, or give token= or --token-file; on the broker, taskq token create makes one."""

    code = "AUTH_REQUIRED"


class AuthFailed(ProtocolError):
    """The access token is not known to this broker, was revoked, or is not the one that was made; taskq token list shows those that are."""

    code = "AUTH_FAILED"


class TimedOut(ProtocolError):
    """The peer was too slow: its greeting, the rest of a frame or a sign of life did not come in time."""

    code = "TIMED_OUT"
    retryable = True


class InternalError(TaskqError):
    """A bug in the broker; it was logged there, and the connection is closed."""

    code = "INTERNAL"


class StartError(TaskqError):
    """The program cannot start."""

    code = "START"
    exit_code: ClassVar[int] = 1


class ConfigError(StartError):
    """A setting is not valid."""

    code = "CONFIG"
    exit_code = 78


class DataFolderLocked(StartError):
    """Another broker uses this data folder; stop it, or choose another folder with --data."""

    code = "DATA_FOLDER_LOCKED"
    exit_code = 73


class DataFolderUnsafe(StartError):
    """Other users of this machine could change the data folder; nothing in it was read."""

    code = "DATA_FOLDER_UNSAFE"
    exit_code = 73


class DataFolderGone(StartError):
    """The data folder was deleted or moved while the broker ran; put it back, or start another broker with --data."""

    code = "DATA_FOLDER_GONE"
    exit_code = 74


class JournalCorrupt(StartError):
    """The journal is damaged in a place that had been synced; the files were left untouched."""

    code = "JOURNAL_CORRUPT"
    exit_code = 65


class StoreCorrupt(StartError):
    """The store is damaged; the files were left untouched."""

    code = "STORE_CORRUPT"
    exit_code = 65


class KeyDamaged(StartError):
    """The key that proves sessions is damaged; the file was left untouched."""

    code = "KEY_DAMAGED"
    exit_code = 65


class BrokerUnavailable(TaskqError):
    """The broker could not be reached before the deadline; the request may have been applied, and sending it again with the same id is safe."""

    code = "BROKER_UNAVAILABLE"
    retryable = True


class TlsFailed(BrokerUnavailable):
    """No safe connection could be agreed on with the broker; nothing was sent."""

    code = "TLS_FAILED"
    retryable = False


class AboutTask(TaskqError):
    """What became of a task is not what was asked for.  `id`, `task_type`: which one; `error`: the text of its last failed attempt."""

    code = "ABOUT_TASK"

    def __init__(self, message: str = "", *, field: str = "", retry_after_ms: int = 0, id: str = "", task_type: str = "", error: str = "") -> None:
        super().__init__(message, field=field, retry_after_ms=retry_after_ms)
        self.id = id
        self.task_type = task_type
        self.error = error


class ResultTimeout(AboutTask):
    """The task did not reach a final state in time; it goes on."""

    code = "RESULT_TIMEOUT"
    retryable = True

    def __init__(self, message: str = "", *, state: str = "", blocker: str = "", **about: Any) -> None:
        """`blocker`: why it does not run now, "" if it does."""
        super().__init__(message, **about)
        self.state = state
        self.blocker = blocker


class TaskFailed(AboutTask):
    """The task is in state failed."""

    code = "TASK_FAILED"

    def __init__(self, message: str = "", *, error_type: str = "", attempts: int = 0, **about: Any) -> None:
        """`error_type`: the name of the exception that the last attempt ended with; `attempts`: how many it has used."""
        super().__init__(message, **about)
        self.error_type = error_type
        self.attempts = attempts


class TaskCancelled(AboutTask):
    """The task was cancelled."""

    code = "TASK_CANCELLED"


def _tree(cls: type[TaskqError]) -> list[type[TaskqError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[TaskqError]] = {cls.code: cls for cls in reversed(_tree(TaskqError))}


def from_wire(code: str, message: str, field: str = "", retry_after_ms: int = 0) -> TaskqError:
    """The exception for an error that a broker sent; an unknown code becomes a plain TaskqError that names it."""
    cls = BY_CODE.get(code)
    if cls is None:
        return TaskqError(f"{code}: {message}", field=field, retry_after_ms=retry_after_ms)
    return cls(message, field=field, retry_after_ms=retry_after_ms)
