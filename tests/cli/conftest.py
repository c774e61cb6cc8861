"""A broker to talk to."""

from __future__ import annotations

import pytest
from programs import ON_FREE_PORTS, READY, Start


@pytest.fixture
def broker(start: Start) -> dict[str, str]:
    """A broker that runs; the fields of its line."""
    return start("broker", *ON_FREE_PORTS).wait_for(READY).groupdict()
