"""Each file in tests/scenarios is played against real shards and sessions, and must come out as it stands there, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario import Script

FOLDER = Path(__file__).parent.parent / "scenarios"
FILES = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_scenario_comes_out_as_it_is_written(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    assert Script().play(written).splitlines() == written.splitlines()


def test_there_are_scenarios_and_each_says_what_it_shows() -> None:
    assert len(FILES) >= 10
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in FILES)


def test_a_line_that_is_no_command_is_refused() -> None:
    with pytest.raises(ValueError, match="not a command"):
        Script().play("make it so\n")
