"""NATS JetStream: a work-queue stream on disk; a durable consumer that is pushed to, and acknowledges each message."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import uvloop
from bench_client import HOST, PORT, SETTINGS, Producer, chunks, mark, payload, working
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

SUBJECT = "bench.work"
FETCH_S = 1.0


class Stream:
    """Its connection is made on the loop that uses it."""

    async def open(self) -> None:
        self.connection = await nats.connect(f"nats://{HOST}:{PORT}", pending_size=64 << 20)
        self.stream = self.connection.jetstream(publish_async_max_pending=SETTINGS["in_flight"])
        await self.stream.add_stream(StreamConfig(name="bench", subjects=[SUBJECT], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE))

    async def close(self) -> None:
        await self.connection.close()

    async def one(self, n: int) -> None:
        await self.stream.publish(SUBJECT, json.dumps(payload(n)).encode())

    async def bulk(self, numbers: range) -> None:
        for chunk in chunks(numbers, SETTINGS["in_flight"]):
            acks = [await self.stream.publish_async(SUBJECT, json.dumps(payload(n)).encode()) for n in chunk]
            await asyncio.gather(*acks)


async def handle(message: Any) -> None:
    mark(json.loads(message.data)["n"])
    await message.ack()


async def work() -> None:
    stream = Stream()
    await stream.open()
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=SETTINGS["ack_pending"], ack_wait=600)
    if SETTINGS["consumer"] == "push":
        await stream.stream.subscribe(SUBJECT, durable="worker", manual_ack=True, cb=handle, config=config, pending_msgs_limit=-1)
        await asyncio.Event().wait()
    pulled = await stream.stream.pull_subscribe(SUBJECT, durable="worker", config=config)
    while True:
        try:
            messages = await pulled.fetch(SETTINGS["fetch"], timeout=FETCH_S)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            await handle(message)


if __name__ == "__main__":
    if working():
        uvloop.run(work())
    else:
        stream = Stream()
        Producer(stream.one, stream.bulk).run(stream.open, stream.close)
