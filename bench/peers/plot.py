"""The picture of a run: a panel for each of four figures, a dot for the median of each peer, a line from the lowest to the highest round.

The scales are logarithmic, so there are no bars: their lengths would mean nothing.  Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from picture import FAINT, OTHERS, OURS, pyplot, save, unframe

from .contract import Peer
from .report import BASE, FIGURES, Found, number

PANELS = ("end_to_end", "drain", "bulk", "latency_p50")


def draw(peers: Sequence[Peer], found: Found, depths: Sequence[int], file: Path) -> None:
    """A peer is shown at its greatest depth of those that were run."""
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 0.35 * len(peers) + 1.5), sharey=True)
    for panel, name in zip(panels, PANELS, strict=True):
        _panel(panel, name, peers, found, depths)
    panels[0].set_yticks(range(len(peers)), [f"{peer.title} · {peer.durability.split(':')[0]}" for peer in peers])
    panels[0].invert_yaxis()
    save(figure, file)


def _panel(panel: Axes, name: str, peers: Sequence[Peer], found: Found, depths: Sequence[int]) -> None:
    for row, peer in enumerate(peers):
        cells = [cell for depth in reversed(depths) if (cell := found.get(peer.name, {}).get(depth))]
        spread = next((spread for cell in cells if (spread := cell.spread(name))), None)
        if spread is None:
            panel.text(0.02, row, "not measured", transform=panel.get_yaxis_transform(), va="center", fontsize=7, color=OTHERS)
            continue
        reach = [[spread.median - spread.low], [spread.high - spread.median]]
        panel.errorbar(spread.median, row, xerr=reach, fmt="o", color=OURS if peer.name == BASE else OTHERS, capsize=2)
        panel.text(spread.high, row, f" {number(spread.median)}", va="center", fontsize=8)
    panel.set_title(f"{FIGURES[name].title}, {FIGURES[name].unit}", fontsize=9)
    panel.set_xscale("log")
    panel.margins(x=0.3)
    panel.grid(axis="y", color=FAINT, linewidth=0.5)
    panel.set_axisbelow(True)
    unframe(panel)
