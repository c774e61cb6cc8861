"""Waiting: whose commands come first where a shard has more than a turn takes."""

from __future__ import annotations

from collections import Counter

import pytest

from taskq.actors.queueing import TURN_TASKS, Waiting, is_small, weight
from taskq.core import messages as m
from taskq.core.effects import Command, Flushed, Tick
from taskq.ids import NIL


def enqueue(origin: int, seq: int, count: int) -> Command:
    return Command(origin, seq, m.Enqueue([b""] * count, "email", NIL * count, ["t"]))


def waiting(*commands: Command) -> Waiting:
    lines = Waiting()
    for command in commands:
        lines.add(command)
    return lines


def never(command: Command) -> bool:
    return False


def all_of(lines: Waiting) -> list[Command]:
    taken: list[Command] = []
    while lines.can_go_on:
        taken += lines.take(never)
    return taken


def test_a_list_of_all_queues_takes_a_turn_for_itself() -> None:
    assert weight(Command(1, 1, m.Inspect("queues"))) == TURN_TASKS
    assert weight(enqueue(1, 1, 7)) == 7
    assert weight(Command(0, 0, Flushed([], 0))) == 0


def test_a_turn_takes_a_small_batch_or_one_large_command_as_it_is() -> None:
    assert is_small([enqueue(1, seq, 100) for seq in range(5)])
    assert not is_small([enqueue(1, seq, 100) for seq in range(6)])
    assert is_small([enqueue(1, 1, 1_000)])


def test_the_commands_of_a_connection_keep_their_order_and_none_is_lost() -> None:
    sent = [enqueue(origin, seq, 1 + 37 * seq * origin % 400) for seq in range(40) for origin in (0, 3, 8, 9)]
    taken = all_of(waiting(*sent))
    assert len(taken) == len(sent)
    for origin in (0, 3, 8, 9):
        assert [command.seq for command in taken if command.origin == origin] == list(range(40))


def test_connections_that_ask_for_as_much_get_as_much() -> None:
    lines = waiting(*(enqueue(origin, seq, 50) for origin in range(1, 6) for seq in range(100)))
    for _ in range(10):
        served = Counter(command.origin for command in lines.take(never))
        assert served == dict.fromkeys(range(1, 6), 2)


@pytest.mark.parametrize("others", [1, 40, 500])
def test_who_asks_for_little_comes_before_all_that_others_wait_for(others: int) -> None:
    lines = waiting(*(enqueue(origin, seq, 250) for seq in range(20) for origin in range(10, 10 + others)))
    for seq in range(10):
        lines.take(never)
        lines.add(enqueue(2, seq, 1))
        assert [command.seq for command in lines.take(never) if command.origin == 2] == [seq]


def test_who_comes_back_after_a_rest_has_saved_nothing() -> None:
    lines = waiting(*(enqueue(origin, seq, 100) for seq in range(100) for origin in (1, 2)))
    for _ in range(10):
        lines.take(never)
    for seq in range(100):
        lines.add(enqueue(3, seq, 100))
    served = Counter(command.origin for _ in range(6) for command in lines.take(never))
    assert max(served.values()) - min(served.values()) <= 1


def test_what_is_held_keeps_what_stands_behind_it_and_nobody_else() -> None:
    lines = waiting(enqueue(1, 1, 1), enqueue(1, 2, 2), enqueue(1, 3, 1), enqueue(2, 1, 1), Command(0, 0, Tick()))
    taken = lines.take(lambda command: command.seq == 2)
    assert sorted((command.origin, command.seq) for command in taken) == [(0, 0), (1, 1), (2, 1)]
    assert lines.has_set_aside and not lines.can_go_on and not lines.is_empty
    lines.add(enqueue(1, 4, 1))
    assert not lines.can_go_on
    lines.look_again()
    assert [command.seq for command in all_of(lines)] == [2, 3, 4]
    assert lines.is_empty


def test_a_turn_costs_what_it_takes_and_not_what_waits() -> None:
    looked: list[Command] = []

    def look(command: Command) -> bool:
        looked.append(command)
        return False

    lines = waiting(*(enqueue(origin, seq, 100) for origin in range(1, 101) for seq in range(100)))
    taken = lines.take(look)
    assert looked == taken and len(taken) == TURN_TASKS // 100
