"""The three programs: `taskq-broker`, `taskq-worker` and `taskq`.  Each starts fast: what it runs is imported when it runs."""

from __future__ import annotations

from taskq.cli.broker import broker
from taskq.cli.people import main
from taskq.cli.worker import worker

__all__ = ["broker", "main", "worker"]
