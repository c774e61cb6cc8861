"""The version of taskq, alone in a file so that everything may import it."""

from __future__ import annotations

VERSION = "0.1.0"
