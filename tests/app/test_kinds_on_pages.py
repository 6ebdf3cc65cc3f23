"""What stored runs of each kind become on Run, Runs and Queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from db.session import Database
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


@pytest.fixture
def by_kind(database: Database) -> dict[str, list[int]]:
    found = {"init": stored.lora_and_dora(database)}
    return found | stored.one_of_each_kind(database)


def titles(app: AppTest) -> list[str]:
    figures = [json.loads(element.proto.spec) for element in app.get("plotly_chart")]
    return [figure["layout"]["title"]["text"] for figure in figures]


def numbers(app: AppTest) -> dict[str, tuple[str, str]]:
    return {metric.label: (metric.value, metric.delta) for metric in app.metric}


# --- Run --------------------------------------------------------------------------------------------------------------


def test_a_merge_run_shows_its_memory_in_bytes_and_in_weights(open_page: Open, by_kind: dict[str, list[int]]) -> None:
    app = open_page("run", id=str(by_kind["merge"][3]))
    assert app.title[0].value == "Merge\\: DoRA · Stock PEFT on TinyLlama 1\\.1B"
    shown = numbers(app)
    assert shown["Merge time"] == ("7.00 s", "3 repeats")
    assert shown["Peak extra memory"] == ("132 MiB", "6.02 W")
    assert shown["Retained afterwards"][0] == "0 B"
    assert shown["Weight error"] == ("3.12 %", "of the adapter's effect")
    assert titles(app) == [
        "Seconds to merge and to unmerge, lower is better",
        "Drift over merge and unmerge rounds, % of the adapter's effect, lower is better",
        "Live tensors while merging, on top of the model's 2.00 GiB, lower is better",
        "Memory of the process, lower is better",
    ]


def test_a_train_run_shows_memory_by_category_beside_the_process_and_the_split_of_its_step(
    open_page: Open, by_kind: dict[str, list[int]]
) -> None:
    app = open_page("run", id=str(by_kind["train"][1]))
    shown = numbers(app)
    assert shown["Step time"] == ("7.30 s", "3 repeats")
    assert shown["Trainable parameters"] == ("12.6 M", "1.13 % of 1.11 B")
    assert shown["Step split"][0] == "36 / 58 / 6 %"
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    bars = {trace["name"]: trace for trace in figure["data"] if trace["type"] == "bar"}
    assert next(iter(bars)) == "parameters"
    assert list(bars)[-1] == "unattributed"
    assert bars["activations"]["y"] == ["As specified: tensors", "As specified: process"]
    assert bars["unattributed"]["y"] == ["As specified: process"]


def test_a_train_run_with_a_saving_is_beside_plain_stock_in_every_number_and_chart(
    open_page: Open, by_kind: dict[str, list[int]]
) -> None:
    app = open_page("run", id=str(by_kind["train"][2]))
    assert "checkpointing" in app.title[0].value
    shown = numbers(app)
    assert shown["Step time"] == ("9.50 s", "stock 11.9 s")
    assert shown["Peak memory"] == ("2.42 GiB", "stock 2.54 GiB")
    split = json.loads(app.get("plotly_chart")[1].proto.spec)
    assert split["data"][0]["y"] == ["As specified", "Plain stock"]


def test_full_fine_tuning_is_called_so(open_page: Open, by_kind: dict[str, list[int]]) -> None:
    app = open_page("run", id=str(by_kind["train"][0]))
    assert "Train\\: Full fine\\-tuning on" in app.title[0].value
    assert "100 % of" in numbers(app)["Trainable parameters"][1]


def test_an_inference_run_shows_base_adapter_and_overhead_with_the_base_dashed(
    open_page: Open, by_kind: dict[str, list[int]]
) -> None:
    app = open_page("run", id=str(by_kind["inference"][1]))
    shown = numbers(app)
    assert shown["Base model"][0] == "13.1 tokens/s"
    assert shown["LoRA · Fused"][0] == "11.6 tokens/s"
    assert shown["Overhead"] == ("1.13×", "per token, against base")
    assert shown["Prefill"][1] == "base 916 ms"
    figure = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert figure["layout"]["title"]["text"] == "Tokens written per second, higher is better"
    assert figure["layout"]["yaxis"]["categoryarray"][::-1] == [
        "Base model",
        "LoRA · Disabled",
        "LoRA · Stock PEFT",
        "LoRA · Fused",
        "LoRA · Merged",
    ]
    assert figure["layout"]["shapes"][0]["line"]["dash"] == "dash"


def test_a_bare_inference_run_shows_its_one_speed(open_page: Open, database: Database) -> None:
    document = stored.document("inference", adapter=None)
    run_id = stored.store(database, document, stored.inference_result({"base": 13.1}))
    app = open_page("run", id=str(run_id))
    assert app.title[0].value.startswith("Inference\\: Base model on")
    assert "Overhead" not in numbers(app)


@pytest.mark.parametrize("kind", ["init", "merge", "train", "inference"])
def test_every_number_of_a_run_is_in_its_table_with_the_way_it_is_better(
    open_page: Open, by_kind: dict[str, list[int]], kind: str
) -> None:
    app = open_page("run", id=str(by_kind[kind][-1]))
    table = next(item.value for item in app.dataframe if "Metric" in item.value)
    assert {"Metric", "Median", "n", "Better"} <= set(table.columns)
    assert set(table["Better"]) <= {"lower", "higher", ""}
    assert not table["Metric"].str.contains("_").any()
    assert ("Variant" in table.columns) == (kind == "inference")
    assert any("import torch" in code.value for code in app.code)


@pytest.mark.parametrize("kind", ["merge", "train", "inference"])
def test_a_run_that_lacks_some_numbers_shows_the_others(open_page: Open, database: Database, kind: str) -> None:
    outcome = {
        "merge": stored.merge_result([0.5], peak_weights=1.0),
        "train": stored.train_result([0.5], trainable=10),
        "inference": stored.inference_result({"base": 9.0, "adapter": 8.0}),
    }[kind]
    names = list(dict.fromkeys(metric["name"] for metric in outcome["metrics"]))
    for left_out in names:
        fewer = {**outcome, "samples": []}
        fewer["metrics"] = [metric for metric in outcome["metrics"] if metric["name"] != left_out]
        run_id = stored.store(database, stored.document(kind, "tiny-test"), fewer)
        open_page("run", id=str(run_id))


def test_a_run_out_of_memory_shows_the_peak_it_reached(open_page: Open, database: Database) -> None:
    outcome: dict[str, Any] = stored.failure("out_of_memory", "In the backward pass")
    outcome["metrics"] = [stored.metric("peak_bytes", "bytes", 9 * 2**30)]
    run_id = stored.store(database, stored.document("train", "mistral-7b"), outcome)
    app = open_page("run", id=str(run_id))
    assert "In the backward pass" in app.warning[0].value
    assert numbers(app)["Peak memory"][0] == "9.00 GiB"


# --- Runs and Queue ---------------------------------------------------------------------------------------------------


def test_runs_of_several_kinds_have_one_result_each(open_page: Open, by_kind: dict[str, list[int]]) -> None:
    table = open_page("runs").dataframe[0].value.set_index("id")
    assert table.loc[by_kind["init"][1], "result"] == "Attach 1.52 s"
    assert table.loc[by_kind["merge"][0], "result"] == "Merge 2.31 s"
    assert table.loc[by_kind["train"][0], "result"] == "Step 9.20 s"
    assert table.loc[by_kind["inference"][1], "result"] == "11.6 tokens/s"
    assert table.loc[by_kind["merge"][0], "peak"] == "+44.0 MiB"
    assert table.loc[by_kind["train"][2], "work"] == "context 512, checkpointing"
    assert set(table["kind"]) == {"Init", "Merge", "Train", "Inference"}


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("Merge", {"merge_s", "peak_extra_bytes"}),
        ("Train", {"step_s", "train_tokens_per_s", "peak_bytes"}),
        ("Inference", {"decode_tokens_per_s", "prefill_s", "peak_bytes"}),
    ],
)
def test_runs_of_one_kind_have_the_columns_of_that_kind(
    open_page: Open, by_kind: dict[str, list[int]], kind: str, columns: set[str]
) -> None:
    table = open_page("runs", kind=kind).dataframe[0].value
    assert columns <= set(table.columns)
    assert not {"init_s", "result", "kind"} & set(table.columns)
    assert list(table["id"]) == by_kind[kind.lower()][::-1]
    assert table[sorted(columns)].notna().all().all()


def test_waiting_runs_of_every_kind_say_what_they_are(open_page: Open, database: Database) -> None:
    stored.queued(
        database,
        stored.document("merge", strategy="addmm"),
        stored.document("train", adapter=None),
        stored.document("inference", adapter=None),
        {"kind": "inspect", "model": "tiny-test"},
        {"kind": "predict", "of": [stored.document("train"), stored.document("train", adapter=None)]},
        {"kind": "merge_files", "base": "/models/base", "adapter": "/adapters/mine", "out": "/models/out"},
    )
    shown = words(open_page("queue")).replace("\\", "")
    for title in (
        "Merge: LoRA · addmm on TinyLlama 1.1B",
        "Train: Full fine-tuning on TinyLlama 1.1B",
        "Inference: Base model on TinyLlama 1.1B",
        "Inspect",
        "Predict 2 peaks of TinyLlama 1.1B",
        "Merge files of mine into base",
    ):
        assert title in shown


# --- Compare ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "init",
            [
                "Seconds to attach the adapter, lower is better",
                "Peak extra memory while attaching, lower is better",
            ],
        ),
        ("merge", ["Peak extra memory of a merge, lower is better", "Seconds to merge, log scale, lower is better"]),
        (
            "train",
            [
                "Peak memory of a training step, lower is better",
                "Seconds of a training step, lower is better",
                "Seconds of a training step by part, lower is better",
            ],
        ),
        (
            "inference",
            [
                "Tokens written per second, higher is better",
                "Time per token against the base model, lower is better",
                "Seconds to read the prompt, lower is better",
            ],
        ),
    ],
)
def test_compared_runs_of_each_kind_have_the_charts_of_that_kind(
    open_page: Open, by_kind: dict[str, list[int]], kind: str, expected: list[str]
) -> None:
    app = open_page("compare", ids=",".join(map(str, by_kind[kind])), chart=f"All of {kind}")
    assert titles(app) == expected
    assert all(element.proto.alt for element in app.get("plotly_chart"))
