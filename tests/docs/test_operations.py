"""What docs/operations.md tells an operator to do, done on a broker with work in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from blocks import blocks
from programs import ON_FREE_PORTS, READY, WAIT_S, Start, environment

from taskq import AsyncClient
from taskq.core import messages as m

TASKS = 500


def backup_recipe() -> str:
    (recipe,) = [block.text for block in blocks("docs/operations.md") if block.language == "python" and ".backup(" in block.text]
    return recipe


async def test_a_backup_of_a_running_broker_has_everything_that_was_flushed(start: Start, tmp_path: Path) -> None:
    broker = start("broker", *ON_FREE_PORTS, "--data", "taskq-data")
    async with AsyncClient(broker.wait_for(READY)["tcp"]) as client:
        handles = await client.enqueue_many("later", [{"number": number} for number in range(TASKS)])
        while (await broker_row(client))["applied_lsn"] < (await broker_row(client))["journal_lsn"]:
            pass
        subprocess.run([sys.executable, "-c", backup_recipe()], cwd=tmp_path, env=environment(), timeout=WAIT_S, check=True)
        after = await client.enqueue("later", {"number": TASKS})
        assert (await after.info()).state == "pending"
    broker.discard()

    (tmp_path / "restored").mkdir(mode=0o700)
    (tmp_path / "backup.sqlite").rename(tmp_path / "restored" / "store.sqlite")
    restored = start("broker", *ON_FREE_PORTS, "--data", "restored")
    async with AsyncClient(restored.wait_for(READY)["tcp"]) as client:
        infos = [await client.get(handle.id) for handle in handles]
        (queue,) = await client.queues()
    assert [info.payload["number"] for info in infos] == list(range(TASKS))
    assert queue["pending"] == TASKS
    assert restored.stop() == 0


async def broker_row(client: AsyncClient) -> dict[str, int]:
    """The broker about itself."""
    answer: m.Inspected = await client._call(m.Inspect("broker"))
    return answer.rows[0]
