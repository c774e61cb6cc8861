"""What an enqueue costs in the client: from the call to the bytes of its frame, and from the bytes of the answer to the handles; only the socket is
left out.  A round is one frame of 1,000 tasks, or 200 frames of one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import AsyncClient
from taskq.batch import encode_payload
from taskq.connection import Channel, hello
from taskq.core import messages as m
from taskq.options import DEFAULTS
from taskq.protocol.codec import encode, join
from taskq.protocol.frames import Frame
from taskq.protocol.framing import FrameDecoder

TASKS, SINGLES = 1_000, 200
PAYLOAD = {"to": "user@example.com", "data": bytes(120)}


class Producer:
    """An AsyncClient that is greeted, whose frames are taken from its Link instead of being sent, and answered."""

    def __init__(self) -> None:
        self.client = AsyncClient("localhost:1")
        self.channel = self.client._channel = Channel(self.client.address, hello("producer"), self.client._on_event)
        self.channel.loop = self.client.loop = asyncio.get_running_loop()
        now_ms = self.channel._now_ms()
        self.channel.link.opened(now_ms)
        self.channel.link.take()
        self.decoder = FrameDecoder(64 << 20)
        welcome = m.Welcome(b"s" * 16, b"k" * 32, 0, 1, 5_000, 15_000, {"payload_bytes_max": 1 << 20})
        self.channel._dispatch(self.channel.link.receive(Frame(0, 1, welcome), now_ms))

    def answer(self) -> int:
        answered = 0
        for frame in self.channel.link.take():
            join(encode(frame.message, frame.seq, frame.flags))
            count = len(frame.message.payloads)
            reply = m.Enqueued(frame.message.ids, bytes(count), bytes([2]) * count, m.FSYNC)
            for decoded in self.decoder.feed(b"".join(encode(reply, frame.seq))):
                self.channel._dispatch(self.channel.link.receive(decoded, self.channel._now_ms()))
            answered += count
        return answered

    async def batch(self) -> None:
        enqueuing = asyncio.ensure_future(self.client.enqueue_many("noop", [PAYLOAD] * TASKS))
        while not self.answer():
            await asyncio.sleep(0)
        assert len(await enqueuing) == TASKS

    async def singles(self) -> None:
        for _ in range(SINGLES):
            future = self.client._add(self.channel, "noop", encode_payload(PAYLOAD, "noop"), DEFAULTS.but({"queue": "bench"}), 10.0)
            self.client._flush()
            self.answer()
            assert (await future).created


@pytest.mark.parametrize(("what", "tasks"), [("batch", TASKS), ("singles", SINGLES)])
def test_a_round_of_enqueues(benchmark: Any, what: str, tasks: int) -> None:
    with asyncio.Runner() as runner:

        async def make() -> Producer:
            return Producer()

        producer = runner.run(make())
        loop = runner.get_loop()
        benchmark.pedantic(lambda: loop.run_until_complete(getattr(producer, what)()), rounds=30, warmup_rounds=3)
        if benchmark.stats is not None:
            benchmark.extra_info["us_per_task"] = benchmark.stats.stats.median / tasks * 1e6
