"""task_types.json in the data folder: the task types that workers have declared (see core/types.py).

It is written whole, and synced, whenever a declaration brings something new, which is when code is deployed.
"""

from __future__ import annotations

import json
from pathlib import Path

from taskq.core.types import TaskType, Types
from taskq.errors import StartError
from taskq.storage.files import replace_file

NAME = "task_types.json"
VERSION = 1


def read(folder: Path) -> Types:
    """What was declared, nothing if there is no file.  Raises StartError if it cannot be used."""
    path = folder / NAME
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise ValueError(f"it must be an object with version {VERSION}")
        return Types({each["name"]: TaskType.load(each) for each in found["task_types"]})
    except FileNotFoundError:
        return Types()
    except (OSError, ValueError, TypeError, KeyError) as error:
        way_out = "restore it, or remove it: workers declare their task types when they connect"
        raise StartError(f"{path}: cannot be used: {error}; {way_out}") from None


def write(folder: Path, types: Types) -> None:
    rows = [each.dump() for each in types.values()]
    replace_file(folder / NAME, json.dumps({"version": VERSION, "task_types": rows}, indent=1).encode() + b"\n")
