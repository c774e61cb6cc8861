"""What a part of the flatness bench gives: figures, each beside the bound that it has to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs


@attrs.frozen
class Settings:
    """`folder` holds the data folders, on the disk to measure; `scale` 1.0 is the full size, a smaller one says so in what is found."""

    folder: Path
    scale: float = 1.0

    def sized(self, full: int) -> int:
        return max(1, round(full * self.scale))


@attrs.frozen
class Finding:
    """`bound`: what `value` may be at most, or at least; None where there is none."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_met(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (self.at_least is None or self.value >= self.at_least)


# a part measures the real broker in processes of its own, and yields each figure as soon as it has it
Part = Callable[[Settings], Iterator[Finding]]
