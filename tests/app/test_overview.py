"""The Overview: five questions with their answers, what a new database shows, and the first sweep of a newcomer."""

from __future__ import annotations

import json
from collections.abc import Callable

from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from app.widgets import case_runs, first_sweep, launching, samples
from db import queue, runs, transfer
from db.documents import parse_run
from db.models import Run
from db.session import Database
from engine import cases
from tests.app import stored, stored_cases
from tests.app.conftest import MAIN
from tests.app.reading import chart, words

Open = Callable[..., AppTest]


def first_sweep_measured(database: Database, **results: dict[str, object]) -> None:
    """The runs of the first sweep; a result can be replaced by strategy."""
    with database.writing() as session:
        specs = first_sweep.specs("qwen2.5-0.5b")
        ids = queue.enqueue(session, [launching.new_run(spec) for spec in specs], first_sweep.SWEEP_NAME)
    seconds = [[0.21, 0.20, 0.22], [1.52, 1.49, 1.61], [0.27, 0.26, 0.29], [0.61, 0.66, 0.63]]
    for run_id, spec, values in zip(ids, specs, seconds, strict=True):
        with database.writing() as session:
            assert queue.claim(session, supervisor="1@1", devices=["cpu"]) is not None
            queue.started(session, run_id, 1, 1.0, "/nonexistent")
            queue.finish(session, run_id, results.get(spec.strategy) or stored.result(values))


def test_an_empty_database_shows_one_sentence_one_button_and_the_five_questions(open_page: Open) -> None:
    app = open_page("overview")
    assert [button.label for button in app.button] == ["Measure LoRA against DoRA here", "Load sample data"]
    assert "Nothing is measured yet" in words(app)
    assert not app.metric
    for case in cases.cases():
        assert case.question in words(app)


def test_the_button_queues_lora_and_three_ways_of_dora_and_shows_their_progress(
    open_page: Open, database: Database
) -> None:
    app = open_page("overview")
    app.button(key="measure_here").click().run()
    assert not app.exception
    with database.reading() as session:
        waiting = runs.queued_and_running(session)
    assert [(row.adapter, row.strategy) for row in waiting] == [
        ("LoRA", "stock"),
        ("DoRA", "stock"),
        ("DoRA", "zero_b_norm"),
        ("DoRA", "factored_norm"),
    ]
    assert len({row.model for row in waiting}) == 1
    assert {row.spec["repeats"] for row in waiting} == {first_sweep.REPEATS}
    assert app.get("progress")[0].text == "0 of 4 runs measured"


def test_another_tab_finds_the_sweep_and_cannot_start_it_twice(open_page: Open, database: Database) -> None:
    first = open_page("overview")
    second = open_page("overview")
    first.button(key="measure_here").click().run()
    second.button(key="measure_here").click().run()
    with database.reading() as session:
        assert queue.queue_depth(session) == 4
    assert "0 of 4" in open_page("overview").get("progress")[0].text


def test_cancelling_the_sweep_leaves_the_button_and_says_what_happened(open_page: Open, database: Database) -> None:
    app = open_page("overview")
    app.button(key="measure_here").click().run()
    app.button(key="cancel_first_sweep").click().run()
    app.run()
    assert app.button(key="measure_here")
    assert "ended as cancelled" in words(app)


def test_the_first_sweep_becomes_its_chart_and_four_numbers(open_page: Open, database: Database) -> None:
    first_sweep_measured(database)
    app = open_page("overview")
    assert [(metric.label, metric.value) for metric in app.metric] == [
        ("LoRA init", "210 ms"),
        ("DoRA init, stock", "1.52 s"),
        ("DoRA / LoRA", "7.24×"),
        ("Fastest DoRA: Zero-B norm", "270 ms"),
    ]
    assert chart(app)["layout"]["yaxis"]["categoryarray"][-1] == "LoRA · Stock PEFT"
    assert list(app.dataframe[0].value["Times LoRA"]) == ["1.00×", "7.24×", "3.00×", "1.29×"]


def test_a_strategy_whose_check_failed_is_not_called_the_fastest(open_page: Open, database: Database) -> None:
    first_sweep_measured(database, zero_b_norm=stored.result([0.001], failed_check=True))
    app = open_page("overview")
    assert app.metric[3].label == "Fastest DoRA: Factored norm"
    assert "DoRA · Zero-B norm, check failed" in list(app.dataframe[0].value["Adapter and strategy"])


def test_a_first_sweep_of_which_a_run_failed_says_so_beside_what_was_measured(
    open_page: Open, database: Database
) -> None:
    oom = stored.failure("out_of_memory", "The machine has too little memory")
    first_sweep_measured(database, factored_norm=oom)
    app = open_page("overview")
    assert len(app.metric) == 4
    assert "The machine has too little memory" in app.warning[0].value


