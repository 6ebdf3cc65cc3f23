"""The HTML report as text: one file, nothing of it from outside, and everything typed shown as it was typed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from app.report import Report, Section, report_html

HOSTILE = "<script>alert(1)</script> <img src=x onerror=alert(2)> {{ 7 * 7 }} {% raw %} </title> \" ' & \ud800"


class Page(HTMLParser):
    """The elements and texts of a page, as a browser would take it apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


def figure(text: str = "LoRA") -> go.Figure:
    return go.Figure(
        [go.Bar(x=["a", text], y=np.array([1.5, 2.5]), name=text)], layout={"title": text, "template": "plotly_dark"}
    )


def report(*sections: Section, title: str = "Title") -> Report:
    return Report(title, "Made today", sections)


def test_what_was_typed_is_text_wherever_it_stands() -> None:
    table = pd.DataFrame({"<b>column</b>": ["<i>cell</i>", HOSTILE.replace("\ud800", "")]})
    page = Page(report_html(report(Section(HOSTILE, HOSTILE, figure(HOSTILE), table, alt=HOSTILE), title=HOSTILE)))
    shown = HOSTILE.replace("\ud800", "?")
    assert page.texts["title"] == page.texts["h1"] == page.texts["h2"] == [shown]
    assert shown in page.texts["p"]
    assert page.texts["th"] == ["<b>column</b>"]
    assert page.texts["td"][0] == "<i>cell</i>"
    assert not [tag for tag, _ in page.tags if tag in ("img", "b", "i", "a", "iframe", "link", "object")]
    assert sum(tag == "script" for tag, _ in page.tags) == 3


def test_nothing_is_loaded_from_anywhere_and_only_our_two_scripts_may_run() -> None:
    page = Page(report_html(report(Section("Chart", figure=figure()))))
    assert not [name for _, attributes in page.tags for name in attributes if name in ("src", "href", "srcset")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    policy = next(
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    scripts = [text for text in page.texts["script"] if "Plotly" in text]
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert len(hashes) == 2


def test_the_chart_library_is_there_once_however_many_charts_and_not_at_all_without() -> None:
    many = report_html(report(*(Section(f"Chart {number}", figure=figure()) for number in range(5))))
    one = report_html(report(Section("Chart", figure=figure())))
    none = report_html(report(Section("Table", table=pd.DataFrame({"a": [1]}))))
    assert len(many) - len(one) < 20_000
    assert len(none) < 10_000
    assert "<script" not in none


def test_a_chart_leaves_its_colours_to_the_page_and_says_in_words_what_it_shows() -> None:
    html = report_html(
        report(Section("Seconds", figure=figure(), alt="DoRA takes longer"), Section("", figure=figure()))
    )
    charts = [json.loads(text) for text in Page(html).texts["script"] if text.startswith('{"data"')]
    assert [chart["layout"] for chart in charts] == [{"title": {"text": "LoRA"}}] * 2
    labels = [attributes["aria-label"] for tag, attributes in Page(html).tags if tag == "figure"]
    assert labels == ["DoRA takes longer", "Chart"]


@pytest.mark.parametrize(
    ("value", "text", "is_number"),
    [
        (0.123456789, "0.123457", True),
        (12, "12", True),
        (np.int64(3), "3", True),
        (np.float32(2.5), "2.5", True),
        (True, "yes", False),
        (np.bool_(False), "no", False),
        (None, "–", False),
        (float("nan"), "–", False),
        (pd.NaT, "–", False),
        (pd.NA, "–", False),
        (["a", "b"], "a, b", False),
        ("1.50 s", "1.50 s", False),
    ],
)
def test_cells_are_texts_and_numbers_stand_on_the_right(value: object, text: str, is_number: bool) -> None:
    frame = pd.DataFrame({"a": pd.Series([value], dtype=object)})
    page = Page(report_html(report(Section("T", table=frame))))
    assert page.texts["td"] == [text]
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "td"] == [
        "number" if is_number else "short"
    ]


def test_paragraphs_and_empty_parts() -> None:
    page = Page(report_html(report(Section("", "one\nline\n\n\n\ntwo"), Section("Empty"))))
    assert page.texts["p"][1:] == ["one\nline", "two"]
    assert page.texts["h2"] == ["Empty"]
