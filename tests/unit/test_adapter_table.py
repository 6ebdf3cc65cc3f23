from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine import catalog
from engine.adapter_table import COLUMNS, FIGURES, capabilities, costs
from engine.catalog.abilities import ABILITIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adapter-types.md"


def section(text: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading, without the header."""
    body = text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_page_says_what_the_catalog_says() -> None:
    assert capabilities() in PAGE.read_text(encoding="utf-8"), "run `make adapter-table`"


def test_the_page_lists_exactly_the_catalogs_types() -> None:
    text = PAGE.read_text(encoding="utf-8")
    labels = [choice.label for choice in catalog.adapter_choices()]
    assert [row[0] for row in section(text, "What they can do")] == labels
    assert [row[0] for row in section(text, "What they cost")] == labels
    types = {choice.type for choice in catalog.adapter_choices()}
    unavailable = set(re.findall(r"^- \*\*.*\*\* \(`(\w+)`\): ", text, re.MULTILINE))
    assert types | unavailable == set(catalog.adapter_types())
    assert not types & unavailable


def test_every_adapter_has_its_figures_except_for_what_it_cannot_do() -> None:
    text = PAGE.read_text(encoding="utf-8")
    merges = {row[0]: row[list(COLUMNS).index("merge") + 1] for row in section(text, "What they can do")}
    for label, *cells in section(text, "What they cost"):
        found = dict(zip(FIGURES, cells, strict=True))
        missing = [name for name, cell in found.items() if cell == "–"]
        assert missing == ([] if merges[label] == "yes" else ["merge_time_s"]), label


def test_the_page_names_the_machine_the_versions_the_commit_and_n() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(
        r"Measured on .+, \d+ cores, .+, Python 3\.\S+, torch \S+, transformers \S+, peft \S+, commit \w{10}", text
    )
    assert re.search(r"Medians of n = \d+ after one warm-up", text)


def test_every_column_is_an_ability_and_every_footnote_is_used() -> None:
    assert set(COLUMNS) <= set(ABILITIES)
    text = capabilities()
    used = {int(number) for number in re.findall(r"<sup>(\d+)</sup>", text)}
    assert used == {int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.0012345, 1.0, 0.001], "1.23"), ([0.05, 0.0123, 0.01], "12.3"), ([12.3456], "12,346"), ([], "–")],
)
def test_a_figure_is_the_median_in_milliseconds_with_three_digits(values: list[float], shown: str) -> None:
    assert section(costs({"lora": {"init_time_s": values}}, []), "What they cost")[0][2] == shown
