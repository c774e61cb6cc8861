"""What a task costs to be packed and unpacked.  `extra_info` holds µs per task (best round)."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from taskq.core import messages as m
from taskq.ids import ID_BYTES, TOKEN_BYTES
from taskq.protocol.codec import PREFIX, decode, encode, join
from taskq.protocol.frames import PREFIX_BYTES

PAYLOAD = b"p" * 150
RESULT = b"\xa2ok"
TASKS = 1_000


def id_block(count: int) -> bytes:
    return b"".join((0x018BCFE568008C498000000000000000 + 0x9E3779B97F4A7C15 * n % (1 << 62)).to_bytes(ID_BYTES, "big") for n in range(count))


def token_block(count: int) -> bytes:
    return b"".join((1 << 40 | n).to_bytes(TOKEN_BYTES, "big") for n in range(count))


def enqueue(count: int) -> m.Enqueue:
    return m.Enqueue([PAYLOAD] * count, "email", id_block(count), ["send_email"])


def deliver(count: int) -> m.Deliver:
    return m.Deliver([PAYLOAD] * count, "email", 1, id_block(count), token_block(count), ["send_email"], [m.MSGPACK], [1], [0])


def ack(count: int) -> m.Ack:
    return m.Ack([RESULT] * count, id_block(count), token_block(count))


MAKERS = [enqueue, deliver, ack]
CASES = [(maker, count) for maker in MAKERS for count in (1, 200)]
by_case = pytest.mark.parametrize(("maker", "count"), CASES, ids=[f"{maker.__name__}-{count}" for maker, count in CASES])


def note(benchmark: Any, tasks: int) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_task"] = round(benchmark.stats.stats.min * 1e6 / tasks, 3)


@by_case
def test_bench_encode(benchmark: Any, maker: Any, count: int) -> None:
    message = maker(count)
    assert benchmark(lambda: join(encode(message, 1)))
    note(benchmark, count)


@by_case
def test_bench_decode(benchmark: Any, maker: Any, count: int) -> None:
    data = b"".join(encode(maker(count), 1))
    _, _, _, kind, _, head_bytes = PREFIX.unpack_from(data)
    head, payload = data[PREFIX_BYTES : PREFIX_BYTES + head_bytes], memoryview(data)[PREFIX_BYTES + head_bytes :]
    assert len(benchmark(decode, kind, head, payload).payloads) == count
    note(benchmark, count)


@pytest.mark.parametrize("way", ["pack", "unpack"])
def test_bench_msgpack_alone(benchmark: Any, way: str) -> None:
    """The limit beside these: the arguments of 1,000 tasks, packed or unpacked one by one and nothing else done with them."""
    value = {"data": b"p" * 142}
    data = msgpack.packb(value)
    assert len(data) == len(PAYLOAD)
    work, what = (msgpack.packb, value) if way == "pack" else (msgpack.unpackb, data)
    done = benchmark(lambda: [work(what) for _ in range(TASKS)])
    assert done[-1] == (data if way == "pack" else value)
    note(benchmark, TASKS)
