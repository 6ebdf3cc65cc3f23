"""What the README tells people to type works, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_every_make_command_of_the_readme_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    # Only in code: prose may say that one can "make sure".
    for code in re.findall(r"`([^`\n]+)`|^(make .*)$", README, re.MULTILINE):
        for target in re.findall(r"\bmake (?:-[fC] \S+ )?([a-z-]+)", " ".join(code)):
            assert target in targets, target


def test_every_variable_of_the_readme_is_read_somewhere() -> None:
    code = "".join(path.read_text() for folder in ("app", "engine", "db") for path in (ROOT / folder).rglob("*.py"))
    for name in set(re.findall(r"PEFT_LAB_\w+", README)):
        assert f'"{name}"' in code, name


def test_every_variable_that_is_read_is_in_the_readme() -> None:
    for folder in ("app", "engine", "db"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in re.findall(r'environ\S*"(PEFT_LAB_\w+)"', path.read_text()):
                assert name in README, f"{path}: {name}"


def test_every_file_that_the_readme_shows_is_there() -> None:
    for name in re.findall(r"""(?:\]\(|src="|srcset=")(?!http)([^)#"]+)""", README):
        assert (ROOT / name).exists(), name
