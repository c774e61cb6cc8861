"""The curves: their smallest run with real programs, and the picture."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CURVES = Path(__file__).parents[2] / "bench" / "curves"
WAIT_S = 100.0
HEAD = f"import sys; sys.path.insert(0, {str(CURVES)!r}); import run, curves\n"
SHORT = f"{HEAD}curves.BACKLOGS = (0, 1_000_000)\nrun.main()"
DRAW = f"""{HEAD}
points = {{name: [run.Point(x, (1e5 / (x + 1),) * len(curve.rates), 1.0, 2.0) for x in (0, 1, 1000)] for name, curve in run.CURVES.items()}}
run.draw(points, run.Path(sys.argv[1]))
"""


def curves(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_backlog_is_filled_and_drained_and_other_tasks_pass_it(tmp_path: Path) -> None:
    """Each point is a real broker with a real backlog; fewer runs than tasks would end the program with an error."""
    ended = curves("-c", SHORT, "--only", "backlog", "--scale", "0.0001", "--rounds", "1", "--folder", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"^backlog: (\S+): ([\d,]+)/s drain, ([\d,]+)/s enqueue; .*: p50 ([\d.]+) ms, p99 ([\d.]+) ms$", ended.stdout, re.MULTILINE)
    assert [depth for depth, *_ in found] == ["0", "100"]
    assert all(float(figure.replace(",", "")) > 0 for _, *figures in found for figure in figures)


def test_every_curve_is_drawn_and_the_same_points_are_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        ended = curves("-c", DRAW, str(tmp_path / name))
        assert ended.returncode == 0, ended.stderr
    picture = (tmp_path / "one.svg").read_text()
    assert picture == (tmp_path / "two.svg").read_text()
    assert picture.count('<g id="axes_') == 8


def test_a_curve_that_does_not_exist_is_refused_with_those_that_do() -> None:
    ended = curves(str(CURVES / "run.py"), "--only", "payload")
    assert ended.returncode == 2
    assert "no such curve: payload; there are payloads, workers, queues, backlog" in ended.stderr
