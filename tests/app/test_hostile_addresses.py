"""Addresses that somebody typed, cut or made up: every page shows what it can, and no traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from db.session import Database
from tests.app import stored

VIEWS = Path(__file__).resolve().parents[2] / "app" / "views"
PAGES = sorted(path.stem for path in VIEWS.glob("*.py") if path.stem != "__init__")
# These read their choices from the address by hand while they are presented.
PRESENTED = ("case", "compare", "fit", "overview", "predict")
VALUES = (
    "",
    "0",
    "-1",
    "1,2,x,,3",
    "9" * 400,
    "1e999",
    "NaN",
    "null",
    "true",
    "../../etc/passwd",
    "~nobody-of-this-name/model",
    "/dev/zero",
    "owner/--name",
    "<script>alert(1)</script>",
    "\u202e[a](javascript:alert(1)) :red[b] $x$",
    "x" * 3000,
    "é\u0301\u0000",
    "(((a+)+)+)+$",
    "state = ",
    "kind = train AND (",
)


def parameters() -> list[str]:
    """Every name that some page may read from its address."""
    code = "".join(path.read_text() for path in VIEWS.parent.rglob("*.py"))
    found = re.findall(r"""\bkey="(\w+)"|query_params\.get(?:_all)?\("(\w+)"|query_params\["(\w+)"\]""", code)
    return sorted({name for names in found for name in names if name} | {"filter", "from", "ids", "id", "size"})


@pytest.mark.parametrize(
    ("page", "is_presented"), [*((page, False) for page in PAGES), *((page, True) for page in PRESENTED)]
)
def test_no_address_breaks_a_page(
    page: str, is_presented: bool, open_page: Callable[..., AppTest], database: Database
) -> None:
    for number in range(2):
        stored.store(database, stored.init_document(seed=number), stored.result([0.5, 0.6]))
    names = parameters()
    # Another page, other values; the names that decide which run or case is shown are good on every second visit.
    start = PAGES.index(page) + 7 * is_presented
    query = {name: VALUES[(start + number) % len(VALUES)] for number, name in enumerate(names)}
    query |= {"ids": "1,2,77,x", "id": "init" if page == "case" else "1"} if is_presented else {}
    query |= {"present": "1"} if is_presented else {}
    app = open_page(page, **query)
    assert not app.exception, app.exception
