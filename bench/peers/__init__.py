"""Side by side with other queues.  What the load bench has already (programs, limits of the machine, the broker) is taken from there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "load"))
