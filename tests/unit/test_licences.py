"""docs/licences.md lists what the requirements name, as it is pinned now."""

from __future__ import annotations

import re

from tests import licences


def listed() -> dict[str, tuple[str, str]]:
    """Version and licence of each package on the page."""
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.*) \|$", licences.PAGE.read_text(), re.MULTILINE)
    return {name.strip("*"): (version, licence) for name, version, licence in rows if name != "package"}


def test_every_pinned_package_is_listed_with_its_version_and_licence() -> None:
    page = listed()
    for _, file in licences.PARTS:
        for name, version in licences.pins(file).items():
            assert name in page, f"{file}: {name} is not in docs/licences.md; make licences"
            assert page[name][0] == version, f"{file}: {name} {version} is not in docs/licences.md; make licences"


def test_what_the_pinned_packages_bring_along_is_listed_too() -> None:
    brought = licences.with_what_they_need("requirements.txt")
    assert {"starlette", "tokenizers", "protobuf"} <= brought.keys()
    # What a system brings of its own, such as NVIDIA's libraries, is not in a page that was written on another.
    assert {"starlette", "tokenizers", "protobuf"} <= listed().keys()
    for name, (_, licence) in listed().items():
        assert len(licence) > 2, name
