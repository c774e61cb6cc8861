"""The code blocks of a document and what is to become of them, as the comment above each says.

    <!-- file: NAME -->       save it under this name                       <!-- pytest -->   save it as a test and run that
    <!-- run -->              run it to its end, which must be exit code 0  <!-- start -->    start each command and leave it running
    <!-- start: NAME -->      the same; whatever was started before ends first            <!-- not run: WHY -->

In a console block a line that begins with `$` is a command, those below it are what it says; `…` stands for anything.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

FOLDER = Path(__file__).parents[2]
LANGUAGES = ("python", "console", "ini", "toml")
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_MARK = re.compile(r"(?P<verb>file|run|start|pytest|not run)(?:: (?P<what>.+))?")


@attrs.frozen
class Block:
    """`line`: where it stands in its document.  `verb` "" : nothing was said about it."""

    document: str
    line: int
    language: str
    text: str
    verb: str
    what: str


@attrs.frozen
class Command:
    """A command of a console block and what it says."""

    text: str
    says: str


def documents() -> list[str]:
    return ["README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(str(path.relative_to(FOLDER)) for path in (FOLDER / "docs").rglob("*.md"))]


def read(document: str) -> str:
    return (FOLDER / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[Block]:
    text = read(document)
    found = []
    for match in _BLOCK.finditer(text):
        mark = _MARK.fullmatch(match["mark"] or "")
        verb, what = (mark["verb"], mark["what"] or "") if mark else ("", "")
        found.append(Block(document, text.count("\n", 0, match.start("language")) + 1, match["language"], match["text"], verb, what))
    return found


def commands(block: Block) -> list[Command]:
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        text, _, says = part.partition("\n")
        found.append(Command(text, says))
    return found


def pattern(says: str) -> str:
    """A regular expression for what a command says: spaces count once, `…` is anything."""
    words = [re.escape(word).replace("…", ".*") for word in says.split()]
    return r"\s+".join(words)


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first line begins with this, without the line of dashes."""
    start = text.index(f"| {heading}")
    lines = text[start:].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
