"""Cases by prediction: ratios beside published ones before anything is measured, and models too large to measure."""

from __future__ import annotations

import json
from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from app.widgets import labels
from db import predictions, runs
from db.session import Database
from engine import cases
from engine.cases import Sweep
from engine.spec import TrainSpec
from tests.app import predicted, stored_cases
from tests.app.reading import words

Open = Callable[..., AppTest]
GIB = 2**30
CASE = cases.case("train_memory")


def predict(database: Database, sweep: Sweep, share: float) -> None:
    """LoRA takes this share of full fine-tuning's peak at every length."""
    entries = []
    for spec in sweep.specs:
        assert isinstance(spec, TrainSpec)
        full = spec.train.context_length * GIB / 100
        peak = full if spec.adapter is None else full * share
        entries.append(predicted.entry(spec.model_dump(mode="json"), {"peak_bytes": peak}))
    with database.writing() as session:
        predictions.store(session, entries)


def titles(app: AppTest) -> list[str]:
    return [json.loads(element.proto.spec)["layout"]["title"]["text"] for element in app.get("plotly_chart")]


def test_predicted_ratios_stand_beside_the_published_ones_before_anything_is_measured(
    open_page: Open, database: Database
) -> None:
    predict(database, CASE.sweep("here"), 0.6)
    app = open_page("case", id="train_memory")
    assert titles(app)[0] == "Predicted beside published"
    chart = json.loads(app.get("plotly_chart")[0].proto.spec)
    texts = next(trace["text"] for trace in chart["data"] if trace.get("mode") == "text")
    assert any("predicted 0.600×" in text and "published" in text for text in texts)
    assert not app.metric, "a prediction is no verdict"


def test_the_button_asks_for_the_sweep_and_for_larger_models(open_page: Open, database: Database) -> None:
    predict(database, CASE.sweep("here"), 0.6)
    app = open_page("case", id="train_memory")
    button = app.button(key="predict_case")
    assert button.label == "Predict 32 peaks", "three lengths are in both sweeps"
    button.click().run()
    assert not app.exception
    with database.reading() as session:
        asked = [spec["model"] for row in runs.queued_and_running(session) for spec in row.spec["of"]]
    assert asked.count("llama-3.3-70b") == 10
    assert "32 predictions to come" in words(app)


def test_larger_models_are_lines_beside_what_was_published(open_page: Open, database: Database) -> None:
    for sweep, share in zip(CASE.predicted, (0.8, 0.5, 0.45, 0.2), strict=True):
        predict(database, sweep, share)
    app = open_page("case", id="train_memory")
    assert "Larger models, predicted" in words(app)
    chart = json.loads(app.get("plotly_chart")[-1].proto.spec)
    lines = {trace["name"]: trace for trace in chart["data"] if trace.get("mode") == "lines+markers"}
    assert lines["published"]["line"]["dash"] == "dash"
    assert {labels.model_label(sweep.model) for sweep in CASE.predicted} < set(lines)
    (table,) = [frame.value for frame in app.dataframe if "LoRA / full" in frame.value]
    assert len(table) == 19
    assert table["LoRA / full"].iloc[-1] == "0.200×"
    text = words(app).replace("\\", "")
    assert "before 512 with TinyLlama 1.1B" in text
    assert "beyond 4096 with Llama 3.3 70B" in text


def test_measured_ratios_have_the_predicted_ones_beside_them(open_page: Open, database: Database) -> None:
    stored_cases.merge_peaks(database, stored_cases.as_claimed)
    peaks = {"out_of_place": 3.0, "stock": 2.1}
    for spec in cases.case("merge").sweep("here").specs:
        peak = peaks.get(spec.strategy, 0.01) * GIB
        predicted.store(database, spec.model_dump(mode="json"), {"merge_peak_extra_bytes": peak})
    app = open_page("case", id="merge")
    assert titles(app)[0].startswith("Measured beside published and predicted")
    ratios = app.dataframe[0].value
    assert [round(ratios[name].iloc[0], 3) for name in ("Measured", "Predicted")] == [0.667, 0.7]


def test_claims_on_seconds_are_not_predicted(open_page: Open) -> None:
    app = open_page("case", id="inference")
    assert "predict_case" not in [button.key for button in app.button]
