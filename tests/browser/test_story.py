"""What a person does the first time: press the one button, watch, reload, see the chart, open a run, download it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.widgets.launching import new_run
from db import queue, runs
from db.session import open_database
from engine import cases
from engine.spec import parse_spec
from tests.browser.conftest import Dashboard

# A busy machine may take long; an idle one is held to a minute.
HANG_LIMIT_MS = 240_000


def is_undisturbed() -> bool:
    """Whether the runs say that nothing else used the CPU while they were measured."""
    database = open_database()
    with database.reading() as session:
        shares = [row.background_cpu_share for row in runs.list_runs(session)]
    database.close()
    return all(share is not None and share < 0.1 for share in shares)


@pytest.mark.alone
def test_from_the_empty_page_to_a_downloaded_result_within_a_minute(
    dashboard: Dashboard, page: Page, tmp_path: Path
) -> None:
    page.goto(dashboard.address)
    page.get_by_role("button", name="Measure LoRA against DoRA here").click()
    pressed_s = time.monotonic()
    expect(page.get_by_text("of 4 runs measured")).to_be_visible()
    expect(page.get_by_text("so far")).to_be_visible(timeout=30_000)

    page.reload()
    expect(page.get_by_text("of 4 runs measured")).to_be_visible()
    expect(page.get_by_role("button", name="Measure LoRA against DoRA here")).to_have_count(0)

    chart = page.locator(".js-plotly-plot").first
    expect(chart).to_be_visible(timeout=HANG_LIMIT_MS)
    expect(page.get_by_text("of 4 runs measured")).to_have_count(0, timeout=HANG_LIMIT_MS)
    took_s = time.monotonic() - pressed_s
    if is_undisturbed():
        assert took_s < 60
    expect(chart.get_by_text("DoRA · Zero-B norm")).to_be_visible()
    expect(chart.get_by_text("LoRA · Stock PEFT")).to_be_visible()
    expect(page.get_by_text("as fast as stock")).to_be_visible()

    page.get_by_role("link", name="Queue").click()
    page.get_by_role("link", name="Run 2").click()
    expect(page.get_by_role("heading", name="DoRA · Stock PEFT")).to_be_visible()
    expect(page.get_by_text("Succeeded")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    download.value.save_as(tmp_path / "run.json")
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["state"] == "succeeded"
    assert document["spec"]["adapter"]["options"] == {"use_dora": True}
    assert len([metric for metric in document["metrics"] if metric["name"] == "init_time_s"]) >= 3
    assert all(check["passed"] for check in document["checks"])


def test_a_run_launched_before_the_dashboard_was_killed_is_there_when_it_is_back(
    dashboard: Dashboard, page: Page, home: Path, eventually: Callable[..., None]
) -> None:
    page.goto(f"{dashboard.address}/queue")
    expect(page.get_by_text("Worker ready")).to_be_visible(timeout=30_000)
    database = open_database()
    spec = parse_spec({"kind": "init", "model": "tiny-test", "repeats": 50})
    with database.writing() as session:
        (run_id,) = queue.enqueue(session, [new_run(spec)])
    dashboard.kill()

    def state() -> str:
        with database.reading() as session:
            run = runs.get_run(session, run_id)
        assert run is not None
        return run.state

    eventually(lambda: state() == "succeeded", "the run went on without the dashboard", 120)
    database.close()
    dashboard.start()
    page.goto(f"{dashboard.address}/run?id={run_id}")
    expect(page.get_by_text("Succeeded")).to_be_visible()


def test_filters_are_part_of_the_address_and_survive_a_reload(quiet_dashboard: Dashboard, page: Page) -> None:
    database = open_database()
    with database.writing() as session:
        queue.enqueue(session, [new_run(parse_spec({"kind": "init", "model": "tiny-test"}))])
    database.close()
    page.goto(f"{quiet_dashboard.address}/runs")
    page.get_by_role("searchbox", name="Search").fill("no such run")
    page.get_by_role("searchbox", name="Search").press("Enter")
    expect(page.get_by_text("No run passes these filters")).to_be_visible()
    assert "q=no" in page.url
    page.reload()
    expect(page.get_by_text("No run passes these filters")).to_be_visible()


def test_a_run_of_each_kind_becomes_its_charts(
    dashboard: Dashboard, page: Page, eventually: Callable[..., None]
) -> None:
    small = {"model": "tiny-test", "repeats": 2}
    specs_by_title = {
        "Seconds to merge and to unmerge": {"kind": "merge", "strategy": "row_blocks"},
        "Memory at the peak of a training step": {
            "kind": "train",
            "train": {"context_length": 32, "gradient_checkpointing": True},
        },
        "Tokens written per second": {
            "kind": "inference",
            "strategy": "fused",
            "inference": {"prompt_tokens": 16, "new_tokens": 4},
        },
    }
    database = open_database()
    with database.writing() as session:
        specs = [parse_spec({**small, **document}) for document in specs_by_title.values()]
        ids = queue.enqueue(session, [new_run(spec) for spec in specs])
    page.goto(f"{dashboard.address}/queue")

    def states() -> set[str]:
        with database.reading() as session:
            return {row.state for row in runs.list_runs(session)}

    eventually(lambda: not states() & {"queued", "running"}, "the three runs ended", 120)
    assert states() == {"succeeded"}
    database.close()
    for run_id, title in zip(ids, specs_by_title, strict=True):
        page.goto(f"{dashboard.address}/run?id={run_id}")
        expect(page.get_by_text("Succeeded")).to_be_visible()
        expect(page.locator(".js-plotly-plot").first.get_by_text(title)).to_be_visible()
    page.goto(dashboard.address)
    expect(page.get_by_role("button", name="Measure all five")).to_be_visible()
    for case in cases.cases():
        expect(page.get_by_text(case.question)).to_be_visible()
