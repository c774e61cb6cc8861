"""The house stands as it was drawn: imports point down, what is pure stays pure, nothing is shared behind anyone's back, and nothing grows too big.

All of it is read from the syntax trees; nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "taskq"

# from the ground up; a part may import what stands in the rows below it, never its neighbours.  `taskq` is the package's own public names.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "ids", "clock", "version", "printable", "foreign", "loops"),
    ("durations", "advice", "instead"),
    ("core", "config", "control"),
    ("protocol", "storage", "gateway", "serial", "trust"),
    ("actors", "connection", "handle"),
    ("node", "worker"),
    ("options",),
    ("batch", "waits", "declared"),
    ("client",),
    ("blocking",),
    ("clients",),
    ("app",),
    ("taskq",),
    ("eager",),
    ("testing",),
    ("cli",),
    ("__main__",),
]
# the broker and its clients share the core and the wire, and know nothing else of each other
BROKER = {"storage", "gateway", "actors", "node"}
CLIENTS = {
    "serial",
    "trust",
    "control",
    "handle",
    "connection",
    "worker",
    "options",
    "batch",
    "waits",
    "declared",
    "client",
    "blocking",
    "loops",
    "app",
}

# values in, values out: time, randomness and whatever can wait are handed in
PURE = ("core", "protocol", "gateway")
IMPURE_MODULES = {
    "asyncio", "concurrent", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "queue", "secrets", "select", "selectors", "shutil",
    "signal", "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid", "uvloop",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "hash"}

# lower-case names of modules that are no functions: file → name → why it is no state
STATED: dict[str, dict[str, str]] = {
    "protocol/codec.py": {"pack": "one packer for all: it holds nothing between two calls"},
    "storage/rows.py": {"pack": "one packer for all: it holds nothing between two calls"},
    "gateway/enqueue.py": {"_read_object": "a decoder, which holds nothing", "_read_list": "a decoder, which holds nothing"},
}
MUTATORS = {"append", "add", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "sort", "update"}

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

FILES = sorted(ROOT.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
pure_files = [path for path in FILES if path.relative_to(ROOT).parts[0] in PURE]
every_pure_file = pytest.mark.parametrize("path", pure_files, ids=[str(path.relative_to(ROOT)) for path in pure_files])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "taskq" if first == "__init__" else first


def imported_parts(path: Path) -> Iterator[tuple[str, int]]:
    """The parts of taskq that a file imports, for types or in functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "taskq":
                yield (rest[0] if rest and rest[0] in PARTS else "taskq"), node.lineno


PARTS = {part for row in LAYERS for part in row}
HEIGHT = {part: height for height, row in enumerate(LAYERS) for part in row}


def test_every_part_has_its_place() -> None:
    assert {part_of(path) for path in FILES} == PARTS


@every_file
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    wrong = [f"line {line}: {other}" for other, line in imported_parts(path) if other != part and HEIGHT[other] >= HEIGHT[part]]
    assert not wrong, f"{part} imports what is not below it: {wrong}"


@every_file
def test_the_broker_and_its_clients_share_the_core_and_the_wire_only(path: Path) -> None:
    part = part_of(path)
    other_side = CLIENTS if part in BROKER else BROKER if part in CLIENTS else set()
    wrong = [f"line {line}: {other}" for other, line in imported_parts(path) if other in other_side]
    assert not wrong, f"{part} imports from the other side: {wrong}"


def loaded_with(first: Path) -> set[Path]:
    """The files that are imported at once when this one is."""
    seen: set[Path] = set()
    found = [first]
    while found:
        path = found.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in tree(path).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
                files = [ROOT.parent / f"{name.replace('.', '/')}.py" for name in names]
                found += [file for file in files if file in FILES]
    return seen


def test_a_program_that_enqueues_loads_the_wire_and_no_shard() -> None:
    """It would start a quarter slower, and so would each process of a worker."""
    loaded = loaded_with(ROOT / "__init__.py")
    assert ROOT / "core" / "messages.py" in loaded
    assert not {ROOT / "core" / f"{name}.py" for name in ("book", "enqueue", "queue", "shard")} & loaded


@every_pure_file
def test_what_is_pure_reads_no_clock_and_touches_no_world(path: Path) -> None:
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.AsyncFunctionDef, ast.Await)):
            wrong.append(f"line {node.lineno}: async")
        elif isinstance(node, ast.Import):
            wrong += [f"line {node.lineno}: {name.name}" for name in node.names if name.name.split(".")[0] in IMPURE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in IMPURE_MODULES | {"random"}:
            wrong.append(f"line {node.lineno}: {node.module}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            wrong.append(f"line {node.lineno}: {node.func.id}()")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random" and node.attr != "Random":
            wrong.append(f"line {node.lineno}: random.{node.attr}")
    assert not wrong, wrong


def test_the_core_makes_no_randomness() -> None:
    """It may name the type of the generator that it is given, and no more."""
    calls = [node for path in pure_files for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not [ast.unparse(call) for call in calls if ast.unparse(call.func) == "random.Random"]


@every_file
def test_no_module_keeps_state(path: Path) -> None:
    stated = STATED.get(str(path.relative_to(ROOT)), {})
    wrong = [f"line {line}: {name}" for name, line in _module_names(path) if not _is_constant(name) and name not in stated]
    wrong += [f"line {node.lineno}: global" for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]
    assert not wrong, wrong


@every_file
def test_tables_are_only_read(path: Path) -> None:
    """What stands in capitals is never changed after the module was read."""
    wrong = []
    for function in ast.walk(tree(path)):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)) and _is_table(node.value):
                wrong.append(f"line {node.lineno}: {ast.unparse(node)} is set")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS and _is_table(node.func.value):
                wrong.append(f"line {node.lineno}: {ast.unparse(node.func)}()")
    assert not wrong, wrong


def _module_names(path: Path) -> Iterator[tuple[str, int]]:
    for node in tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, (ast.AnnAssign, ast.AugAssign)) else []
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    yield name.id, node.lineno


def _is_constant(name: str) -> bool:
    """A constant or table, the name of a type, a logger, or what Python itself reads."""
    bare = name.lstrip("_")
    return bare == bare.upper() or (bare[0].isupper() and "_" not in bare) or name == "log" or name.startswith("__")


def _is_table(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return len(name) > 1 and name == name.upper() and name.strip("_") != ""


@every_file
def test_no_file_and_no_function_is_too_big(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES_MAX
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    sizes = {f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: size for name, size in sizes.items() if size > FUNCTION_LINES_MAX}


@every_file
def test_every_file_says_what_it_is(path: Path) -> None:
    if tree(path).body:
        assert ast.get_docstring(tree(path))
