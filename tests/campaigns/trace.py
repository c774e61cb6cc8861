"""What `strace` says about files, as operations of a CrashDisk in their order.

`-f` shows the threads of all processes in one order, `-y` the path behind a descriptor, `-xx` every byte.  A call that another one interrupts is
in two lines, so an operation has a beginning and an end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from campaigns.crash_disk import Operation

CALLS = (
    "openat,write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat"
)
COMMAND = ("strace", "-f", "--seccomp-bpf", "-ttt", "-y", "-xx", "-s", "8000000", "-e", "signal=none")
HEX = r"((?:\\x[0-9a-f]{2})*)"
LINE = re.compile(r"(\d+) +(\d+\.\d+) (?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$", re.DOTALL)
RESULT = re.compile(r" = (-?\d+)[^=]*$")
OF_FD = re.compile(rf"\d+<{HEX}>(\(deleted\))?")
STRING = re.compile(rf'"{HEX}"')
FOLDER = re.compile(rf"(?:AT_FDCWD|\d+)<{HEX}>, $")


@attrs.define
class Step:
    """The beginning or the end of an operation."""

    operation: Operation
    ends: bool


def text(digits: str) -> str:
    return unhex(digits).decode(errors="surrogateescape")


def unhex(digits: str) -> bytes:
    return bytes.fromhex(digits.replace("\\x", ""))


def steps(trace: Path, root: Path, marks: Path) -> list[Step]:
    """What happened to the files below `root`, and what was written into `marks`.  Calls that failed are left out."""
    found: list[Step] = []
    open_calls: dict[str, tuple[str, str, list[Operation]]] = {}
    failed: set[Operation] = set()
    with trace.open() as lines:
        for line in lines:
            if (parts := LINE.match(line.rstrip("\n"))) is None:
                continue
            pid, at, _, rest, call, arguments = parts.groups()
            if call is not None:
                interrupted = arguments.endswith("<unfinished ...>")
                operations = [each for each in operations_of(call, arguments) if is_ours(each, root, marks)]
                for operation in operations:
                    operation.at_s = float(at)
                    found.append(Step(operation, ends=False))
                if interrupted:
                    open_calls[pid] = (call, arguments, operations)
                    continue
                rest = arguments
            else:
                _, _, operations = open_calls.pop(pid, ("", "", []))
            result = RESULT.search(rest)
            if result is None or int(result[1]) < 0:
                failed.update(operations)
            found += [Step(operation, ends=True) for operation in operations]
            shorten(operations, result)
    return [step for step in found if step.operation not in failed]


def shorten(operations: list[Operation], result: re.Match[str] | None) -> None:
    """A write may have taken fewer bytes than it was given."""
    for operation in operations:
        if operation.kind == "write" and result is not None and 0 <= int(result[1]) < len(operation.data):
            operation.data = operation.data[: int(result[1])]


def is_ours(operation: Operation, root: Path, marks: Path) -> bool:
    if operation.path == str(marks):
        operation.kind = "mark" if operation.kind == "write" else "nothing"
        return operation.kind == "mark"
    inside = operation.path.startswith(f"{root}/") or (operation.kind == "sync" and operation.path == str(root))
    return inside and not operation.path.endswith("-shm")


def operations_of(call: str, arguments: str) -> Iterator[Operation]:
    """The operations that a call stands for."""
    if call in ("fsync", "fdatasync", "sync_file_range"):
        if (file := OF_FD.match(arguments)) and not file[2]:
            yield Operation("sync", text(file[1]))
    elif call in ("write", "pwrite64", "writev", "pwritev"):
        yield from written(call, arguments)
    elif call == "ftruncate":
        file = OF_FD.match(arguments)
        if not file[2]:
            yield Operation("truncate", text(file[1]), offset=int(re.search(r", (\d+)\)?", arguments[file.end() :])[1]))
    elif call == "fallocate":
        raise AssertionError("fallocate is not modelled")
    else:
        yield from named(call, arguments)


def written(call: str, arguments: str) -> Iterator[Operation]:
    file = OF_FD.match(arguments)
    if file is None or file[2] or not file[1].startswith("\\x2f"):
        return
    rest = arguments[file.end() :]
    data = b"".join(unhex(piece) for piece in STRING.findall(rest))
    assert '"...' not in rest, "the trace cuts what is written"
    offset = None
    if call in ("pwrite64", "pwritev"):
        offset = int(re.search(r", (\d+)(?:\)| <unfinished)", rest[rest.rfind('"') :])[1])
    yield Operation("write", text(file[1]), offset=offset, data=data)


def named(call: str, arguments: str) -> Iterator[Operation]:
    paths = [absolute(arguments, each) for each in STRING.finditer(arguments)]
    if call == "openat":
        if "O_CREAT" in arguments:
            yield Operation("create", paths[0])
        if "O_TRUNC" in arguments:
            yield Operation("truncate", paths[0], offset=0)
    elif call.startswith("rename"):
        yield Operation("rename", paths[0], target=paths[1])
    elif call.startswith("unlink"):
        yield Operation("unlink", paths[0])
    else:
        yield Operation("mkdir", paths[0])


def absolute(arguments: str, found: re.Match[str]) -> str:
    """The path as it is, or behind the folder that stands in front of it."""
    path = text(found[1])
    folder = FOLDER.search(arguments[: found.start()])
    return path if path.startswith("/") or folder is None else f"{text(folder[1])}/{path}"
