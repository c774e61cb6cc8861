"""docs/protocol.md is normative: its tables say what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from taskq import errors, ids
from taskq.core import messages as m
from taskq.core.access import NEEDS
from taskq.core.gate import AccessToken, Gate, grant_of
from taskq.core.session import RULES
from taskq.core.task import PENDING, Options, Task, describe
from taskq.protocol.codec import LONG_LISTS
from taskq.protocol.frames import KINDS

FOLDER = Path(__file__).parents[2]
TEXT = (FOLDER / "docs" / "protocol.md").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parent / "golden"
TYPES = {
    "int": "int",
    "str": "text",
    "bytes": "bin",
    "bool": "bool",
    "list[int]": "[int]",
    "list[str]": "[text]",
    "list[str | None]": "[text or nil]",
    "list[Any]": "list",
    "dict[str, Any]": "map",
    "list[Payload]": "[size]",
}
DEFAULTS = {"": '""', b"": "empty", False: "false"}
# HTTP has answers of its own, which never go over this wire
REFUSALS = [cls for parent in (errors.Answer, errors.ProtocolError) for cls in parent.__subclasses__() if cls.__module__ == errors.__name__]
ON_THE_WIRE = [*REFUSALS, errors.ProtocolError, errors.InternalError]


def section(kind: int, cls: type) -> str:
    found = re.search(rf"^#### 0x{kind:04X} {cls.__name__.upper()}\n(.*?)(?=^#)", TEXT, re.M | re.S)
    assert found, f"{cls.__name__} has no section"
    return found[1]


def default(field: Any) -> str:
    if field.default is attrs.NOTHING:
        return "–"
    value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
    text = DEFAULTS.get(value) if isinstance(value, (str, bytes, bool)) else str(value)
    return str(text).replace("None", "nil")


@pytest.mark.parametrize(("kind", "cls"), KINDS.items(), ids=lambda part: getattr(part, "__name__", None))
def test_the_table_of_a_message_lists_its_fields_with_position_type_and_default(kind: int, cls: type) -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+?) \| (.+?) \| ", section(kind, cls), re.M)
    assert rows == [(str(at), field.name, TYPES[str(field.type)], default(field)) for at, field in enumerate(attrs.fields(cls))]


def test_the_direction_of_a_message_is_that_of_the_session() -> None:
    for kind, cls in KINDS.items():
        assert section(kind, cls).lstrip().startswith("C→B" if cls in RULES else "B→C"), cls


def test_the_table_of_errors_lists_every_code_that_goes_over_the_wire() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (yes|no) \| (yes|no) \| ", TEXT, re.M)
    fatal = {cls.code for cls in ON_THE_WIRE if not issubclass(cls, errors.Answer)} - {errors.UnknownKind.code}
    assert sorted(rows) == sorted((cls.code, "yes" if cls.retryable else "no", "yes" if cls.code in fatal else "no") for cls in ON_THE_WIRE)


def errors_of(kind: int, cls: type) -> list[tuple[bool, str]]:
    """(fatal, code) of all that a section says a request can be refused with."""
    found = re.findall(r"^Errors(.*?)(?=\n\n|\nErrors)", section(kind, cls), re.M | re.S)
    return [(line.startswith(", fatal"), code) for line in found for code in re.findall(r"`([A-Z][A-Z_]+)`", line)]


@pytest.mark.parametrize(("kind", "cls"), KINDS.items(), ids=lambda part: getattr(part, "__name__", None))
def test_each_request_lists_what_it_can_be_refused_with(kind: int, cls: type) -> None:
    assert bool(re.search(r"^Errors", section(kind, cls), re.M)) == (cls in RULES)
    fatal = {code: fatal == "yes" for code, _, fatal in re.findall(r"^\| ([A-Z_]+) \| (yes|no) \| (yes|no) \| ", TEXT, re.M)}
    for is_fatal, code in errors_of(kind, cls):
        assert fatal[code] == is_fatal, code


def test_each_code_is_listed_at_a_request_or_among_those_that_any_frame_may_get() -> None:
    listed = {code for kind, cls in KINDS.items() for _, code in errors_of(kind, cls)}
    listed |= set(re.findall(r"`([A-Z][A-Z_]+)`", TEXT[TEXT.index("**Codes that any frame may get**") : TEXT.index("## 10. Limits")]))
    assert listed == {cls.code for cls in ON_THE_WIRE} - {errors.LeaseLost.code}, "LEASE_LOST is an outcome in REPORTED"


def test_a_message_without_fields_has_the_head_that_is_shown() -> None:
    assert "`90`" in TEXT and (GOLDEN / "0009_ok.bin").read_bytes()[16:].hex() == (GOLDEN / "000c_bye.bin").read_bytes()[16:].hex() == "90"


def test_the_table_of_roles_is_that_of_the_session() -> None:
    rows = dict(re.findall(r"^\| (every role|`\w+`) \| ([A-Za-z ]+) \|$", TEXT, re.M))
    for role in ("producer", "worker", "keeper"):
        told = {*rows["every role"].split(), *rows[f"`{role}`"].split()} - {"nothing", "more"}
        assert told == {cls.__name__.upper() for cls, (roles, _) in RULES.items() if role in roles}


def test_the_worked_slot_and_id_are_right() -> None:
    assert "0x67fc7c49" in TEXT and ids.slot_of_queue("email") == 0xC49 == 3145
    (example,) = re.findall(r"018bcfe5-6800-8c49-8000-0+1", TEXT)
    task_id = bytes.fromhex(example.replace("-", ""))
    assert ids.is_valid(task_id) and ids.slot_of_id(task_id) == 0xC49 and ids.ms_of_id(task_id) == 1_700_000_000_000


@pytest.mark.parametrize("name", ["0103_credit", "0105_ack"])
def test_the_worked_frames_are_golden(name: str) -> None:
    assert (GOLDEN / f"{name}.bin").read_bytes().hex() in re.sub(r"\s", "", TEXT)


def test_the_fields_of_a_described_task_are_listed() -> None:
    listed = {name for row in re.findall(r"^\| ([\w, ]+) \| [\w ]+ \| ", section(0x010D, m.TaskInfo), re.M) for name in row.split(", ")}
    task = Task(ids.NIL, 1, "q", Options("t"), b"", PENDING, 0)
    assert set(describe(task)) <= listed


def test_the_longer_lists_are_named() -> None:
    assert {cls.__name__.upper() for cls in LONG_LISTS} == {"CONSUME", "INSPECTED"}
    assert "10,000 in CONSUME and INSPECTED" in TEXT


def test_the_worked_proof_is_right() -> None:
    (token,) = re.findall(r"the token `(tq_mailer_\S{43})`", TEXT)
    told = dict(re.findall(r"^    (client-first|server-first|client-final|signature) +(\S+)$", TEXT, re.M))
    kept = AccessToken.of(grant_of("mailer", ("read",)), token, bytes(range(16)), 0)
    gate = Gate(lambda: {"mailer": kept}, b"")
    exchange = gate.begin(told["client-first"].encode(), bytes(range(100, 118)))
    assert exchange.challenge.decode() == told["server-first"]
    assert gate.end(exchange, told["client-final"].encode()) == (kept.grant, bytes.fromhex(told["signature"]))
    for kind, name in (("000d", "challenge"), ("000e", "proof")):
        golden = json.loads((GOLDEN / f"{kind}_{name}.json").read_text())["fields"][name]["hex"]
        assert bytes.fromhex(golden).decode() in (told["server-first"], told["client-final"])


def test_the_table_of_scopes_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z `a-z]+) \| (none|`\w+`) \| ", TEXT[TEXT.index("| frame | scope | for |") :].split("\n\n")[0], re.M)
    told = {frame: scope.strip("`") for frames, scope in rows for frame in frames.split() if frame.isupper()}
    assert told["INSPECT"] == "admin", "the last row of several"
    assert {**told, "INSPECT": "read"} == {cls.__name__.upper(): need[0] if need else "none" for cls, need in NEEDS.items()}
    assert [scope for frames, scope in rows if "INSPECT" in frames] == ["`read`", "`admin`"]
