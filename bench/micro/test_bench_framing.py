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


@pytest.mark.parametrize("mib", [1, 16])
def test_bench_feed_a_large_payload(benchmark: Any, mib: int) -> None:
    """A frame of one payload in chunks of 256 KiB, then the rest into the decoder's own buffer, as a connection receives it."""
    data = b"".join(encode(m.Enqueue([bytes(mib << 20)], "email", bytes(ID_BYTES), ["send_email"]), 1))
    view = memoryview(data)

    def receive() -> int:
        decoder, at, frames = FrameDecoder(65 << 20), 0, 0
        while at < len(data):
            room = decoder.room
            if room is None:
                chunk = data[at : at + 4 * CHUNK_BYTES]
                at, frames = at + len(chunk), frames + len(decoder.feed(chunk))
            else:
                size = min(len(room), 4 * CHUNK_BYTES)
                room[:size] = view[at : at + size]
                decoder.fill(size)
                at, frames = at + size, frames + len(decoder.take(1))
        return frames

    assert benchmark(receive) == 1
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_MiB"] = round(benchmark.stats.stats.min * 1e6 / mib, 1)
