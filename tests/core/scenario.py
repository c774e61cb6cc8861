"""The language of the scenario files: one command a line, and behind it, each after `> `, what it brought about.

    at 1.5s                                          time goes on, workers send their heartbeats
    worker w1 takes email runs send_email credit 2   a worker connects
    enqueue a send_email queue=email delay=5s        also: priority key body max_attempts; the word `resent` marks a frame sent again
    w1 acks a with hello · w1 fails a: text · w1 discards a: text · w1 retries a after 5s · w1 snoozes a for 5s · w1 hands back a
    w1 falls silent · w1 is heard again · w1 allows 2 more · w1 takes email again
    w1 loses its connection · w1 resumes holding a, b · w1 says goodbye · keeper reports w1 dead: SIGKILL
    cancel a · get a · wait for a · the broker restarts · the broker is stopped for 20s · the store is written

Effects are the facts that went to the journal and the frames that went to somebody, in their order; greetings and bare OKs are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from small_world import HEARTBEAT_MS, NOW_MS, PASS_MS, Job, Peer, Worker, World, enqueue_of

from taskq.core import messages as m
from taskq.core import records as r
from taskq.core.task import STATES
from taskq.ids import split

RESULTS = ("done", "LEASE_LOST")
OUTCOMES = ("created", "exists", "refused")
KEPT = ("kept", "lost", "kept, to be cancelled")
CANCELS = ("done", "requested", "already final", "not found")


def milliseconds(text: str) -> int:
    return round(float(text.removesuffix("ms"))) if text.endswith("ms") else round(float(text.removesuffix("s")) * 1000)


class Script:
    def __init__(self) -> None:
        self.world = World()
        self.ids: dict[str, bytes] = {}
        self.labels: dict[bytes, str] = {}
        self.tasks_of: dict[bytes, str] = {}
        self.workers: dict[str, Worker] = {}
        self.silent: set[str] = set()

    def play(self, text: str) -> str:
        """The same script with the effects that its commands have now."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("> "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [f"> {effect}" for effect in self.run(line)]
        self.world.check()
        return "\n".join(lines) + "\n"

    def run(self, line: str) -> list[str]:
        self.world.told.clear()
        for pattern, act in COMMANDS:
            found = re.fullmatch(pattern, line)
            if found:
                act(self, *found.groups())
                return [effect for who, what in self.world.told for effect in self.tell(who, what)]
        raise ValueError(f"not a command: {line!r}")

    # ---- effects -----------------------------------------------------------------------------------------------------------------------

    def tell(self, who: str, what: Any) -> list[str]:
        show = SHOW.get(type(what))
        return [f"{who}: {text}" for text in show(self, what)] if show else []

    def names(self, ids: bytes) -> list[str]:
        return [self.labels.get(task_id, "?") for task_id in split(ids, 16)]

    def by_token(self, tokens: bytes) -> list[str]:
        return [self.tasks_of.get(token, "?") for token in split(tokens, 8)]

    def since(self, ms: int) -> str:
        return f"{(ms - NOW_MS) / 1000:g}s"

    def admitted(self, record: r.Admitted) -> list[str]:
        dues = r.column(record.dues_ms, len(record.payloads))
        return [f"{name} admitted → {self.goes(0 if due else 2, due)}" for name, due in zip(self.names(record.ids), dues, strict=True)]

    def goes(self, state: int, due_ms: int) -> str:
        return STATES[state] + (f" until {self.since(due_ms)}" if due_ms else "")

    def granted(self, record: r.Granted) -> list[str]:
        self.tasks_of.update(zip(split(record.tokens, 8), self.names(record.ids), strict=True))
        return [f"{name} granted to {record.worker}" for name in self.names(record.ids)]

    def ended(self, record: r.Ended) -> list[str]:
        rows = zip(self.names(record.ids), record.outcomes, record.states, record.dues_ms, strict=True)
        return [f"{name} {outcome} → {self.goes(state, due)}" for name, outcome, state, due in rows]

    def delivered(self, message: m.Deliver) -> list[str]:
        names, count = self.names(message.ids), len(message.payloads)
        types, attempts = r.column(message.task_types, count), r.column(message.attempts, count)
        return [f"DELIVER {message.first + at}: {names[at]} {types[at]}, attempt {attempts[at]}" for at in range(count)]

    def enqueued(self, message: m.Enqueued) -> list[str]:
        errors = {error[0]: error[1] for error in message.errors}
        rows = zip(self.names(message.ids), message.outcomes, message.states, strict=True)
        return [
            f"ENQUEUED {name} {OUTCOMES[outcome]} {errors[at] if at in errors else STATES[state]}" for at, (name, outcome, state) in enumerate(rows)
        ]

    def beat(self, message: m.Beat) -> list[str]:
        lost = [f"BEAT {name} lost" for name in self.by_token(message.lost)]
        return lost + [f"BEAT {name} to be cancelled" for name in self.by_token(message.cancelled)]

    def resumed(self, message: m.Resumed) -> list[str]:
        return [f"RESUMED {KEPT[outcome]}" for outcome in message.outcomes] or ["RESUMED"]

    def task(self, message: m.TaskInfo) -> list[str]:
        info = message.info
        name = self.labels[bytes.fromhex(info["id"])]
        used = f"{info['attempts_used']} attempts used, {info['crashes']} crashes, {info['interruptions']} interruptions"
        result = f", result {bytes(message.payloads[1]).decode()}" if message.payloads[1] else ""
        why = f"; {info['blocker']}" if info["blocker"] else ""
        return [f"TASK {name} {info['state']}: {used}{result}{why}"]

    # ---- commands ----------------------------------------------------------------------------------------------------------------------

    def at(self, time: str) -> None:
        world, end_ms = self.world, NOW_MS + milliseconds(time)
        while world.now_ms < end_ms:
            passed_ms = world.now_ms - NOW_MS
            world.tick(min(PASS_MS - passed_ms % PASS_MS, end_ms - world.now_ms))
            if (world.now_ms - NOW_MS) % HEARTBEAT_MS == 0:
                for name, worker in self.workers.items():
                    if worker.connected and name not in self.silent:
                        worker.beat()
        if world.now_ms == NOW_MS:
            world.tick()

    def worker(self, name: str, queues: str, types: str, credit: str) -> None:
        worker = self.workers[name] = Worker(self.world, name)
        worker.take(*queues.split(","), runs=types.split(","))
        if int(credit):
            worker.allow(int(credit))

    def enqueue(self, label: str, task_type: str, options: str) -> None:
        words = options.split()
        named: dict[str, Any] = dict(word.split("=", 1) for word in words if "=" in word)
        queue, body = named.pop("queue", "email"), named.pop("body", label).encode()
        columns = {{"delay": "delays_ms", "key": "keys", "priority": "priorities"}.get(name, name): value for name, value in named.items()}
        columns.update({name: int(value) for name, value in columns.items() if value.isdigit() and name != "keys"})
        if "delays_ms" in columns:
            columns["delays_ms"] = milliseconds(named["delay"])
        task_id = self.ids.setdefault(label, self.world.new_id(queue))
        self.labels[task_id] = label
        self.world.client.ask(enqueue_of(body, queue=queue, task_type=task_type, ids=task_id, **columns), resent="resent" in words)

    def job(self, name: str, label: str) -> Job:
        return next(job for job in reversed(self.workers[name].jobs) if job.id == self.ids[label])

    def acks(self, name: str, label: str, result: str | None) -> None:
        self.workers[name].ack(self.job(name, label), result=(result or "").encode())

    def fails(self, name: str, label: str, error: str) -> None:
        self.workers[name].fail(self.job(name, label), error=error)

    def discards(self, name: str, label: str, error: str) -> None:
        self.workers[name].fail(self.job(name, label), how=m.DISCARD, error=error)

    def retries(self, name: str, label: str, after: str) -> None:
        self.workers[name].fail(self.job(name, label), how=m.RETRY_AFTER, after_ms=milliseconds(after))

    def releases(self, name: str, label: str, delay: str | None = None) -> None:
        self.workers[name].release(self.job(name, label), delay_ms=milliseconds(delay) if delay else 0)

    def resumes(self, name: str, labels: str | None) -> None:
        self.silent.discard(name)
        self.workers[name].resume(self.world, *(self.job(name, label) for label in (labels or "").split(", ") if label))

    def is_heard(self, name: str) -> None:
        self.silent.discard(name)
        self.workers[name].beat()

    def says_goodbye(self, name: str) -> None:
        self.workers[name].ask(m.Bye())
        self.workers[name].disconnect()

    def dead(self, name: str, cause: str) -> None:
        worker = self.workers[name]
        keeper = Peer(self.world, "keeper", "keeper")
        keeper.ask(m.Keepalive(worker.identity, worker.secret, worker.received))
        keeper.ask(m.Died(worker.identity, worker.secret, cause))
        worker.disconnect()

    def get(self, label: str, wait_ms: int = 0) -> None:
        self.world.client.ask(m.Get(self.ids[label], wait_ms))


