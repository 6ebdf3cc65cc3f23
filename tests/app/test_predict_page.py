"""The Predict page: answers before anything runs, cards that are not here, what is measured beside, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db import queue, runs
from db.session import Database
from tests.app import predicted, stored
from tests.app.reading import words

Open = Callable[..., AppTest]
LENGTHS = (32, 64)
PAGE = {"model": "tiny-test", "lengths": "32, 64"}
GIB = 2**30
TERMS = [
    {"name": "tensors", "bytes": 30 * GIB, "source": "the job's own code", "unverified": False},
    {"name": "CUDA context", "bytes": GIB, "source": "out-of-memory messages", "unverified": True},
]


def spec(length: int, full: bool = False, **fields: Any) -> dict[str, Any]:
    """What the page asks for with its defaults."""
    adapter = None if full else {"type": "lora"}
    document = {"kind": "train", "model": "tiny-test", "adapter": adapter, "train": {"context_length": length}}
    return {**document, **fields}


def predict(database: Database, document: dict[str, Any], parameters: float, activations: float, **fields: Any) -> None:
    parts = {"parameters_bytes": parameters, "activations_bytes": activations}
    course = [
        {"number": 0, "part": "forward", "bytes": {"parameters": parameters}},
        {"number": 1, "part": "backward", "bytes": {"parameters": parameters, "activations": activations}},
    ]
    tensors = [{"category": "activations", "module": "model.layers.*.mlp", "bytes": activations}]
    peaks = {"peak_bytes": parameters + activations, **parts}
    predicted.store(database, document, peaks, course=course, top_tensors=tensors, notes=["seen over 2"], **fields)


@pytest.fixture
def all_known(database: Database) -> Database:
    """Full fine-tuning and LoRA at both lengths, LoRA with half of the memory."""
    for length in LENGTHS:
        predict(database, spec(length, full=True), 2 * GIB, length * GIB / 32)
        predict(database, spec(length), GIB / 2, 1.5 * length * GIB / 64)
    return database


def figures(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(figure.proto.spec) for figure in app.get("plotly_chart")]


def requests(database: Database) -> list[runs.RunRow]:
    with database.reading() as session:
        return runs.list_runs(session, kinds=["predict"])


def test_what_is_not_known_is_asked_for_as_soon_as_the_page_opens(open_page: Open, database: Database) -> None:
    app = open_page("predict", **PAGE)
    assert "4 predictions to come" in words(app)
    asked = [one for row in requests(database) for one in row.spec["of"]]
    assert sorted(one["train"]["context_length"] for one in asked) == [32, 32, 64, 64]
    assert [metric.value for metric in app.metric] == ["…", "…"]


@pytest.mark.usefixtures("all_known")
def test_the_answer_is_the_peak_of_each_method_at_the_longest_length_and_whether_it_fits(open_page: Open) -> None:
    app = open_page("predict", **PAGE)
    assert "At **64 tokens**" in words(app)
    assert [metric.label for metric in app.metric] == ["Full fine-tuning", "LoRA"]
    assert [metric.value for metric in app.metric] == ["4.00 GiB", "2.00 GiB"]
    assert "75 % activations" in app.metric[1].delta
    assert "to come" not in words(app)


@pytest.mark.usefixtures("all_known")
def test_the_charts_show_stacks_by_method_ratios_and_the_course_of_one(open_page: Open) -> None:
    by_length, ratios, parts, course = figures(open_page("predict", **PAGE))
    assert [note["text"] for note in by_length["layout"]["annotations"]][:2] == ["Full fine-tuning", "LoRA"]
    assert by_length["data"][0]["marker"]["pattern"]["shape"] == "/"
    assert any("0.500×" in text for trace in ratios["data"] for text in trace.get("text") or [])
    assert {trace["name"] for trace in parts["data"] if trace.get("name")} >= {"parameters", "activations"}
    assert {"forward", "backward"} & {note["text"] for note in course["layout"]["annotations"]}


@pytest.mark.usefixtures("all_known")
def test_the_details_are_of_the_prediction_that_is_chosen(open_page: Open) -> None:
    app = open_page("predict", **PAGE)
    assert app.selectbox(key="of").value == "LoRA, 64 tokens"
    app.selectbox(key="of").set_value("Full fine-tuning, 32 tokens").run()
    assert not app.exception
    sizes = next(frame.value for frame in app.dataframe if "Module" in frame.value)
    assert list(sizes["Bytes"]) == ["1.00 GiB"]


def test_measured_peaks_are_points_on_the_chart_and_need_not_be_measured_again(
    open_page: Open, all_known: Database
) -> None:
    assert open_page("predict", **PAGE).button(key="measure_predicted").label == "Measure 4 runs"
    stored.store(all_known, spec(64, repeats=2, seed=4), stored.train_result([1.0], trainable=1000, activations=GIB))
    app = open_page("predict", **PAGE)
    names = {trace.get("name") for trace in figures(app)[0]["data"]}
    assert "measured" in names
    assert "Measured peak" in app.dataframe[-1].value
    assert app.button(key="measure_predicted").label == "Measure 3 runs"


def test_measuring_queues_each_spec_once_with_one_repeat(open_page: Open, all_known: Database) -> None:
    app = open_page("predict", **PAGE)
    app.button(key="measure_predicted").click().run()
    assert not app.exception
    with all_known.reading() as session:
        waiting = runs.list_runs(session, states=["queued"])
    assert len(waiting) == 4
    assert {(row.kind, row.spec["repeats"]) for row in waiting} == {("train", 1)}


def test_a_card_need_not_be_here_and_its_terms_have_sources(open_page: Open, database: Database) -> None:
    for length in LENGTHS:
        predict(database, spec(length, device="cuda:0"), 20 * GIB, 10 * GIB, card="t4", device_terms=TERMS)
    app = open_page("predict", **PAGE, device="T4", methods="LoRA")
    assert [metric.value for metric in app.metric] == ["31.0 GiB"]
    assert "will not fit" in app.metric[0].delta
    assert "31.0 GiB in all" in words(app)
    assert "out\\-of\\-memory messages" in str(app.table[0].value["Source"].iloc[1])
    assert "seen on no GPU" in str(app.table[0].value["Source"].iloc[1])
    assert "measure_predicted" not in [button.key for button in app.button]


def test_a_spec_that_cannot_be_predicted_says_why_once_and_the_others_are_shown(
    open_page: Open, database: Database
) -> None:
    predict(database, spec(32, full=True), GIB, GIB)
    predict(database, spec(32), GIB, GIB)
    for full in (True, False):
        predicted.refuse(database, spec(64, full), "train.context_length: 64 is longer than <the> model's 40 positions")
    app = open_page("predict", **PAGE)
    (warning,) = app.warning
    assert warning.value.endswith("64 is longer than \\<the\\> model's 40 positions\\.")
    assert warning.value.startswith("2 of 4")
    assert [metric.value for metric in app.metric] == ["2.00 GiB", "2.00 GiB"]


def test_a_request_that_broke_off_can_be_asked_again(open_page: Open, database: Database) -> None:
    open_page("predict", **PAGE)
    for _ in requests(database):
        with database.writing() as session:
            claimed = queue.claim(session, supervisor="1@1", devices=["cpu"], kinds=["predict"])
            assert claimed is not None
            queue.finish(session, claimed.id, stored.failure("lost", "The worker was killed"))
    app = open_page("predict", **PAGE)
    assert "The worker was killed" in words(app)
    next(button for button in app.button if button.label == "Predict again").click().run()
    assert len([row for row in requests(database) if row.state == "queued"]) == 4


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"lengths": "64, many"}, "Context lengths: 'many' is not a whole number"),
        ({"lengths": "0"}, "train.context_length: "),
        ({"batch": "-3"}, "train.batch_size: "),
    ],
)
def test_bad_numbers_are_one_sentence_that_names_the_field(
    open_page: Open, database: Database, query: dict[str, str], sentence: str
) -> None:
    app = open_page("predict", **{**PAGE, **query})
    texts = [error.value.replace("\\", "") for error in app.error]
    assert len(texts) == 1
    assert texts[0].startswith(sentence)
    assert requests(database) == []


def test_attaching_and_merging_have_no_lengths_and_say_what_comes_on_top_of_the_model(
    open_page: Open, database: Database
) -> None:
    for adapter in ({}, {"options": {"use_dora": True}}):
        peaks = {"peak_bytes": 3 * GIB, "parameters_bytes": 3 * GIB, "init_peak_extra_bytes": GIB / 2}
        predicted.store(database, {"kind": "init", "model": "tiny-test", "adapter": adapter}, peaks)
    app = open_page("predict", model="tiny-test", kind="Init")
    assert [metric.label for metric in app.metric] == ["LoRA", "DoRA"]
    assert "512 MiB on top of the model" in app.metric[0].delta
    assert "lengths" not in [field.key for field in app.text_input]


def test_inference_has_a_row_for_each_form_of_the_model(open_page: Open, database: Database) -> None:
    document = {"kind": "inference", "model": "tiny-test", "inference": {"prompt_tokens": 32, "new_tokens": 8}}
    peaks: dict[str | tuple[str, str], float] = {}
    for variant, size in (("base", 1), ("adapter", 2)):
        peaks |= {("peak_bytes", variant): size * GIB, ("parameters_bytes", variant): size * GIB}
    predicted.store(database, document, peaks)
    app = open_page("predict", model="tiny-test", kind="Inference", prompts="32", new="8")
    assert [metric.value for metric in app.metric] == ["2.00 GiB"]
    rows = {label for trace in figures(app)[1]["data"] for label in trace.get("y") or []}
    assert rows == {"Base", "Adapter"}


@pytest.mark.usefixtures("all_known")
def test_the_address_decides_everything_so_that_it_can_be_sent(open_page: Open) -> None:
    app = open_page("predict", **PAGE, methods="LoRA", of="LoRA, 32 tokens")
    assert [metric.label for metric in app.metric] == ["LoRA"]
    assert app.selectbox(key="of").value == "LoRA, 32 tokens"
    assert app.text_input(key="lengths").value == "32, 64"


@pytest.mark.usefixtures("all_known")
def test_presented_it_has_the_answer_and_no_controls(open_page: Open) -> None:
    app = open_page("predict", **PAGE, present="1")
    assert [metric.value for metric in app.metric] == ["4.00 GiB", "2.00 GiB"]
    assert not app.selectbox
    assert not app.text_input
