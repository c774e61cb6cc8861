"""What the pictures of all benches have in common: SVG, no frame, and the same file for the same figures.  Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, FAINT = "#d9480f", "#868e96", "#dee2e6"


def unframe(panel: Axes) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def save(figure: Figure, file: Path) -> None:
    pyplot.rcParams["svg.hashsalt"] = "taskq"
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)
