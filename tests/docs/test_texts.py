"""What the documents name exists: files, links, words; and what they are written in can be read."""

from __future__ import annotations

import re

import pytest
from blocks import FOLDER, blocks, documents, read, table

LINE_CHARACTERS_MAX = 150
SUFFIXES = ("py", "md", "toml", "cfg", "sqlite")
# what a user has, not the repository
OF_USERS = frozenset({"tasks.py", "taskq.toml", "store.sqlite", "backup.sqlite"})
CODE = re.compile(r"^```.*?^```$", re.M | re.S)


def prose(document: str) -> str:
    return CODE.sub("", read(document))


@pytest.mark.parametrize("document", documents())
def test_links_lead_to_files(document: str) -> None:
    folder = (FOLDER / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose(document)):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("document", documents())
def test_files_that_are_named_exist(document: str) -> None:
    names = {name.split()[0] for name in re.findall(rf"`([\w./-]+\.(?:{'|'.join(SUFFIXES)})|[\w.-]+/[\w./-]*)(?: [^`]*)?`", prose(document))}
    for name in names - OF_USERS:
        found = any((folder / name).exists() for folder in (FOLDER, FOLDER / "taskq", FOLDER / "docs"))
        assert found or not looks_like_ours(name), name


def looks_like_ours(name: str) -> bool:
    """Paths of a data folder, of HTTP and of media types are none of the repository's."""
    first = name.split("/")[0]
    return (FOLDER / first).is_dir() or (FOLDER / "taskq" / first).is_dir() or ("/" not in name and name.endswith((".py", ".md")))


def test_tests_that_the_readme_names_can_be_run() -> None:
    named = {path for line in re.findall(r"`pytest ([^`]+)`", read("README.md")) for path in line.split()}
    assert named
    for path in named:
        assert (FOLDER / path).exists(), path


def test_commands_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    for document in documents():
        named = set(re.findall(r"`make ([a-z-]+)", prose(document)))
        assert named <= targets, (document, named - targets)


def test_the_glossary_has_each_word_once_in_order() -> None:
    _, *rows = table(read("docs/glossary.md"), "word")
    words = [row[0] for row in rows]
    assert len(set(words)) == len(words)
    assert words == sorted(words, key=str.lower)
    assert all(len(row) == 2 and row[1] for row in rows)


def test_every_decision_is_in_the_index() -> None:
    files = {path.name for path in (FOLDER / "docs" / "adr").glob("0*.md")}
    index = read("docs/adr/README.md")
    assert set(re.findall(r"\((\d{4}-[a-z-]+\.md)\)", index)) == files
    for name in files:
        title = read(f"docs/adr/{name}").splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. "), title


@pytest.mark.parametrize("document", [each for each in documents() if each != "docs/protocol.md"])
def test_lines_can_be_read(document: str) -> None:
    for line in prose(document).splitlines():
        assert line.startswith("|") or len(line) <= LINE_CHARACTERS_MAX, f"{len(line)} characters: {line}"


def test_python_in_the_documents_is_python() -> None:
    for document in documents():
        for block in blocks(document):
            if block.language == "python":
                compile(block.text, f"{document}:{block.line}", "exec", flags=0x2000)
