"""What taskq asks to be installed beside it: little, and nothing with a hole that is known and closed."""

from __future__ import annotations

import configparser
from importlib.metadata import version
from pathlib import Path

import pytest

CONFIG = configparser.ConfigParser()
CONFIG.read(Path(__file__).parents[1] / "setup.cfg")
REQUIRED = [line for line in CONFIG["options"]["install_requires"].splitlines() if line]
# package → the first version without the hole
CLOSED = {"msgpack": "1.2.1"}
TESTED = {"h11": "0.16"}


def bounds(lines: list[str]) -> dict[str, str]:
    return {name.strip(): rest.partition(";")[0].strip() for name, _, rest in (line.partition(">=") for line in lines)}


def number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


@pytest.mark.parametrize(("name", "least"), CLOSED.items())
def test_versions_with_a_known_hole_cannot_be_installed_beside_it(name: str, least: str) -> None:
    assert number(bounds(REQUIRED)[name]) >= number(least)
    assert number(version(name)) >= number(least)


def test_the_second_parser_of_the_tests_has_no_known_hole_either() -> None:
    found = bounds([line for line in CONFIG["options.extras_require"]["test"].splitlines() if line])
    assert all(number(found[name]) >= number(least) for name, least in TESTED.items())


def test_there_are_few_packages_and_each_has_a_lower_bound() -> None:
    assert len(REQUIRED) <= 10
    assert all(number(least) for least in bounds(REQUIRED).values())
