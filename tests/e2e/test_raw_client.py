"""The example that speaks the protocol by hand: what docs/protocol.md says is enough to write a client."""

from __future__ import annotations

import ast
import asyncio
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "raw_client.py"
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


async def test_the_raw_client_enqueues_works_and_acknowledges_a_task(broker: Any) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), broker.tcp, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    assert re.fullmatch(r"[0-9a-f]{32} completed 'hello world'\n", out.decode())


def test_the_raw_client_needs_nothing_but_sockets_and_msgpack() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported <= {"socket", "struct", "sys", "zlib", "msgpack"}


def test_the_raw_client_has_at_most_forty_lines_of_code() -> None:
    source = EXAMPLE.read_text()
    tree = ast.parse(source)
    docstring = range(tree.body[0].lineno, (tree.body[0].end_lineno or 0) + 1)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    assert len(lines - set(docstring)) <= 40
