"""One self-contained HTML file from figures, tables and texts: charts stay interactive, nothing is asked of a network.

Pure: data in, text out. Chooses nothing and computes nothing; whoever calls it decides what the report holds. All text
is plain text: markup in it is shown as it was typed. Figures follow the reader's light or dark scheme.
"""

from __future__ import annotations

import base64
import hashlib
import json
import numbers
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from app import formatting

_FOLDER = Path(__file__).parent
_CHART_HEIGHT_PX = 420


@dataclass(frozen=True)
class Section:
    """A part of a report: what of heading, text, chart and table it has, in this order.

    ``text`` is plain text in which an empty line starts a new paragraph. Numbers in the table are right-aligned and
    floats have six digits at most; whoever wants units gives texts. ``alt`` says in words what the chart shows, by
    default the heading.
    """

    heading: str
    text: str = ""
    figure: go.Figure | None = None
    table: pd.DataFrame | None = None
    alt: str = ""


@dataclass(frozen=True)
class Report:
    """What is sent: ``created`` is a line of text under the title, such as when and by what it was made."""

    title: str
    created: str
    sections: tuple[Section, ...]


def report_html(report: Report) -> str:
    """The report as one HTML document, about 5 MB because the chart library is inside it."""
    has_charts = any(section.figure is not None for section in report.sections)
    library = get_plotlyjs() if has_charts else ""
    drawing = _drawing_script() if has_charts else ""
    html = _template().render(
        report=report,
        sections=[_drawable(section) for section in report.sections],
        library=library,
        drawing=drawing,
        # Only these scripts may run, whatever else got into the file; and nothing may be loaded from anywhere.
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {' '.join(map(_script_hash, filter(None, (library, drawing)))) or repr('none')}"
                # The chart library compiles the shaders of parallel coordinates from text.
                + (" 'unsafe-eval'" if has_charts else ""),
                "style-src 'unsafe-inline'",
                "img-src data: blob:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
    )
    # Half a surrogate pair cannot be written to any file.
    return html.encode("utf-8", "replace").decode("utf-8")


def _drawable(section: Section) -> dict[str, Any]:
    """A section as the template reads it."""
    figure, table = section.figure, section.table
    return {
        "heading": section.heading,
        "paragraphs": [part.strip() for part in section.text.split("\n\n") if part.strip()],
        "alt": section.alt or section.heading or "Chart",
        "chart": None if figure is None else _figure_json(figure),
        "height_px": None if figure is None else int(figure.layout.height or _CHART_HEIGHT_PX),
        "columns": None if table is None else [_cell(name) for name in table.columns],
        "rows": [] if table is None else [[_cell(value) for value in row] for row in table.itertuples(index=False)],
    }


def _cell(value: object) -> dict[str, Any]:
    """One value of a table: its text, and whether it is a number."""
    if isinstance(value, list | tuple | set | frozenset):
        return {"text": ", ".join(_cell(item)["text"] for item in value), "number": False}
    if pd.isna(value):
        return {"text": formatting.DASH, "number": False}
    if isinstance(value, bool | np.bool_):
        return {"text": "yes" if value else "no", "number": False}
    if isinstance(value, numbers.Real):
        return {"text": str(value) if isinstance(value, numbers.Integral) else f"{float(value):.6g}", "number": True}
    return {"text": str(value), "number": False}


def _figure_json(figure: go.Figure) -> str:
    """Data and layout of a figure as JSON that cannot end its script element. Its colours come with the page."""
    # The plain encoder, because the fast one refuses half surrogate pairs.
    document = json.loads(figure.to_json(engine="json"))
    layout = {name: value for name, value in document.get("layout", {}).items() if name not in ("template", "width")}
    text = json.dumps({"data": document.get("data", []), "layout": layout}, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _script_hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _drawing_script() -> str:
    colours = json.dumps(list(formatting.PALETTE))
    return (_FOLDER / "draw.js").read_text(encoding="utf-8").replace("PALETTE", colours)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
