"""The client's end of a connection, where the event loops differ."""

from __future__ import annotations

import asyncio
import time

import pytest

from taskq.connection import Address, Channel, hello
from taskq.core import messages as m
from taskq.errors import BrokerUnavailable


async def test_a_deadline_that_has_passed_before_its_timer_is_set_stops_no_other_request() -> None:
    """uvloop gives a handle that knows no time for a timer that is due at once."""
    channel = Channel(Address.parse("127.0.0.1:1"), hello("client", "test"), lambda event: None)
    channel.start()
    asked = asyncio.create_task(channel.call(m.Bye(), 0.001))
    await asyncio.sleep(0)
    time.sleep(0.01)  # the loop is late, as it is under load
    for _ in range(3):
        channel.flush()
    with pytest.raises(BrokerUnavailable):
        await asked
    await channel.stop()
