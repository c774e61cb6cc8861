"""taskq: a distributed task queue in one `pip install`.  These are the public names; everything else may change."""

from __future__ import annotations

from taskq.app import App, TaskFunction
from taskq.blocking import Client
from taskq.client import AsyncClient
from taskq.control import Control, Discard, Retry, Snooze, WaitInTask
from taskq.errors import (
    AuthFailed,
    AuthRequired,
    BadRequest,
    BrokerUnavailable,
    ConfigError,
    DiskLow,
    Draining,
    Forbidden,
    IdConflict,
    IdTooOld,
    KeyConflict,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    QueueFull,
    QueuesFull,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    TaskqError,
)
from taskq.handle import EnqueueError, TaskHandle, TaskInfo
from taskq.version import VERSION as __version__
from taskq.worker.context import TaskContext, current_task

__all__ = [
    "App",
    "AsyncClient",
    "AuthFailed",
    "AuthRequired",
    "BadRequest",
    "BrokerUnavailable",
    "Client",
    "ConfigError",
    "Control",
    "Discard",
    "DiskLow",
    "Draining",
    "EnqueueError",
    "Forbidden",
    "IdConflict",
    "IdTooOld",
    "KeyConflict",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "QueueFull",
    "QueuesFull",
    "ResultTimeout",
    "Retry",
    "Snooze",
    "TaskCancelled",
    "TaskContext",
    "TaskFailed",
    "TaskFunction",
    "TaskHandle",
    "TaskInfo",
    "TaskqError",
    "WaitInTask",
    "__version__",
    "current_task",
]
