"""One run: its numbers, what went wrong, editing, running it again, and ids that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets import predicted_runs
from db import runs, transfer
from db.documents import parse_run
from db.session import Database
from engine.spec import parse_spec
from tests.app import predicted, stored
from tests.app.reading import words

Open = Callable[..., AppTest]


@pytest.mark.parametrize("query", [{"id": "999"}, {"id": "abc"}, {"id": "-1"}, {"id": "9" * 40}, {}])
def test_an_id_that_leads_nowhere_gets_one_sentence_and_a_link(open_page: Open, query: dict[str, str]) -> None:
    app = open_page("run", **query)
    assert "here." in words(app) or "No run is named" in words(app)
    assert app.get("page_link")[0].value == "All runs"


def test_median_spread_and_count_come_first(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(dora=True), stored.result([1.0, 1.2, 1.4]))
    app = open_page("run", id=str(run_id))
    shown = {metric.label: metric.value for metric in app.metric}
    assert shown["Init time"] == "1.20 s"
    assert shown["Interquartile range"] == "200 ms"
    assert shown["Repeats"] == "3"
    assert shown["Peak extra memory"] == "200 MiB"
    assert len(app.get("plotly_chart")) == 3


def test_a_single_repeat_says_one_run_and_has_no_spread(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(repeats=1), stored.result([1.0]))
    shown = {metric.label: metric.value for metric in open_page("run", id=str(run_id)).metric}
    assert shown["Repeats"] == "1 run"
    assert shown["Interquartile range"] == "–"


@pytest.mark.parametrize("state", ["failed", "out_of_memory", "timed_out", "lost", "cancelled"])
def test_a_run_without_result_says_why_first_and_shows_its_log(
    open_page: Open, database: Database, tmp_path: Path, state: str
) -> None:
    (tmp_path / "log.txt").write_text("the last words\n")
    run_id = stored.store(
        database, stored.init_document(), stored.failure(state, "Something went wrong"), folder=tmp_path
    )
    app = open_page("run", id=str(run_id))
    alerts = [*app.error, *app.warning]
    assert "Something went wrong" in alerts[0].value
    assert any("the last words" in code.value for code in app.code)
    assert not app.metric


def test_a_failed_check_is_said_before_the_numbers(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([1.0], failed_check=True))
    assert "1 check did not pass" in open_page("run", id=str(run_id)).warning[0].value


def test_name_note_and_tags_can_be_edited(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([1.0]))
    app = open_page("run", id=str(run_id))
    app.text_input[0].set_value("  My run\0  ")
    app.text_area[0].set_value("A *note*")
    app.get("form_submit_button")[0].click().run()
    assert not app.exception
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    assert (run.name, run.note) == ("My run", "A *note*")
    assert "My run" in app.title[0].value


def test_run_again_queues_a_replica(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([1.0]))
    app = open_page("run", id=str(run_id))
    next(button for button in app.button if button.label == "Run again").click().run()
    with database.reading() as session:
        (waiting,) = runs.queued_and_running(session)
    assert waiting.replica == 1
    assert "Queued once more" in words(app)


def test_a_stored_spec_that_is_no_longer_valid_gets_a_sentence(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([1.0]))
    with database.writing() as session:
        document = transfer.export_document(session, run_id)
        document["spec"]["strategy"] = "of_a_later_version"
        document["uid"] = "0" * 32
        ((other, _),) = transfer.store_runs(session, [parse_run(document)])
    app = open_page("run", id=str(other))
    next(button for button in app.button if button.label == "Run again").click().run()
    assert not app.exception
    assert "of\\_a\\_later\\_version" in app.error[0].value


def test_a_run_of_another_machines_gpu_is_not_queued_where_it_would_wait_for_ever(
    open_page: Open, database: Database
) -> None:
    spec = parse_spec(stored.init_document(device="cuda:0")).model_dump(mode="json")
    with database.writing() as session:
        ((run_id, _),) = transfer.store_runs(session, [parse_run({**stored.result([1.0]), "spec": spec})])
    app = open_page("run", id=str(run_id))
    next(button for button in app.button if button.label == "Run again").click().run()
    assert "device: " in app.error[0].value.replace("\\", "")
    with database.reading() as session:
        assert runs.queued_and_running(session) == []


def test_every_gpu_of_an_environment_has_lines_of_its_own(open_page: Open, database: Database) -> None:
    gpus = [{"id": f"cuda:{place}", "name": "Test GPU", "memory_bytes": 80 * 2**30} for place in range(2)]
    result = stored.result([1.0])
    outcome = {**result, "environment": {**result["environment"], "gpus": gpus}}
    app = open_page("run", id=str(stored.store(database, stored.init_document(), outcome)))
    (table,) = app.table
    lines = dict(zip(table.value.index, table.value.iloc[:, 0], strict=True))
    assert lines["gpus 2 id"].replace("\\", "") == "cuda:1"
    assert lines["gpus 2 memory"].replace("\\", "") == "80.0 GiB"


def test_archiving_and_restoring(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.init_document(), stored.result([1.0]))
    app = open_page("run", id=str(run_id))
    next(button for button in app.button if button.label == "Archive").click().run()
    assert "archived" in words(app)
    next(button for button in app.button if button.label == "Restore").click().run()
    with database.reading() as session:
        assert runs.list_runs(session)[0].archived_at is None


def test_a_waiting_run_says_that_it_waits_and_can_be_cancelled(open_page: Open, database: Database) -> None:
    (run_id,) = stored.queued(database, stored.init_document())
    app = open_page("run", id=str(run_id))
    assert "It waits for its turn" in words(app)
    app.button(key="cancel_waiting").click().run()
    with database.reading() as session:
        assert runs.list_runs(session)[0].state == "cancelled"


@pytest.fixture
def same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions are made with the versions that stored runs were measured with."""
    monkeypatch.setattr(predicted_runs, "installed", lambda: dict(stored.ENVIRONMENT["packages"]))