SHOW: dict[type, Callable[[Script, Any], list[str]]] = {
    r.Admitted: Script.admitted,
    r.Granted: Script.granted,
    r.Completed: lambda script, record: [f"{name} completed" for name in script.names(record.ids)],
    r.Ended: Script.ended,
    r.Promoted: lambda script, record: [f"{name} due → pending" for name in script.names(record.ids)],
    r.Dropped: lambda script, record: [f"{name} dropped → cancelled" for name in script.names(record.ids)],
    r.CancelAsked: lambda script, record: [f"{name} is to be cancelled" for name in script.names(record.ids)],
    m.Enqueued: Script.enqueued,
    m.Deliver: Script.delivered,
    m.Reported: lambda script, message: [f"REPORTED {RESULTS[outcome]}" for outcome in message.outcomes],
    m.Revoke: lambda script, message: [f"REVOKE {name}" for name in script.by_token(message.tokens)],
    m.Beat: Script.beat,
    m.Resumed: Script.resumed,
    m.Cancelled: lambda script, message: [f"CANCELLED {CANCELS[outcome]}" for outcome in message.outcomes],
    m.TaskInfo: Script.task,
    m.Error: lambda script, message: [f"ERROR {message.code}"],
}

COMMANDS: list[tuple[str, Callable[..., None]]] = [
    (r"at (\S+)", Script.at),
    (r"worker (\w+) takes (\S+) runs (\S+) credit (\d+)", Script.worker),
    (r"enqueue (\w+) (\w+)(.*)", Script.enqueue),
    (r"(\w+) acks (\w+)(?: with (.+))?", Script.acks),
    (r"(\w+) fails (\w+): (.+)", Script.fails),
    (r"(\w+) discards (\w+): (.+)", Script.discards),
    (r"(\w+) retries (\w+) after (\S+)", Script.retries),
    (r"(\w+) snoozes (\w+) for (\S+)", Script.releases),
    (r"(\w+) hands back (\w+)", Script.releases),
    (r"(\w+) allows (\d+) more", lambda script, name, more: script.workers[name].allow(int(more))),
    (r"(\w+) falls silent", lambda script, name: script.silent.add(name)),
    (r"(\w+) is heard again", Script.is_heard),
    (r"(\w+) loses its connection", lambda script, name: script.workers[name].disconnect()),
    (r"(\w+) takes (\S+) again", lambda script, name, queue: script.workers[name].take(queue)),
    (r"(\w+) resumes(?: holding (.+))?", Script.resumes),
    (r"(\w+) says goodbye", Script.says_goodbye),
    (r"keeper reports (\w+) dead: (.+)", Script.dead),
    (r"cancel (\w+)", lambda script, label: script.world.client.ask(m.Cancel(script.ids[label]))),
    (r"get (\w+)", Script.get),
    (r"wait for (\w+)", lambda script, label: script.get(label, 60_000)),
    (r"the broker restarts", lambda script: script.world.restart()),
    (r"the broker is stopped for (\S+)", lambda script, time: script.world.tick(milliseconds(time))),
    (r"the store is written", lambda script: script.world.flushed()),
]
