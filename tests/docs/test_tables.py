"""Tables of the documents that repeat the code say what it does."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Iterator

import pytest
from blocks import read, table

from taskq import App, errors
from taskq.actors.disk import BALLAST_BYTES, BALLAST_PART, FLOOR_BYTES, FLOOR_PART
from taskq.actors.doors import FILES_SPARE, WAITS_MAX, TcpLimits
from taskq.actors.session import GREETING_BYTES_MAX, TURN_FRAMES, WRITE_BUFFER_BYTES
from taskq.actors.store import DIRTY_TASKS_MAX
from taskq.actors.turns import TURN_REQUESTS, TURN_S
from taskq.actors.watch import MEMORY_PART
from taskq.cli import broker as broker_command
from taskq.cli import people
from taskq.cli.broker import EXIT_CRASH
from taskq.cli.worker import WorkerSettings
from taskq.config import FRAME_ROOM_BYTES, KIB, MIB, BrokerConfig, settings_of, show_bytes, show_seconds
from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.admission import LATE_MS
from taskq.core.attempt import ERROR_BYTES_MAX, ERROR_TYPE_BYTES_MAX, HISTORY_MAX, TEXTS_BYTES_MAX
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.enqueue import NAME_RULE, TASKS_MAX
from taskq.core.grant import blocker
from taskq.core.line import BEYOND_BYTES, LINE_HOT_BYTES, LINE_HOT_MIN, Budget
from taskq.core.lookup import WAIT_MS_MAX
from taskq.core.messages import HORIZON_MS, KEY_CHARS_MAX
from taskq.core.names import share_of
from taskq.core.report import COUNTERS
from taskq.core.shard import Shard
from taskq.core.task import CRASHES_ALONE, CRASHES_MAX, FINAL, NEXT, PENDING, RETRYING, SCHEDULED, STATES, Attempt, Options, Task
from taskq.durations import seconds
from taskq.gateway.http1 import HttpLimits
from taskq.node import _tcp_limits
from taskq.options import CHECKS
from taskq.protocol.guard import DEPTH_MAX
from taskq.worker.settings import EXIT_BUG, EXIT_DIED, EXIT_FATAL, GRACE_S, RESTART_MAX_S, RESTART_MIN_S

OPERATIONS = read("docs/operations.md")
LIFECYCLE = read("docs/task-lifecycle.md")
README = read("README.md")
NOW_MS = 1_700_000_000_000


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## (?:\d+\. )?{re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"there is no section {heading!r}"
    return found[1]


# ---- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heading", "settings"), [("Settings of the broker", BrokerConfig), ("Settings of a worker", WorkerSettings)])
def test_every_setting_is_listed_with_its_default_and_its_variable(heading: str, settings: type) -> None:
    _, *rows = table(section(OPERATIONS, heading), "flag")
    assert rows == [
        [f"`{row.flag}`", row.kind.metavar.replace("|", ", ") or "(a switch)", row.shown_default(), f"`{row.environment}`", row.help]
        for row in settings_of(settings)
    ]


def test_the_flags_that_the_text_names_exist() -> None:
    known = {row.flag for settings in (BrokerConfig, WorkerSettings) for row in settings_of(settings)}
    known |= {option for command in people.main.commands.values() for parameter in command.params for option in parameter.opts}
    known |= {option for parameter in broker_command.params for option in parameter.opts}
    for text in (OPERATIONS, LIFECYCLE, README):
        told = set(re.findall(r"`(--[a-z-]+)", text))
        assert told <= known, told - known


# ---- states ------------------------------------------------------------------------------------------------------------------------


def test_the_states_are_those_of_the_code_in_its_order() -> None:
    _, *rows = table(LIFECYCLE, "state")
    assert [row[:2] for row in rows] == [[name, "yes" if state in FINAL else "no"] for state, name in enumerate(STATES)]


def test_the_transitions_are_those_of_the_code_and_no_others() -> None:
    _, *rows = table(LIFECYCLE, "from")
    told = [(STATES.index(begin), STATES.index(end)) for begin, end, _ in rows]
    assert len(told) == len(set(told))
    assert set(told) == {(begin, end) for begin, ends in NEXT.items() for end in ends}


def test_the_states_that_lead_nowhere_are_named() -> None:
    (sentence,) = re.findall(r"^(.*) lead nowhere\.$", LIFECYCLE, re.M)
    assert set(re.findall("`([a-z]+)`", sentence)) == {STATES[state] for state, ends in NEXT.items() if not ends}


def test_the_outcomes_are_counted_as_the_table_says() -> None:
    _, *rows = table(LIFECYCLE, "outcome")
    words = {"an attempt": "attempts", "a crash": "crashes", "an interruption": "interruptions"}
    told = {outcome: words[counted] for outcome, _, counted, _ in rows if counted != "nothing"}
    assert told == {"completed": "attempts", **COUNTERS}
    listed = re.search(r"`outcome` is (.*?);", inspect.getdoc(Attempt) or "")
    assert listed is not None
    assert {row[0] for row in rows} == set(re.findall("[a-z]+", listed[1])) - {"or"}


def test_the_numbers_of_the_life_of_a_task_are_those_of_the_code() -> None:
    base_ms, factor, longest_ms = m.DEFAULT_RETRY
    for number in (
        f"Base is {base_ms / 1000:g} s, factor {factor:g}, longest {longest_ms / 3_600_000:g} h",
        f"… {base_ms * factor ** (m.DEFAULT_MAX_ATTEMPTS - 2) / 1000:g} s for the nine retries of ten attempts",
        f"the newest {HISTORY_MAX} are kept",
        f"`--lease` ({show_seconds(BrokerConfig().lease).replace('s', ' s')})",
        f"`--heartbeat` ({show_seconds(BrokerConfig().heartbeat).replace('s', ' s')})",
        f"If it has not ended {GRACE_S:g} s later",
        f"({BrokerConfig().finished_rows_max:,})",
    ):
        assert number in " ".join(LIFECYCLE.split()), number
    assert CRASHES_MAX == 3 and m.DEFAULT_MAX_ATTEMPTS == 10, "the text says third crash, and nine retries"


# ---- limits, exit codes --------------------------------------------------------------------------------------------------------------


def test_the_limits_are_those_of_the_code() -> None:
    config, http = BrokerConfig(), HttpLimits()
    assert TcpLimits(silence_s=config.heartbeat * config.heartbeats_missed_max) == _tcp_limits(config)
    assert http.body_bytes_max == http.payload_bytes_max + FRAME_ROOM_BYTES
    _, *rows = table(section(OPERATIONS, "Limits"), "what")
    assert {row[0]: row[1].replace("`", "") for row in rows} == {
        "a payload, a result": show_bytes(config.payload_bytes_max),
        "a frame over TCP": show_bytes(config.frame_bytes_max),
        "a body over HTTP": f"a payload and {show_bytes(FRAME_ROOM_BYTES)}",
        "tasks in one request": f"{TASKS_MAX:,}",
        "names of queues and task types": NAME_RULE,
        "a key": f"{KEY_CHARS_MAX} characters",
        "max_attempts".join("``"): "1,000",
        "a delay, a timeout": f"{HORIZON_MS // 86_400_000} days",
        "attempts kept in a task's history": f"{HISTORY_MAX}",
        "the text of an error": f"{show_bytes(ERROR_BYTES_MAX)} in UTF-8",
        "the texts of the errors of a task": show_bytes(TEXTS_BYTES_MAX),
        "a wait over HTTP or the wire": f"{WAIT_MS_MAX // 1000}s",
        "connections": f"{config.connections_max:,} on TCP and on HTTP each",
        "connections from one other machine": f"{config.address_connections_max:,} on TCP and on HTTP each",
        "TCP connections without HELLO": f"{config.greeting_connections_max}",
        "a frame before WELCOME": show_bytes(GREETING_BYTES_MAX),
        "the greeting of a TCP connection": show_seconds(config.greeting_deadline),
        "a frame that comes slowly": f"{show_seconds(config.frame_deadline)}, then {show_bytes(config.rate_bytes_min)} a second",
        "a TCP connection without a word": f"{config.heartbeats_missed_max} heartbeats",
        "requests of a TCP connection that are worked on": f"{config.requests_max}",
        "waits for the end of a task on a TCP connection": f"{WAITS_MAX:,}",
        "frames of a TCP connection in one turn": f"{TURN_FRAMES}",
        "answers and deliveries that a TCP peer does not read": f"{show_bytes(WRITE_BUFFER_BYTES[1])}, then nothing is delivered or read",
        "how slowly it may read then": f"{show_bytes(config.rate_bytes_min)} a second; {show_bytes(config.unread_bytes_max)} in "
        f"{show_seconds(config.unread_deadline)} while more than that waits",
        "requests not whole and answers not read, of all connections": show_bytes(config.held_bytes_max),
        "the head of an HTTP request": f"{show_bytes(config.http_head_bytes_max)}, {show_seconds(config.http_head_deadline)}",
        "an HTTP request, and the reading of its answer": show_seconds(config.http_request_deadline),
        "an idle HTTP connection": show_seconds(config.http_idle),
        "requests of an HTTP connection that wait for answers": f"{http.queued_max}",
        "requests of all HTTP connections in one turn": f"{TURN_REQUESTS}, or {round(TURN_S * 1000)}ms",
        "finished tasks that are kept": f"{config.finished_rows_max:,}",
        "memory for waiting tasks": show_bytes(config.hot_bytes_max),
        "memory of the broker": f"{MEMORY_PART:.0%} of what it may have",
        "queues": f"{config.queues_max:,}",
        "queues that one access token brought": f"{share_of(config.queues_max):,}",
        "unfinished tasks in a queue": f"{config.queue_tasks_max:,}",
        "bytes of payload in unfinished tasks of a queue": show_bytes(config.queue_bytes_max),
        "tasks that a worker has at a time": f"{config.leases_max:,}",
        "bytes that wait for the journal": show_bytes(config.journal_backlog_bytes_max),
        "one write to the journal": f"{config.journal_delay_max * 1000:g}ms",
        "bytes that wait for the store": show_bytes(config.store_backlog_bytes_max),
        "tasks that wait for the store": f"{DIRTY_TASKS_MAX:,}",
        "lateness of the loop": f"{config.loop_delay_max * 1000:g}ms for {LATE_MS / 1000:g}s",
        "free space on the disk": f"{show_bytes(FLOOR_BYTES)}, or {FLOOR_PART:.0%} of it",
        "the ballast": f"{show_bytes(BALLAST_BYTES)}, or {BALLAST_PART:.0%} of the disk",
        "a lease": show_seconds(config.lease),
        "the type of an error": f"{ERROR_TYPE_BYTES_MAX} bytes in UTF-8",
        "nesting in a request over TCP": f"{DEPTH_MAX}",
    }
    told = " ".join(row[2] for row in rows)
    assert f"open files of the process, less {FILES_SPARE}" in told
    assert f"{LINE_HOT_MIN:,} tasks in memory beyond it, of {show_bytes(LINE_HOT_BYTES)} together, and all lines {show_bytes(BEYOND_BYTES)}" in told
    for name, most in (("payload_bytes_max", 64 * MIB), ("frame_bytes_max", 65 * MIB)):
        assert f"`{name}`, up to {show_bytes(most)}" in told
        largest = {"payload_bytes_max": most, "frame_bytes_max": 65 * MIB} if name == "payload_bytes_max" else {name: most}
        BrokerConfig(**largest)
        with pytest.raises(errors.ConfigError, match="out of range"):
            BrokerConfig(**{**largest, name: most + KIB})
    assert f"{DIRTY_TASKS_MAX:,} tasks waiting for the store" in " ".join(OPERATIONS.split())


def test_the_exit_codes_are_those_of_the_code() -> None:
    _, *rows = table(section(OPERATIONS, "Exit codes"), "program")
    told = {program: sorted(int(code) for name, code, _ in rows if name == program) for program in {row[0] for row in rows}}
    starts = {cls.exit_code for cls in (errors.StartError, *errors.StartError.__subclasses__())}
    assert told["`taskq-broker`"] == sorted({0, EXIT_CRASH, *starts})
    assert told["`taskq-worker`"] == sorted({0, EXIT_DIED, EXIT_BUG, EXIT_FATAL})
    assert told["`taskq`"] == sorted({0, people.EXIT_FAILED, people.EXIT_UNAVAILABLE})
    assert told["all"] == [people.EXIT_USAGE]
    assert f"grows from {RESTART_MIN_S:g} s to {RESTART_MAX_S:g} s" in " ".join(OPERATIONS.split())


# ---- why a task does not run ---------------------------------------------------------------------------------------------------------


def all_blockers() -> Iterator[str]:
    """Each thing that the broker says of a task which does not run."""
    core = Shard(0, 1, Shared(Sequence64(1), Sequence64(1), Budget(1 << 30), random.Random(1)))
    core.turn([fx.Command(1, 1, m.Enqueue([b""], "mail", bytes(16), ["send"]))], NOW_MS)
    (task,) = core.tasks.values()
    yield blocker(core, task, NOW_MS)
    consumer = Consumer(bytes(16), "w", NOW_MS + 60_000, origin=2, queues=("other",))
    core.consumers[consumer.session] = consumer
    yield blocker(core, task, NOW_MS)
    consumer.queues = ("mail",)
    yield blocker(core, task, NOW_MS)
    consumer.task_types = frozenset({"send"})
    yield blocker(core, task, NOW_MS)
    consumer.allowed = 1
    yield blocker(core, task, NOW_MS)
    core.steady_ms = consumer.deadline_ms
    yield blocker(core, task, NOW_MS)
    core.steady_ms = NOW_MS
    task.crashes = CRASHES_ALONE
    yield blocker(core, task, NOW_MS)
    for state in (SCHEDULED, RETRYING):
        yield blocker(core, Task(bytes(16), 1, "mail", Options("send"), b"", state, NOW_MS, due_ms=NOW_MS + 1_500), NOW_MS)


def test_every_reason_why_a_task_does_not_run_is_explained_and_no_other() -> None:
    _, *rows = table(OPERATIONS, "not running")
    patterns = [re.escape(row[0]).replace("…", ".+") for row in rows]
    said = list(all_blockers())
    explained = [[at for at, pattern in enumerate(patterns) if re.fullmatch(pattern, text)] for text in said]
    for text, found in zip(said, explained, strict=True):
        assert found, f"{text!r} is not explained"
    # a reason that is more exact than another also fits the pattern of that one
    assert {found[0] for found in explained} == set(range(len(rows)))
    assert len(set(said)) == len(said) == len(re.findall(r"return f?\"[^\"]", inspect.getsource(blocker))) + len({SCHEDULED, RETRYING}) - 1
    assert PENDING not in FINAL


# ---- the README ------------------------------------------------------------------------------------------------------------------------


def test_the_options_of_a_task_are_those_of_the_decorator() -> None:
    _, *rows = table(README, "option")
    told = {row[0].strip("`"): row[1] for row in rows}
    parameters = inspect.signature(inspect.getattr_static(App, "task")).parameters
    assert set(parameters) == {"self", "functions", "settings"}, "the options are those of `define`"
    from taskq.app import define

    defaults = {name: each.default for name, each in inspect.signature(define).parameters.items() if each.default is not inspect.Parameter.empty}
    assert set(told) == {"name", *defaults}
    assert told["queue"] == f"`{defaults['queue']}`"
    assert (told["priority"], told["max_attempts"]) == (str(defaults["priority"]), str(defaults["max_attempts"]))
    base_ms, factor, longest_ms = m.DEFAULT_RETRY
    assert seconds(told["backoff_base"].replace(" ", "")) * 1000 == base_ms
    assert float(told["backoff_factor"]) == factor
    assert seconds(told["backoff_max"].replace(" ", "")) * 1000 == longest_ms
    (names,) = [row[2] for row in rows if row[0] == "`priority`"]
    assert re.findall("`([a-z]+)`", names) == list(m.PRIORITIES)
    assert f"= {' '.join(map(str, m.PRIORITIES.values()))}" in names


def test_the_options_of_an_enqueue_are_all_named() -> None:
    (sentence,) = re.findall(r"^`send_email\.options\(…\)` changes them.*?`deadline`\.", README, re.M | re.S)
    assert set(re.findall("`([a-z_]+)`", sentence)) == set(CHECKS)


def test_the_changelog_has_the_version_of_the_package() -> None:
    from taskq import __version__

    assert f"\n## {__version__}" in read("CHANGELOG.md")
