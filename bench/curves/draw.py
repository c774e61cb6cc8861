"""The picture of the curves: a column for each, the rates above, the latency below.

The scales are logarithmic, from an x of zero on, so that a line that stays level is a cost that does not grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from curves import CURVES, Curve, Point
from matplotlib.axes import Axes
from picture import FAINT, OURS, pyplot, save, unframe

COLOURS = (OURS, "#1864ab")


def draw(found: Mapping[str, Sequence[Point]], file: Path) -> None:
    figure, panels = pyplot.subplots(2, len(found), figsize=(4 * len(found), 6), sharex="col", squeeze=False)
    for (above, below), (name, points) in zip(panels.T, found.items(), strict=True):
        _column(above, below, CURVES[name], points)
    panels[0][0].set_ylabel("tasks/s")
    panels[1][0].set_ylabel("ms")
    save(figure, file)


def _column(above: Axes, below: Axes, curve: Curve, points: Sequence[Point]) -> None:
    xs = [point.x for point in points]
    for number, name in enumerate(curve.rates):
        above.plot(xs, [point.tasks_per_s[number] for point in points], "o-", color=COLOURS[number], label=name, markersize=4)
    above.set_title(" and ".join(curve.rates), fontsize=9)
    below.plot(xs, [point.p50_ms for point in points], "o-", color=COLOURS[0], label="p50", markersize=4)
    below.plot(xs, [point.p99_ms for point in points], "o--", color=COLOURS[0], label="p99", markersize=4)
    below.set_title(curve.latency, fontsize=9)
    below.set_xlabel(curve.grows)
    for panel in (above, below):
        panel.set_xscale("symlog", linthresh=min(x for x in xs if x), linscale=0.3)
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.set_ylim(low / 3, high * 3)
        panel.grid(color=FAINT, linewidth=0.5)
        panel.legend(frameon=False, fontsize=8)
        unframe(panel)