def trained(database: Database) -> tuple[int, dict[str, float]]:
    """A train run, and its bytes at the peak by name."""
    run_id = stored.store(database, stored.document("train"), stored.train_result([1.0], trainable=1_000_000))
    with database.reading() as session:
        run = runs.get_run(session, run_id)
    assert run is not None
    return run_id, {metric.name: metric.value for metric in run.metrics if metric.unit == "bytes"}


def test_the_predicted_peak_stands_beside_the_measured_one_with_its_error(
    open_page: Open, database: Database, same_versions: None
) -> None:
    run_id, measured = trained(database)
    peaks = {name: value for name, value in measured.items() if name != "peak_rss_bytes"}
    predicted.store(database, stored.document("train"), {**peaks, "peak_bytes": measured["peak_bytes"] * 1.01})
    app = open_page("run", id=str(run_id))
    shown = {metric.label: metric for metric in app.metric}
    assert shown["Predicted peak"].delta == "+1.00 % of measured"
    (table,) = [frame.value for frame in app.dataframe if "Predicted" in frame.value]
    assert list(table["Error"]) == ["exact"] * (len(table) - 1) + ["+1.00 %"]
    assert any("Predicted: tensors" in element.proto.spec for element in app.get("plotly_chart"))


def test_a_prediction_of_other_versions_has_no_error(
    open_page: Open, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**stored.ENVIRONMENT["packages"], "peft": "9.9.9"}
    monkeypatch.setattr(predicted_runs, "installed", lambda: newer)
    run_id, measured = trained(database)
    predicted.store(database, stored.document("train"), {"peak_bytes": measured["peak_bytes"]})
    app = open_page("run", id=str(run_id))
    assert {metric.label: metric.delta for metric in app.metric}["Predicted peak"] == "of other versions"


def test_a_run_without_a_prediction_asks_for_it_at_the_press_of_a_button(open_page: Open, database: Database) -> None:
    run_id, _ = trained(database)
    app = open_page("run", id=str(run_id))
    assert "Predicted peak" not in [metric.label for metric in app.metric]
    app.button(key="predict_run").click().run()
    assert not app.exception
    with database.reading() as session:
        (request,) = runs.queued_and_running(session)
    assert [spec["kind"] for spec in request.spec["of"]] == ["train"]
    assert "1 prediction to come" in words(app)


def test_a_run_out_of_memory_says_what_was_predicted(open_page: Open, database: Database) -> None:
    run_id = stored.store(database, stored.document("train"), stored.failure("out_of_memory", "It took too much"))
    predicted.store(database, stored.document("train"), {"peak_bytes": 40.0 * 2**30})
    text = open_page("run", id=str(run_id)).warning[0].value.replace("\\", "")
    assert "It took too much" in text
    assert "Predicted: a peak of 40.0 GiB of tensors" in text
    assert "16.0 GiB there (will not fit)" in text


def test_a_run_that_cannot_be_predicted_says_why(open_page: Open, database: Database) -> None:
    run_id, _ = trained(database)
    predicted.refuse(database, stored.document("train"), "strategy: must be <b>stock</b>")
    text = words(open_page("run", id=str(run_id)))
    assert "strategy: must be" in text.replace("\\", "")
    assert "<b>" not in text
