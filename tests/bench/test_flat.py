"""The flatness bench measures real brokers, however small its scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXACT = {"tasks out of their order", "urgent tasks behind another", "tasks lost or doubled"}


def test_a_small_backlog_runs_in_order_and_each_task_once(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, "bench/flat/run.py", "--only", "pending", "--scale", "0.004", "--folder", str(tmp_path), "--json", str(found)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.exists(), told.stderr
    found_by = json.loads(found.read_text())["found"]
    values = {each["what"]: each["value"] for each in found_by["pending"]}
    assert {what: values[what] for what in EXACT} == dict.fromkeys(EXACT, 0)
    assert min(value for what, value in values.items() if what.startswith(("drain, ", "enqueue, "))) > 0
