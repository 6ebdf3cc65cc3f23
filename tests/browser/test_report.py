"""The HTML report opened as a colleague would: from disk, without a network, in either scheme, and printed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

from app.report import Report, Section, report_html

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) {{ 7 * 7 }}"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """A report with one chart of each drawing technique (SVG, WebGL) and hostile text everywhere."""
    bars = go.Figure([go.Bar(x=["LoRA", HOSTILE], y=[1.0, 2.0], name=HOSTILE)], layout={"title": HOSTILE})
    lines = go.Figure(
        go.Parcoords(dimensions=[{"label": "rank", "values": [4, 8, 16]}, {"label": HOSTILE, "values": [1, 3, 2]}])
    )
    sections = (
        Section(HOSTILE, HOSTILE, bars, pd.DataFrame({HOSTILE: [HOSTILE], "seconds": [1.5]}), alt=HOSTILE),
        Section("Parallel", figure=lines),
    )
    path = tmp_path / "report.html"
    path.write_text(report_html(Report(HOSTILE, "Made today", sections)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_opens_offline_with_its_charts_and_runs_nothing_of_what_was_typed(
    chromium: object, report: Path, scheme: str
) -> None:
    context = chromium.new_context(color_scheme=scheme, offline=True)  # type: ignore[attr-defined]
    tab = context.new_page()
    asked: list[str] = []
    broken: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (broken.append(dialog.message), dialog.dismiss()))
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    tab.goto(report.as_uri())
    tab.wait_for_selector("[data-chart] .main-svg")
    tab.wait_for_selector("[data-chart] canvas")
    assert tab.title() == HOSTILE
    assert tab.get_by_role("heading", level=2).first.inner_text() == HOSTILE
    assert tab.get_by_role("img", name=HOSTILE).count() == 1
    assert tab.locator(".gtitle").first.text_content() == HOSTILE
    assert tab.locator("a[href], iframe, img").count() == 0
    is_dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    tick = tab.locator(".xtick text").first
    light_text = "rgb(28, 39, 51)"
    assert is_dark == (scheme == "dark")
    assert (tick.evaluate("node => getComputedStyle(node).fill") == light_text) == (scheme == "light")
    # Paper is light and narrow, whatever the screen is.
    wide_px = tab.locator(".main-svg").first.bounding_box()["width"]
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert tick.evaluate("node => getComputedStyle(node).fill") == light_text
    assert tab.locator(".main-svg").first.bounding_box()["width"] == 680 < wide_px
    tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert tab.locator(".main-svg").first.bounding_box()["width"] == wide_px
    assert len(tab.pdf()) > 10_000
    context.close()
    assert asked == [report.as_uri()]
    assert broken == []


def test_a_script_that_got_into_a_report_all_the_same_would_not_run(chromium: object, report: Path) -> None:
    html = report.read_text(encoding="utf-8").replace(
        "</main>", "<script>alert(1)</script><img src=x onerror=alert(2)>"
    )
    report.write_text(html, encoding="utf-8")
    context = chromium.new_context()  # type: ignore[attr-defined]
    tab = context.new_page()
    opened: list[str] = []
    tab.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    tab.goto(report.as_uri())
    tab.wait_for_selector("[data-chart] .main-svg")
    context.close()
    assert opened == []
