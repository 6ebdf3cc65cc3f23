"""The licences of everything that is installed with the project, into ``docs/licences.md``: ``make licences``.

Reads what the installed packages say of themselves. A package that says nothing is an error: somebody has to look.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
#: What is installed for what, each with the file that names it.
PARTS = (
    ("The dashboard and its engine", "requirements.txt"),
    ("Several machines: `make cluster`", "engine/executors/requirements-cluster.txt"),
    ("The tests", "tests/requirements.txt"),
)
_CLASSIFIER = "License :: OSI Approved :: "
_LONGEST = 60


def pins(file: str) -> dict[str, str]:
    """The packages that a requirements file names itself, by their normal name, with their versions."""
    lines = (ROOT / file).read_text().splitlines() if (ROOT / file).exists() else []
    named = (Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-r ")))
    return {normal(one.name): str(one.specifier).removeprefix("==") for one in named}


def normal(name: str) -> str:
    """A package's name as all ways to write it are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_what_they_need(file: str) -> dict[str, Distribution]:
    """The installed packages that a requirements file brings along, by name; without what this system does not need."""
    lines = (ROOT / file).read_text().splitlines() if (ROOT / file).exists() else []
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-r "))]
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        one = wanted.pop()
        key = (normal(one.name), frozenset(one.extras))
        if key in done:
            continue
        done.add(key)
        try:
            distribution = importlib.metadata.distribution(one.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[key[0]] = distribution
        extras = one.extras or {""}
        for line in distribution.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
    return dict(sorted(found.items()))


def licence(distribution: Distribution) -> str:
    """The licence that a package names, as short as it says it.

    Raises:
        LookupError: when it names none.
    """
    about = distribution.metadata
    if expression := about.get("License-Expression"):
        return expression
    named = [
        line.removeprefix(_CLASSIFIER) for line in about.get_all("Classifier") or () if line.startswith(_CLASSIFIER)
    ]
    if named:
        return " and ".join(named)
    first = (about.get("License") or "").strip().partition("\n")[0].strip()
    if first and len(first) <= _LONGEST and first.upper() != "UNKNOWN":
        return first
    raise LookupError(f"{about['Name']} {distribution.version} names no licence; look into its files")


def page() -> str:
    """The whole page."""
    lines = [
        "# Licences of what is installed along",
        "",
        "PEFT Lab itself is under the Apache License 2.0. `make licences` writes this page from what the installed",
        "packages say of themselves; packages in bold are named by the project, the others are brought along by them.",
        "A build of PyTorch for GPUs brings NVIDIA's own libraries, under NVIDIA's licences. None of these is a part",
        "of this repository: pip installs them.",
    ]
    listed: set[str] = set()
    for title, file in PARTS:
        found = {name: one for name, one in with_what_they_need(file).items() if name not in listed}
        if not found:
            continue
        lines += ["", f"## {title}", "", f"`{file}`", "", "| package | version | licence |", "|---|---|---|"]
        lines += rows(found.values(), pins(file))
        listed |= found.keys()
    return "\n".join(lines) + "\n"


def rows(found: Iterable[Distribution], named: dict[str, str]) -> list[str]:
    """A line of the table for each package."""
    made = []
    for one in found:
        name = normal(one.metadata["Name"])
        # A local build's suffix is no version of anybody else's.
        version = one.version.partition("+")[0]
        made.append(f"| {f'**{name}**' if name in named else name} | {version} | {licence(one).replace('|', '/')} |")
    return made


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except LookupError as error:
        sys.exit(str(error))
