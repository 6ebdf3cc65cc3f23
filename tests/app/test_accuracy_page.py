"""The page of errors: predictions beside what was measured, what is missing, what is left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update
from streamlit.testing.v1 import AppTest

from app.widgets import predicted_runs
from db import runs
from db.models import Run
from db.session import Database
from tests.app import predicted, stored
from tests.app.reading import words

Open = Callable[..., AppTest]
GIB = 2**30


@pytest.fixture
def measured(database: Database, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Two train runs and a request, measured with the versions that predictions are made with."""
    versions = {**predicted_runs.installed(), **stored.ENVIRONMENT["packages"]}
    monkeypatch.setattr(predicted_runs, "installed", lambda: versions)
    outcome = stored.train_result([1.0], trainable=1_000_000, activations=GIB)
    return {
        "lora": stored.store(database, stored.document("train"), outcome),
        "dora": stored.store(database, stored.document("train", dora=True), outcome),
        "request": stored.store(database, stored.document("inference"), stored.inference_result({"base": 9.0})),
    }


def peak(database: Database, run_id: int) -> float:
    with database.reading() as session:
        (value,) = runs.metric_values(session, [run_id], ["peak_bytes"])
    return value.value


def shown(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def test_without_runs_there_is_one_sentence_and_one_button(open_page: Open) -> None:
    app = open_page("accuracy")
    assert "Nothing is measured yet" in words(app)
    assert [button.label for button in app.button] == ["Measure something"]


def test_the_button_asks_for_every_run_that_has_no_prediction(
    open_page: Open, database: Database, measured: dict[str, int]
) -> None:
    predicted.store(database, stored.document("train"), {"peak_bytes": 1.0})
    app = open_page("accuracy")
    app.button(key="predict_all").click().run()
    assert not app.exception
    with database.reading() as session:
        asked = [spec for row in runs.queued_and_running(session) for spec in row.spec["of"]]
    assert [spec["kind"] for spec in asked] == ["inference", "train"]
    assert asked[1]["adapter"]["options"] == {"use_dora": True}
    assert not [button for button in app.button if button.key == "predict_all"], "what is under way is not asked again"
    assert "2 predictions to come" in words(app)


def test_errors_are_summed_up_drawn_and_listed_the_largest_first(
    open_page: Open, database: Database, measured: dict[str, int]
) -> None:
    exact = peak(database, measured["lora"])
    predicted.store(database, stored.document("train"), {"peak_bytes": exact})
    predicted.store(
        database, stored.document("train", dora=True), {"peak_bytes": peak(database, measured["dora"]) * 1.02}
    )
    predicted.refuse(database, stored.document("inference"), "strategy: cannot <b>be</b> predicted")
    app = open_page("accuracy")
    numbers = shown(app)
    assert numbers["Exact to the byte"] == "1"
    assert numbers["Median error"] == "1.00 %"
    assert numbers["Worst error"] == "2.00 %"
    assert len(app.get("plotly_chart")) == 2
    by_label, every = (table.value for table in app.dataframe)
    assert list(by_label["Kind and adapter"]) == ["Train: DoRA", "Train: LoRA"]
    assert list(every["Error"]) == ["+2.00 %", "exact"]
    assert every["Run"].iloc[0] == f"run?id={measured['dora']}"
    assert "1 run that cannot be predicted" in [box.label for box in app.expander]
    assert "<b>" not in words(app), "what a prediction said is text, not markup"


def test_runs_of_other_versions_are_left_out_and_said(
    open_page: Open, database: Database, measured: dict[str, int]
) -> None:
    predicted.store(database, stored.document("train"), {"peak_bytes": 1.0})
    with database.writing() as session:
        older = {**stored.ENVIRONMENT, "packages": {**stored.ENVIRONMENT["packages"], "peft": "0.20.0"}}
        session.execute(update(Run).where(Run.id == measured["lora"]).values(environment=older))
    app = open_page("accuracy")
    assert "1 run left out" in words(app)
    assert not app.metric, "the one that has a prediction is of another version"


def test_sample_data_stays_apart(open_page: Open, database: Database, measured: dict[str, int]) -> None:
    predicted.store(database, stored.document("train"), {"peak_bytes": 1.0})
    with database.writing() as session:
        session.execute(update(Run).where(Run.id == measured["lora"]).values(origin="sample"))
    assert not open_page("accuracy").metric
