"""The names of files that a browser is offered."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from app.widgets.downloads import file_name

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("compare-values", "compare-values"),
        ("run_12_metrics", "run_12_metrics"),
        ("../../etc/passwd", "etc_passwd"),
        ("a\\b:c|d?e*f", "a_b_c_d_e_f"),
        ("CON.json\r\nX-Header: 1", "CON_json_X-Header_1"),
        ("\u202eexe.txt", "exe_txt"),
        ("...", "table"),
        ("x" * 500, "x" * 80),
    ],
)
def test_a_table_is_saved_under_a_name_that_is_only_a_name(text: str, name: str) -> None:
    assert file_name(text) == name


def test_every_other_download_has_a_name_that_nobody_typed() -> None:
    """Outside of the tables' buttons: a literal, or one with a run's number in it."""
    found = 0
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.keyword) or node.arg != "file_name" or path.name == "downloads.py":
                continue
            found += 1
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            for part in parts:
                shown = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else None
                assert isinstance(part, ast.Constant) or shown == "run.id", f"{path}: {ast.unparse(node.value)}"
    assert found >= 4
