"""The watch over memory and the time of the loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from taskq.actors import watch
from taskq.actors.watch import Watch, machine_bytes, resident_bytes
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
    monkeypatch.setattr(watch, "MEMORY_S", 0.0)
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


async def test_the_limit_is_taken_from_the_machine_or_from_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, group = machine_bytes(), tmp_path / "memory.max"
    monkeypatch.setattr(watch, "CGROUP_FILES", (group, tmp_path / "not there"))
    group.write_text("max\n")
    assert machine_bytes() >= machine > 0
    group.write_text("1000000000\n")
    assert machine_bytes() == 1_000_000_000
    assert Watch(Admission(), PERIOD_S, "auto", 0.2).memory_bytes_max == 600_000_000
    assert Watch(Admission(), PERIOD_S, 5, 0.2).memory_bytes_max == 5
