"""The list of cases and the page of each: what was claimed, starting a sweep, the verdict, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from app.widgets import case_runs
from db import queue, runs
from db.models import Run
from db.session import Database
from engine import cases
from tests.app import stored, stored_cases
from tests.app.reading import words

Open = Callable[..., AppTest]
IDS = [case.id for case in cases.cases()]


@pytest.mark.parametrize("case_id", IDS)
def test_a_case_without_runs_says_what_was_claimed_by_whom_what_is_true_and_what_to_do(
    open_page: Open, case_id: str
) -> None:
    case = cases.case(case_id)
    app = open_page("case", id=case_id)
    text = words(app)
    assert app.title[0].value == case.title
    assert case.claim in text
    assert case.truth in text
    assert all(source.url in text for source in case.sources)
    assert all(advice.text in text for advice in case.advice)
    assert len(app.get("code")) == sum(advice.spec is not None for advice in case.advice)
    assert len(app.dataframe[0].value) == len(case.published)
    assert not app.metric


def test_the_published_sweep_is_grey_with_the_reason_where_the_machine_lacks_what_it_needs(open_page: Open) -> None:
    app = open_page("case", id="inference")
    assert app.button(key="measure_published").disabled
    assert app.button(key="measure_published").help == "It needs a GPU, and this machine has none."
    assert "Not testable on this machine: no GPU" in words(app)
    app = open_page("case", id="merge")
    assert app.button(key="measure_published").disabled
    assert "It needs 300 GiB of memory, and this machine has 16.0 GiB" in words(app).replace("\\", "")


def test_the_button_queues_the_sweep_in_rounds_and_a_reload_finds_it_again(open_page: Open, database: Database) -> None:
    app = open_page("case", id="train_speed")
    app.button(key="measure_here").click().run()
    assert not app.exception
    with database.reading() as session:
        waiting = runs.queued_and_running(session)
    sweep = cases.case("train_speed").sweep("here")
    assert [row.spec_hash for row in waiting] == list(case_runs.hashes("train_speed", "here")) * sweep.replicas
    again = open_page("case", id="train_speed")
    assert again.get("progress")[0].text == f"0 of {len(waiting)} runs measured"
    assert again.button(key="measure_here").disabled
    assert "Waiting" in words(open_page("overview"))
    again.button(key="cancel_here").click().run()
    with database.reading() as session:
        assert queue.queue_depth(session) == 0


def test_runs_become_the_verdict_with_its_rule_the_ratios_and_the_charts(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("case", id="merge")
    case = cases.case("merge")
    assert "Holds here" in words(app)
    assert case.rule in words(app)
    assert app.metric[0].value == "0.667×"
    assert len(app.get("plotly_chart")) >= 2
    ratios = app.dataframe[0].value
    assert list(ratios.columns) == ["Ratio", "Measured", "From", "To", "Published", "Note"]
    assert ratios["Measured"].iloc[0] == pytest.approx(2 / 3)
    labels = {button.label for button in app.get("download_button")}
    assert labels == {"CSV", "JSON"}


def test_a_claim_that_the_runs_contradict_does_not_hold(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.unlike_the_claim)
    assert "Does not hold here" in words(open_page("case", id="merge"))


def test_a_sweep_that_is_half_done_says_not_enough_data_and_queues_only_what_is_missing(
    open_page: Open, database: Database
) -> None:
    sweep = cases.case("train_speed").sweep("here")
    measured = sweep.specs[:2]
    for spec in measured:
        result = stored.train_result([1.0] * 3, trainable=26_878_464, total=26_878_464)
        stored.store(database, spec.model_dump(mode="json"), result)
    app = open_page("case", id="train_speed")
    assert "Not enough data yet" in words(app)
    number = len(sweep.specs) * sweep.replicas - len(measured)
    assert app.button(key="measure_here").label == f"Queue the {number} missing runs"
    app.button(key="measure_here").click().run()
    with database.reading() as session:
        assert queue.queue_depth(session) == number


def test_a_run_out_of_memory_is_an_answer_that_the_page_shows(open_page: Open, database: Database) -> None:
    stored_cases.train_steps(database, lambda spec: 1.0, without=1)
    app = open_page("case", id="train_speed")
    assert app.button(key="measure_here").label == "Measure again on this machine"
    assert any("Out of memory" in str(value) for table in app.dataframe for value in table.value.to_numpy().ravel())


def test_runs_of_another_version_are_left_out_of_the_verdict_and_offered_for_comparison(
    open_page: Open, database: Database
) -> None:
    older = stored_cases.merge_peaks(database, stored_cases.unlike_the_claim)
    packages = {"torch": "2.13.0", "peft": "0.20.0", "transformers": "5.23.0"}
    with database.writing() as session:
        environment = {**stored.ENVIRONMENT, "packages": packages}
        session.execute(update(Run).where(Run.id.in_(older)).values(environment=environment))
    newer = stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("case", id="merge")
    assert "Holds here" in words(app)
    assert f"{len(older)} runs left out" in words(app)
    assert f"Compare these {len(older) + len(newer)} runs" in [link.proto.label for link in app.get("page_link")]


def test_a_failed_run_is_said_and_is_missing(open_page: Open, database: Database) -> None:
    spec = cases.case("merge").sweep("here").specs[0]
    stored.store(database, spec.model_dump(mode="json"), stored.failure("failed", "It broke <b>badly</b>"))
    app = open_page("case", id="merge")
    assert "ended as failed" in app.warning[0].value
    assert "<b>" not in app.warning[0].value, "what a run said is text, not markup"
    with database.reading() as session:
        (found,) = case_runs.load(session, [(cases.case("merge"), "here")], [])
    assert spec in case_runs.missing(found)


def test_the_test_size_says_that_it_proves_nothing_and_never_reaches_the_overview(
    open_page: Open, database: Database
) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed, "test")
    app = open_page("case", id="merge", size="test")
    assert "says nothing about the claim" in app.info[0].value
    assert app.metric
    assert not open_page("case", id="merge").metric
    assert not open_page("overview").metric


@pytest.mark.parametrize("query", [{}, {"id": "nothing"}, {"id": "<b>merge</b>"}, {"id": "merge", "size": "huge"}])
def test_an_address_that_names_nothing_is_one_sentence_or_left_out(open_page: Open, query: dict[str, str]) -> None:
    app = open_page("case", **query)
    if query.get("id") == "merge":
        assert app.title[0].value == cases.case("merge").title
    else:
        assert app.title[0].value == "Case"
        assert "<b>" not in words(app)


def test_a_presented_case_has_its_verdict_and_charts_and_no_controls(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("case", id="merge", present="1")
    assert [button.key for button in app.button] == ["end_presentation"]
    assert not app.get("download_button")
    assert app.metric[0].value == "0.667×"
    assert len(app.get("plotly_chart")) >= 2


def test_the_list_has_every_claim_with_its_verdict(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    text = words(open_page("cases"))
    assert all(case.title in text for case in cases.cases())
    assert "Holds here" in text
    assert text.count("Not enough data yet") == len(IDS) - 1
