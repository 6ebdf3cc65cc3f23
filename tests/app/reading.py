"""Reading a page that AppTest has run."""

from __future__ import annotations

import json
from typing import Any

from streamlit.testing.v1 import AppTest


def chart(app: AppTest) -> dict[str, Any]:
    """The page's one Plotly figure as JSON."""
    (figure,) = app.get("plotly_chart")
    document: dict[str, Any] = json.loads(figure.proto.spec)
    return document


def words(app: AppTest) -> str:
    """All text on a page, to look for sentences in it."""
    parts: list[str] = []
    for kind in ("title", "subheader", "markdown", "caption", "info", "warning", "error", "success", "code"):
        parts += [str(element.value) for element in app.get(kind)]
    return "\n".join(parts)
