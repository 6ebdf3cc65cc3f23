"""Every promise of docs/reliability.md stands beside a test that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def test_every_promise_names_a_test_in_the_file_that_it_links_to() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "---" not in line]
    promises = [row for row in rows if row != "| promise | test |"]
    assert promises
    for row in promises:
        named = re.findall(r"\[(test_\w+)\]\(([^)]+)\)", row)
        assert named, row
        for test, path in named:
            assert f"def {test}(" in (PAGE.parent / path).read_text(), test
