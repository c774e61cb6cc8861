"""What a task costs from received bytes to a message, by how the stream is cut.  `extra_info` holds µs per task (best round)."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.core import messages as m
from taskq.ids import ID_BYTES
from taskq.protocol.codec import encode
from taskq.protocol.framing import FrameDecoder

FRAME_BYTES_MAX = 4 << 20
CHUNK_BYTES = 65_536
TASKS = 2_000


def stream(tasks_a_frame: int, payload_bytes: int = 150) -> bytes:
    ids = bytes(range(ID_BYTES)) * tasks_a_frame
    frame = b"".join(encode(m.Enqueue([b"p" * payload_bytes] * tasks_a_frame, "email", ids, ["send_email"]), 1))
    return frame * (TASKS // tasks_a_frame)


def feed_all(chunks: list[bytes]) -> int:
    decoder = FrameDecoder(FRAME_BYTES_MAX)
    return sum(len(decoder.feed(chunk)) for chunk in chunks)


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 1_448], ids=["64KiB", "1448B"])
@pytest.mark.parametrize("tasks_a_frame", [1, 200, 1_000])
def test_bench_feed(benchmark: Any, tasks_a_frame: int, chunk_bytes: int) -> None:
    data = stream(tasks_a_frame)
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    assert benchmark(feed_all, chunks) == TASKS // tasks_a_frame
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_task"] = round(benchmark.stats.stats.min * 1e6 / TASKS, 3)
