"""Files that somebody else made, in the dashboard and in the report: shown as text, run nowhere, asked for nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from db import runs
from db.session import open_database
from engine.spec import parse_spec, spec_hash
from tests.app import stored
from tests.browser.conftest import Dashboard

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) {{ 7 * 7 }} **b** "
    "https://host.example/x"
)
HUGE = 1.7e308


def hostile(seed: int) -> dict[str, Any]:
    """A document that may be stored and has markup wherever a document has text."""
    spec = parse_spec(stored.init_document(seed=seed)).model_dump(mode="json")
    spec["adapter"]["target_modules"] = [HOSTILE, "q_proj"]
    document = {**stored.result([0.5, 0.6, 0.7]), "spec": spec, "spec_hash": spec_hash(parse_spec(spec))}
    document["metrics"] += [
        stored.metric(HOSTILE, HOSTILE, HUGE, variant=HOSTILE),
        stored.metric("init_time_s", "s", -HUGE, repeat=2**31 - 1, variant="<b>x</b>", x=HUGE),
    ]
    document["checks"] = [{"name": HOSTILE, "passed": False, "detail": HOSTILE}]
    document["samples"] += [
        {"source": "process", "time_s": 9.0, "phase": HOSTILE, "category": HOSTILE, "bytes": 2**63 - 1}
    ]
    document["environment"] = {**document["environment"], "cpu": f"{HOSTILE} {seed}", HOSTILE: {"<b>": [HOSTILE, HUGE]}}
    document["error"] = {"kind": HOSTILE, "text": HOSTILE}
    return {
        **document,
        "name": f"{HOSTILE} {seed}",
        "note": f"{HOSTILE}\n\n# heading\n\n    code",
        "tags": [HOSTILE],
        "adapter": HOSTILE,
    }


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    """The tab; fails the test if anything in it opened a dialog. (``page`` itself fails on requests to other hosts.)"""
    opened: list[str] = []
    page.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    yield page
    assert opened == []


def import_files(page: Page, *paths: Path) -> None:
    page.get_by_role("button", name="Import").click()
    page.locator("input[type=file]").set_input_files(list(paths))


def assert_plain(page: Page) -> None:
    """Nothing of what was typed became an element."""
    assert page.locator("img[src='x'], a[href*='host.example'], a[href^='javascript']").count() == 0
    assert page.locator('[data-testid="stException"]').count() == 0


def test_hostile_runs_are_text_on_every_page_and_in_the_report(
    quiet_dashboard: Dashboard, watched: Page, chromium: object, tmp_path: Path
) -> None:
    page = watched
    path = tmp_path / "<img src=x onerror=alert(4)>.json"
    path.write_text(json.dumps([hostile(seed) for seed in range(2)]))
    page.goto(f"{quiet_dashboard.address}/runs")
    import_files(page, path)
    expect(page.get_by_text("2 runs imported.")).to_be_visible()
    assert_plain(page)
    page.get_by_role("button", name="Show them").click()
    for address in ("runs", "run?id=1", "compare?ids=1,2", "queue", "", "cases", "launch"):
        page.goto(f"{quiet_dashboard.address}/{address}")
        expect(page.get_by_role("heading", level=1).first).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert_plain(page)
    page.goto(f"{quiet_dashboard.address}/run?id=1")
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script><img src=x")
    page.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("textbox", name="Name")).to_have_value(f"{HOSTILE} 0")

    page.goto(f"{quiet_dashboard.address}/compare?ids=1,2")
    with page.expect_download() as download:
        page.get_by_role("button", name="HTML report").click()
    report = tmp_path / "report.html"
    download.value.save_as(report)
    context = chromium.new_context(offline=True)  # type: ignore[attr-defined]
    tab = context.new_page()
    asked: list[str] = []
    opened: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    tab.goto(report.as_uri())
    tab.wait_for_selector("[data-chart] .main-svg")
    assert "<script>alert(1)</script><img src=x" in tab.locator("body").inner_text()
    assert tab.locator("img, a[href]").count() == 0
    context.close()
    assert opened == []
    assert asked == [report.as_uri()]


def test_each_file_gets_its_sentence_and_only_good_ones_are_stored_once(
    quiet_dashboard: Dashboard, watched: Page, tmp_path: Path
) -> None:
    page = watched
    good = json.dumps([hostile(seed) for seed in range(3)])
    files = {
        "good.json.gz": gzip.compress(good.encode()),
        "cut.json": good[:-300].encode(),
        "package.json": b'{"name": "package", "version": "1.0"}',
        "newer.json": json.dumps({**hostile(9), "format": 2}).encode(),
        "again.json": good.encode(),
        "bomb.json.gz": gzip.compress(b"[" + b" " * (400 * 2**20), 1),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    page.goto(f"{quiet_dashboard.address}/runs")
    import_files(page, *(tmp_path / name for name in files))
    for sentence in (
        "good.json.gz: 3 runs imported.",
        "cut.json: is cut off; export or copy it again.",
        "package.json: document: must be a result of PEFT Lab, with a state and a spec.",
        "newer.json: format: 2 is of a newer PEFT Lab; this one reads 1, so update it.",
        "again.json: Nothing new: all of its 3 runs were here already.",
        "bomb.json.gz: holds more than 384 MiB; export fewer runs at a time.",
    ):
        expect(page.get_by_text(sentence)).to_be_visible(timeout=30_000)
    database = open_database()
    with database.reading() as session:
        assert len(runs.list_runs(session)) == 3
    database.close()


def test_a_run_is_archived_deleted_after_a_question_and_imported_again_from_its_copy(
    quiet_dashboard: Dashboard, watched: Page, tmp_path: Path
) -> None:
    page = watched
    (tmp_path / "run.json").write_text(json.dumps(hostile(1)))
    page.goto(f"{quiet_dashboard.address}/runs")
    import_files(page, tmp_path / "run.json")
    expect(page.get_by_text("1 run imported.")).to_be_visible()

    page.goto(f"{quiet_dashboard.address}/run?id=1")
    page.get_by_role("button", name="Archive").click()
    page.get_by_role("button", name="Delete").click()
    question = page.get_by_role("dialog")
    expect(question.get_by_text("Run 1:")).to_be_visible()
    question.get_by_role("button", name="Keep").click()
    expect(question).to_have_count(0)
    page.get_by_role("button", name="Delete").click()
    with page.expect_download() as download:
        question.get_by_role("button", name="Download a copy").click()
    download.value.save_as(tmp_path / "copy.json")
    question.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("There is no run 1 here")).to_be_visible()

    page.goto(f"{quiet_dashboard.address}/runs")
    import_files(page, tmp_path / "copy.json")
    expect(page.get_by_text("1 run imported.")).to_be_visible()


def test_sample_data_is_loaded_shown_as_such_and_removed(quiet_dashboard: Dashboard, watched: Page) -> None:
    page = watched
    page.goto(quiet_dashboard.address)
    page.get_by_role("button", name="Load sample data").click()
    expect(page.get_by_role("button", name="Remove sample data")).to_be_visible(timeout=30_000)
    database = open_database()
    with database.reading() as session:
        rows = runs.list_runs(session)
    assert {row.origin for row in rows} == {"sample"}
    page.goto(f"{quiet_dashboard.address}/run?id={rows[0].id}")
    expect(page.get_by_text("Sample data")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible(timeout=30_000)
    page.goto(quiet_dashboard.address)
    page.get_by_role("button", name="Remove sample data").click()
    expect(page.get_by_role("button", name="Load sample data")).to_be_visible()
    with database.reading() as session:
        assert runs.list_runs(session, include_archived=True) == []
    database.close()
