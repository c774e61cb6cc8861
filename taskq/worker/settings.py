"""The settings of a worker, made by the command line and handed from the keeper to the runner as JSON; and the constants of both."""

from __future__ import annotations

import json

import attrs

from taskq.worker.logs import Logging

# a result of this much measured work may wait in the worker beside what runs; more would sit here while another worker is idle
PREFETCH_S = 0.05
PREFETCH_MAX = 2_000
# how long a task may hold the loop or the GIL beyond its timeout before the keeper kills the runner
GRACE_S = 30.0
# the keeper waits so long for a runner that was told to stop, beyond its drain time
STOP_GRACE_S = 10.0
RESTART_MIN_S, RESTART_MAX_S, STEADY_S = 0.5, 30.0, 60.0
# how a worker is asked to stop: its tasks have time to end, or none
DRAIN, AT_ONCE = 1, 2
# exit codes: the runner died, and no other one was wanted; what no restart can cure, like an app that cannot be imported (EX_CONFIG of
# sysexits.h); a bug of the worker (EX_SOFTWARE)
EXIT_DIED = 1
EXIT_FATAL = 78
EXIT_BUG = 70
GC_THRESHOLDS = (50_000, 20, 50)


@attrs.frozen
class WorkerConfig:
    """`app` is `module` or `module:attribute`.  No `queues`: `default` and those of the app's tasks.  `pool` is auto, async, thread or process:
    where sync functions without a pool of their own run.  `drain_s`: how long a stopping worker lets its tasks finish.  `token`: the access token,
    which goes to the runner through its environment, as everybody can read the command line of a process.  `tls_ca`: a file with the authorities
    that may have signed a tls:// broker's certificate, see `trust`.  `log_level` None: info, or as the app configures its logging."""

    connect: str
    app: str | None = None
    queues: tuple[str, ...] = ()
    concurrency: int = 100
    pool: str = "auto"
    drain_s: float = 25.0
    reload: bool = False
    name: str = ""
    token: str = attrs.field(default="", repr=False)
    tls_ca: str = ""
    log_level: str | None = None
    log_format: str = "text"

    @property
    def logging(self) -> Logging:
        return Logging(self.log_level, self.log_format)

    def dump(self) -> str:
        return json.dumps(attrs.asdict(attrs.evolve(self, token="")))

    @classmethod
    def load(cls, text: str) -> WorkerConfig:
        fields = json.loads(text)
        return cls(**{**fields, "queues": tuple(fields["queues"])})
