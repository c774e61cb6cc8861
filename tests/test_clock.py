"""The two times of a broker: that of the day, which follows the machine's clock and never goes back, and the steady one."""

from __future__ import annotations

import pytest

from taskq import clock

START_S = 1_700_000_000


class Machine:
    """A clock on the wall that somebody sets, and one that just runs."""

    def __init__(self) -> None:
        self.wall_s, self.passed_s = float(START_S), 0.0

    def pass_s(self, seconds: float) -> None:
        self.passed_s += seconds
        self.wall_s += seconds

    def time_ns(self) -> int:
        return int(self.wall_s * 1e9)

    def monotonic_ns(self) -> int:
        return int(self.passed_s * 1e9)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(clock, "time", machine)
    return machine


def test_both_begin_at_the_time_of_the_machine(machine: Machine) -> None:
    own = clock.SystemClock()
    assert own.now_ms() == own.steady_ms() == START_S * 1000


def test_a_clock_that_is_set_back_is_waited_for_and_the_steady_one_goes_on(machine: Machine) -> None:
    own = clock.SystemClock()
    machine.pass_s(10)
    before_ms = own.now_ms()
    machine.wall_s -= 3_600
    machine.pass_s(60)
    assert own.now_ms() == before_ms
    assert own.steady_ms() == START_S * 1000 + 70_000
    machine.pass_s(3_600)
    assert own.now_ms() == START_S * 1000 + 70_000


def test_a_clock_that_is_set_ahead_is_followed_and_the_steady_one_is_not(machine: Machine) -> None:
    own = clock.SystemClock()
    machine.wall_s += 3_600
    machine.pass_s(2)
    assert own.now_ms() == START_S * 1000 + 3_602_000
    assert own.steady_ms() == START_S * 1000 + 2_000
