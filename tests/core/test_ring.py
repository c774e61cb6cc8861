"""The ring: requests are cut by shard, and the answers come back together in the order of the request."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.book import Book, Sequence64, Shared
from taskq.core.line import Budget
from taskq.core.ring import Gather, Ring
from taskq.ids import SLOTS, make_id, slot_of_queue


def ids_in(*slots: int) -> list[bytes]:
    rng = random.Random(0)
    return [make_id(1_700_000_000_000, slot, rng) for slot in slots]


def token(number: int) -> bytes:
    return number.to_bytes(8, "big")


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 16])
def test_each_slot_has_exactly_one_owner_and_both_sides_agree(shards: int) -> None:
    ring = Ring(shards)
    shared = Shared(Sequence64(1), Sequence64(1), Budget(0), random.Random(0))
    books = [Book(index, shards, shared) for index in range(shards)]
    for slot in range(SLOTS):
        assert [book.index for book in books if book.owns_slot(slot)] == [ring.of_slot(slot)]


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_the_slots_are_spread_evenly(shards: int) -> None:
    owned = [sum(Ring(shards).of_slot(slot) == shard for slot in range(SLOTS)) for shard in range(shards)]
    assert max(owned) - min(owned) <= 1


def test_an_enqueue_goes_to_the_owner_of_its_queue_and_a_get_to_that_of_its_id() -> None:
    ring = Ring(4)
    enqueue = m.Enqueue([b""], "email", bytes(16), ["t"])
    assert ring.split(enqueue) == [(ring.of_queue("email"), enqueue, None)]
    [task_id] = ids_in(slot_of_queue("email"))
    assert [shard for shard, _, _ in ring.split(m.Get(task_id))] == [ring.of_queue("email")]
    assert [shard for shard, _, _ in ring.split(m.Get(b"short"))] == [0]


@pytest.mark.parametrize("message", [m.Inspect("queues"), fx.Held(b"", 0, frozenset(), False), fx.Over(b"", "")])
def test_what_is_about_all_tasks_goes_to_every_shard(message: Any) -> None:
    assert [shard for shard, _, _ in Ring(3).split(message)] == [0, 1, 2]


def test_ids_of_one_slot_are_not_cut() -> None:
    ids = ids_in(9, 9, 9)
    cancel = m.Cancel(b"".join(ids))
    assert Ring(4).split(cancel) == [(0, cancel, None)]


def test_a_cut_report_keeps_each_task_with_its_columns() -> None:
    ids = ids_in(1, 4_000, 1)
    fail = m.Fail(b"".join(ids), token(1) + token(2) + token(3), [0, 1, 2], [0], ["A", "B", "C"], ["e"])
    [first, second] = Ring(4).split(fail)
    assert first == (0, m.Fail(ids[0] + ids[2], token(1) + token(3), [0, 2], [0], ["A", "C"], ["e"]), [0, 2])
    assert second == (3, m.Fail(ids[1], token(2), [1], [0], ["B"], ["e"]), [1])


@pytest.mark.parametrize("shards", [1, 4])
def test_a_request_over_very_many_slots_has_no_more_pieces_than_there_are_shards(shards: int) -> None:
    ids = ids_in(*range(0, SLOTS, 5))
    ack = m.Ack([b"ok"] * len(ids), b"".join(ids), b"".join(map(token, range(len(ids)))))
    pieces = Ring(shards).split(ack)
    assert [shard for shard, _, _ in pieces] == list(range(shards))
    assert b"".join(piece.ids for _, piece, _ in pieces) == ack.ids


def test_slots_of_one_shard_are_not_cut() -> None:
    cancel = m.Cancel(b"".join(ids_in(1, 2)))
    assert Ring(1).split(cancel) == [(0, cancel, None)]
    assert Ring(4).split(cancel) == [(0, cancel, None)]


def of_two_shards(count: int) -> dict[str, bytes]:
    return {"ids": b"".join(ids_in(*[1, 4_000] * (count // 2))), "tokens": b"".join(map(token, range(count)))}


@pytest.mark.parametrize(
    "message",
    [
        m.Ack([b"ok", b"r" * 11], **of_two_shards(2)),
        m.Ack([b"ok"] * 2, **of_two_shards(2), encodings=[1, 3]),
        m.Ack([b"ok"] * 2, of_two_shards(2)["ids"], token(1) * 2),
        m.Fail(**of_two_shards(2), dispositions=[0, 3], delays_ms=[0], error_types=["E"], errors=["e"]),
        m.Release(**of_two_shards(1_002), delays_ms=[0]),
        m.Cancel(of_two_shards(1_002)["ids"]),
    ],
)
def test_what_is_refused_is_not_cut_so_that_no_part_of_it_is_done(message: Any) -> None:
    assert Ring(4, payload_bytes_max=10).split(message) == [(0, message, None)]


@given(st.lists(st.sampled_from([0, 1, 256, 1_030, 4_095]), min_size=2, max_size=12).filter(lambda slots: len({*slots}) > 1), st.integers(1, 5))
def test_the_outcomes_of_the_pieces_come_back_in_the_order_of_the_request(slots: list[int], shards: int) -> None:
    """Each outcome is the number of its task, so a mix-up shows."""
    ids, tokens = ids_in(*slots), [token(number) for number in range(len(slots))]
    ack = m.Ack([b"%d" % number for number in range(len(slots))], b"".join(ids), b"".join(tokens))
    pieces = Ring(shards).split(ack)
    if len(pieces) == 1:
        assert pieces[0][1] is ack
        return
    gather = Gather(pieces)
    whole = None
    for part in reversed(range(len(pieces))):
        assert whole is None
        piece = pieces[part][1]
        assert [b"%d" % piece.tokens[at * 8 + 7] for at in range(len(piece.payloads))] == piece.payloads
        whole = gather.add(part, m.Reported(piece.tokens[7::8]))
    assert whole == m.Reported(bytes(range(len(slots))))


def test_one_error_makes_the_whole_an_error() -> None:
    gather = Gather([(0, None, [0]), (1, None, [1])])
    error = m.Error("BAD_REQUEST", "no")
    assert gather.add(1, error) is None
    assert gather.add(0, m.Reported(b"\0")) is error


def test_what_the_shards_know_of_tokens_is_joined() -> None:
    gather = Gather([(0, None, None), (1, None, None)])
    gather.add(0, fx.Known([token(1)], []))
    assert gather.add(1, fx.Known([token(2)], [token(2)])) == fx.Known([token(1), token(2)], [token(2)])


def test_rows_of_queues_are_sorted_by_name() -> None:
    gather = Gather([(0, None, None), (1, None, None)])
    gather.add(0, m.Inspected([{"queue": "b"}]))
    assert gather.add(1, m.Inspected([{"queue": "a"}])) == m.Inspected([{"queue": "a"}, {"queue": "b"}])
