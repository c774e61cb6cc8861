"""The targets of the fuzzer with inputs of a small mutator, session order by hypothesis, and what live ports do with the same bytes.

`make fuzz` does the same guided by coverage, for as many inputs as one has time.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ON_FREE_PORTS, READY, Start

from campaigns import fuzz, targets
from taskq import AsyncClient

sys.path.insert(0, str(Path(__file__).parents[1] / "protocol"))

from message_strategies import messages

SIZES = {"frames": 6_000, "messages": 2_000, "http": 6_000}
LIVE_INPUTS = 1_500
LIVE_AT_ONCE = 10
PING_S_MAX = 2.0
ANSWER_S = 10.0


@pytest.mark.parametrize("target", fuzz.SHARES)
def test_mutated_inputs_break_no_rule(target: str) -> None:
    seeds, rng = list(targets.SEEDS[target]()), random.Random(1)
    check = fuzz.timed(targets.TARGETS[target], fuzz.SLOW_S)
    for seed in seeds:
        check(seed)
    for _ in range(SIZES[target]):
        check(targets.mutated(rng, seeds))


@pytest.mark.parametrize("target", fuzz.SHARES)
def test_inputs_leave_nothing_behind_in_memory(target: str) -> None:
    rng, seeds = random.Random(2), list(targets.SEEDS[target]())
    inputs = [targets.mutated(rng, seeds) for _ in range(150)]
    assert fuzz.growth_kib(lambda: [targets.TARGETS[target](data) for data in inputs], 6) <= fuzz.GROWTH_KIB_MAX


@pytest.mark.parametrize("target", ["frames", "http"])
def test_nothing_that_a_peer_sent_waits_for_a_collection(target: str) -> None:
    """The broker collects cycles seldom: one that holds foreign bytes would be memory that a peer can take."""
    rng, seeds = random.Random(4), list(targets.SEEDS[target]())
    inputs = [*seeds, *(targets.mutated(rng, seeds) for _ in range(2_000))]
    gc.collect()
    gc.disable()
    try:
        for data in inputs:
            targets.TARGETS[target](data)
        assert gc.collect() == 0
    finally:
        gc.enable()


@given(st.sampled_from(targets.ROLES), st.lists(st.tuples(st.integers(0, 5), st.booleans(), messages), max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_session_answers_whatever_is_said_in_whatever_order(role: str, said: list[tuple[int, bool, Any]]) -> None:
    targets.converse(role, said)


def test_a_rule_that_is_broken_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets can fail: a parser that lets a foreign exception out, and a session that swallows an answer."""

    def crash(*args: Any) -> Any:
        raise KeyError("planted")

    def swallow(self: Any, seq: int, part: int, answer: Any) -> None:
        return None

    with monkeypatch.context() as planted:
        planted.setattr("taskq.protocol.framing.decode", crash)
        with pytest.raises(KeyError):
            next(_failures("frames"))
    with monkeypatch.context() as planted:
        planted.setattr("taskq.core.session.Requests.answered", swallow)
        with pytest.raises(AssertionError):
            next(_failures("messages"))
    with monkeypatch.context() as planted:
        planted.setattr("taskq.gateway.enqueue.error_body", crash)
        with pytest.raises(KeyError):
            next(_failures("http"))


def _failures(target: str) -> Any:
    yield [targets.TARGETS[target](seed) for seed in targets.SEEDS[target]()]


# ---- live ports ------------------------------------------------------------------------------------------------------------------------


async def _hurl(address: str, data: bytes) -> None:
    """Send it, be done with sending, and read to the end: which comes, whatever was sent."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(data)
            writer.write_eof()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def _ping(tcp: str, over: asyncio.Event) -> float:
    """A good client works on all the while; the longest that it waited."""
    loop, longest_s = asyncio.get_running_loop(), 0.0
    async with AsyncClient(tcp) as client:
        while not over.is_set():
            began_s = loop.time()
            handle = await client.enqueue("work", {"n": 1}, queue="good")
            assert (await client.get(handle.id)).state == "pending"
            longest_s = max(longest_s, loop.time() - began_s)
            await asyncio.sleep(0.02)
    return longest_s


def _inputs(rng: random.Random, tcp: str, http: str) -> list[tuple[str, bytes]]:
    of_frames, of_http = list(targets.SEEDS["frames"]()), list(targets.SEEDS["http"]())
    return [
        (tcp, targets.mutated(rng, of_frames)[1:]) if rng.random() < 0.5 else (http, targets.mutated(rng, of_http)[1:]) for _ in range(LIVE_INPUTS)
    ]


async def test_foreign_bytes_at_both_ports_touch_no_other_connection(start: Start) -> None:
    broker = start("broker", *ON_FREE_PORTS)
    ready = await asyncio.to_thread(broker.wait_for, READY)
    inputs, over = _inputs(random.Random(3), ready["tcp"], ready["http"]), asyncio.Event()
    good = asyncio.create_task(_ping(ready["tcp"], over))

    async def hurl_all(part: list[tuple[str, bytes]]) -> None:
        for address, data in part:
            await _hurl(address, data)

    half = LIVE_INPUTS // 2
    await asyncio.gather(*(hurl_all(inputs[at:half:LIVE_AT_ONCE]) for at in range(LIVE_AT_ONCE)))
    before = fuzz.rss_kib(ready["pid"])
    await asyncio.gather(*(hurl_all(inputs[half + at :: LIVE_AT_ONCE]) for at in range(LIVE_AT_ONCE)))
    grown = fuzz.rss_kib(ready["pid"]) - before
    over.set()
    longest_s = await good
    assert await asyncio.to_thread(broker.stop) == 0
    assert "Traceback" not in broker.errors, broker.errors
    assert longest_s < PING_S_MAX
    assert grown < 4 * fuzz.GROWTH_KIB_MAX, f"{grown} KiB"


async def test_nested_list_headers_cost_a_live_broker_less_than_two_mib(start: Start) -> None:
    """64 KiB that promise 65,535 entries at each of 21,845 levels; a worker's session is greeted first, so that the frame is decoded."""
    broker = start("broker", *ON_FREE_PORTS)
    ready = await asyncio.to_thread(broker.wait_for, READY)
    hello = (targets.GOLDEN / "0001_hello.bin").read_bytes()
    bomb = next(seed[1:] for seed in targets.SEEDS["frames"]() if len(seed) > 60_000)
    rss_kib = []
    for _ in range(6):
        for _ in range(50):
            await _hurl(ready["tcp"], hello + bomb)
        rss_kib.append(fuzz.rss_kib(ready["pid"]))
    assert rss_kib[-1] - rss_kib[0] <= fuzz.GROWTH_KIB_MAX, rss_kib
    assert await asyncio.to_thread(broker.stop) == 0