def test_a_disturbed_first_sweep_is_said_to_be(open_page: Open, database: Database) -> None:
    noisy = stored.result([0.9])
    noisy["metrics"][-1]["value"] = 0.5
    first_sweep_measured(database, zero_b_norm=noisy)
    assert "Other processes used the CPU during 1 run of 4" in open_page("overview").warning[0].value


def test_a_measured_case_shows_its_key_number_beside_the_published_one_a_chart_and_its_verdict(
    open_page: Open, database: Database
) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("overview")
    (metric,) = app.metric
    assert (metric.value, metric.delta) == ("0.667×", "published 0.667×")
    assert len(app.get("plotly_chart")) == 1
    assert "Holds here" in words(app)
    assert words(app).count("Not measured here yet") == 4


def test_the_button_of_a_card_queues_that_case_alone(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("overview")
    app.button(key="measure_train_speed").click().run()
    assert not app.exception
    with database.reading() as session:
        waiting = runs.queued_and_running(session)
    sweep = cases.case("train_speed").sweep("here")
    assert [row.spec_hash for row in waiting] == list(case_runs.hashes("train_speed", "here")) * sweep.replicas
    assert {row.sweep_name for row in waiting} == {"Case 5, this machine"}
    assert app.get("progress")[0].text == f"0 of {len(waiting)} runs measured"
    assert all(button.key != "measure_train_speed" for button in app.button)


def test_one_button_measures_every_case_that_fits_this_machine(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]))
    app = open_page("overview")
    app.button(key="measure_all").click().run()
    assert not app.exception
    with database.reading() as session:
        waiting = {row.sweep_name for row in runs.queued_and_running(session)}
    fitting = {
        f"Case {case.number}, this machine"
        for case in cases.cases()
        if case.sweep("here").needs_bytes <= stored.CPU["memory_bytes"]
    }
    assert waiting == fitting
    app.button(key="cancel_cases").click().run()
    with database.reading() as session:
        assert queue.queue_depth(session) == 0


def test_imported_and_archived_runs_are_not_this_machines_answer(open_page: Open, database: Database) -> None:
    ids = stored_cases.merge_peaks(database, stored_cases.as_claimed)
    with database.writing() as session:
        documents = [transfer.export_document(session, run_id) for run_id in ids]
        runs.archive(session, ids)
        runs.delete(session, ids)
        transfer.store_runs(session, map(parse_run, documents))
    assert not open_page("overview").metric
    again = stored_cases.merge_peaks(database, stored_cases.as_claimed)
    assert open_page("overview").metric
    with database.writing() as session:
        runs.archive(session, again)
    assert not open_page("overview").metric


def test_sample_runs_are_shown_only_where_asked_for_and_said_to_be_from_elsewhere(
    open_page: Open, database: Database
) -> None:
    ids = stored_cases.merge_peaks(database, stored_cases.as_claimed)
    with database.writing() as session:
        session.execute(update(Run).where(Run.id.in_(ids)).values(origin=samples.ORIGIN))
    stored_cases.merge_peaks(database, stored_cases.unlike_the_claim)
    assert open_page("overview").metric[0].value == "1.00×"
    sample = AppTest.from_file(str(MAIN), default_timeout=30)
    sample.query_params["from"] = "sample"
    sample.run()
    assert not sample.exception
    assert sample.metric[0].value == "0.667×"
    assert "Held there" in words(sample)
    assert "sample data, measured on other machines" in words(sample)


def test_a_presented_overview_has_numbers_and_no_controls_but_the_way_back(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    app = open_page("overview", present="1")
    assert [button.key for button in app.button] == ["end_presentation"]
    assert not app.get("link_button")
    assert app.metric
    app.button(key="end_presentation").click().run()
    assert "present" not in app.query_params
    address = app.get("link_button")[0].proto.url
    assert "present=1" in address
    assert "embed=true" in address


def test_a_presented_overview_has_no_controls_either_where_it_shows_the_first_sweep_or_sample_data_or_nothing(
    open_page: Open, database: Database
) -> None:
    def controls() -> list[str | None]:
        app = open_page("overview", present="1", **{"from": "sample"})
        assert not app.get("download_button")
        assert not app.get("expander")
        return [button.key for button in app.button]

    assert controls() == ["end_presentation"]
    first_sweep_measured(database)
    assert controls() == ["end_presentation"]
    ids = stored_cases.merge_peaks(database, stored_cases.as_claimed)
    with database.writing() as session:
        session.execute(update(Run).where(Run.id.in_(ids)).values(origin=samples.ORIGIN))
    assert controls() == ["end_presentation"]


def test_a_chart_of_the_overview_has_a_text_alternative(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    (figure,) = open_page("overview").get("plotly_chart")
    assert json.loads(figure.proto.spec)["data"]
    assert cases.case("merge").title in figure.proto.alt
