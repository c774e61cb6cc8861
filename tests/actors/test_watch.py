"""The watch over memory and the time of the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskq.actors import watch
from taskq.actors.watch import Watch, group_limits, machine_bytes, resident_bytes
from taskq.config import MIB
from taskq.core.admission import Admission

PERIOD_S = 0.1


class Timed:
    """A loop whose time the test says."""

    now_s = 1_000.0

    def time(self) -> float:
        return self.now_s


async def test_a_loop_that_is_late_turn_after_turn_refuses_until_it_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, admission = Timed(), Admission()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    look = Watch(admission, PERIOD_S, 0, 0.2).look
    for _ in range(16):
        assert admission.refusal is None
        loop.now_s += PERIOD_S + 0.25
        look()
    assert admission.refusal is not None and admission.refusal.code == "OVERLOADED" and "CPU" in admission.refusal.message
    loop.now_s += PERIOD_S
    look()
    assert admission.refusal is None


async def test_memory_that_is_free_inside_the_process_does_not_refuse_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    used, admission = 300 * MIB, Admission()

    def give_back() -> None:
        nonlocal used
        used -= 50 * MIB

    monkeypatch.setattr(watch, "resident_bytes", lambda: used)
    monkeypatch.setattr(watch, "give_back", give_back)
    monkeypatch.setattr(watch, "GIVE_BACK_S", 0.0)
    guard = Watch(admission, PERIOD_S, 200 * MIB, 0.2)
    guard.look()
    refusal = admission.refusal
    assert refusal is not None and "uses 250MiB of memory, its limit is 200MiB (memory_bytes_max)" in refusal.message
    guard.look()
    assert admission.refusal is None


async def test_freed_memory_goes_back_to_the_system() -> None:
    freed, kept = [], []
    for _ in range(8_000):
        freed.append(bytearray(16_000))
        kept.append(bytearray(1_000))  # so that the end of the heap is never free
    full = resident_bytes()
    freed.clear()
    watch.give_back()
    assert resident_bytes() < full - 50 * MIB
    assert len(kept) == 8_000


async def test_the_limit_is_taken_from_the_machine_or_from_its_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, group = machine_bytes(), tmp_path / "memory.max"
    monkeypatch.setattr(watch, "GROUPS", tmp_path)
    group.write_text("max\n")
    assert machine_bytes() >= machine > 0
    group.write_text("1000000000\n")
    assert machine_bytes() == 1_000_000_000
    assert Watch(Admission(), PERIOD_S, "auto", 0.2).memory_bytes_max == 572 * MIB
    assert Watch(Admission(), PERIOD_S, 5, 0.2).memory_bytes_max == 5


V1, V2 = "memory.limit_in_bytes", "memory.max"
TREES: dict[str, tuple[str, dict[str, str], list[int]]] = {
    "a service": (
        "0::/system.slice/taskq.service\n",
        {V2: "max", f"system.slice/{V2}": "900", f"system.slice/taskq.service/{V2}": "700"},
        [900, 700],
    ),
    "version 1": ("7:cpu:/a\n4:memory:/a/b\n", {f"memory/{V1}": "999", f"memory/a/{V1}": "800", f"memory/a/b/{V1}": "600"}, [999, 800, 600]),
    "both versions": ("4:memory:/a\n0::/a\n", {f"memory/a/{V1}": "500", f"a/{V2}": "max"}, [500]),
    "a container that shows the path of its host": ("0::/docker/0123\n", {V2: "400"}, [400]),
    "a group beside the one that is shown": ("0::/../other\n", {V2: "300", f"../other/{V2}": "1"}, [300]),
    "the top": ("0::/\n", {V2: "200"}, [200, 200]),
    "no control groups": ("", {}, []),
}


@pytest.mark.parametrize(("of_process", "files", "limits"), TREES.values(), ids=TREES)
def test_every_control_group_above_the_process_counts(tmp_path: Path, of_process: str, files: dict[str, str], limits: list[int]) -> None:
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{text}\n")
    assert sorted(group_limits(of_process, groups)) == sorted(limits)
