"""The Overview: what a new database shows, the one button, the numbers, and what happens when runs fail."""

from __future__ import annotations

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from app.widgets import first_sweep
from db import queue, runs
from db.session import Database
from tests.app import stored
from tests.app.reading import chart, words

Open = Callable[..., AppTest]


def test_an_empty_database_shows_one_sentence_and_one_button(open_page: Open) -> None:
    app = open_page("overview")
    assert [button.label for button in app.button] == ["Measure LoRA against DoRA here"]
    assert "Nothing is measured yet" in words(app)
    assert not app.metric


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


def test_measured_runs_become_the_chart_its_table_and_four_numbers(open_page: Open, database: Database) -> None:
    stored.lora_and_dora(database)
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
    stored.store(database, stored.init_document(), stored.result([0.2]))
    stored.store(database, stored.init_document(dora=True), stored.result([1.5]))
    stored.store(database, stored.init_document(dora=True, strategy="factored_norm"), stored.result([0.6]))
    wrong = stored.result([0.001], failed_check=True)
    stored.store(database, stored.init_document(dora=True, strategy="zero_b_norm"), wrong)
    app = open_page("overview")
    assert app.metric[3].label == "Fastest DoRA: Factored norm"
    assert "DoRA · Zero-B norm, check failed" in list(app.dataframe[0].value["Adapter and strategy"])


def test_only_runs_of_one_setting_are_compared(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]))
    stored.store(database, stored.init_document(dtype="float32"), stored.result([0.4]))
    app = open_page("overview")
    assert app.metric[0].value == "400 ms", "the newest setting comes first"
    app.selectbox(key="overview_setting_init").select_index(1).run()
    assert app.metric[0].value == "200 ms"


def test_several_models_can_be_chosen(open_page: Open, database: Database) -> None:
    stored.lora_and_dora(database, "tinyllama-1.1b")
    stored.store(database, stored.init_document("minimind-26m"), stored.result([0.01]))
    app = open_page("overview")
    assert app.metric[0].value == "10.0 ms"
    app.selectbox(key="overview_model").select("tinyllama-1.1b").run()
    assert app.metric[0].value == "210 ms"


def test_a_sweep_of_which_a_run_failed_says_so_beside_what_was_measured(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]), sweep=first_sweep.SWEEP_NAME)
    app = open_page("overview")
    assert not app.warning
    oom = stored.failure("out_of_memory", "The machine has too little memory")
    stored.store(database, stored.init_document(dora=True), oom, sweep=first_sweep.SWEEP_NAME)
    app = open_page("overview")
    assert "The machine has too little memory" in app.warning[0].value


def test_imported_runs_do_not_count_as_measured_here(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([0.2]))
    with database.writing() as session:
        document = runs.export_document(session, run_id)
        runs.delete(session, [run_id])
        runs.import_document(session, document)
    assert open_page("overview").button(key="measure_here")


def test_archived_runs_leave_the_chart(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([0.2]))
    with database.writing() as session:
        runs.archive(session, [run_id])
    assert open_page("overview").button(key="measure_here")


def test_disturbed_runs_are_said_to_be(open_page: Open, database: Database) -> None:
    stored.store(database, stored.init_document(), stored.result([0.2]))
    assert not open_page("overview").warning
    noisy = stored.result([0.9])
    noisy["metrics"][-1]["value"] = 0.5
    stored.store(database, stored.init_document(dora=True), noisy)
    assert "Other processes used the CPU during 1 run of 2" in open_page("overview").warning[0].value
