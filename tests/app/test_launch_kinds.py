"""Launch for each kind: a first run in three clicks, its own fields, and what a kind or the bare model cannot have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets.estimates import Estimator
from db import runs
from db.runs import RunRow
from db.session import Database
from engine import catalog
from engine.catalog.snippets import snippet
from engine.spec import Measured, parse_spec
from tests.app import stored
from tests.app.reading import words
from tests.app.test_launch_page import choose, launch, preview, waiting

Open = Callable[..., AppTest]
KINDS = ("init", "merge", "train", "inference")


def number(app: AppTest, key: str, text: str) -> AppTest:
    app.text_input(key=key).set_value(text).run()
    assert not app.exception, app.exception
    return app


def specs(rows: list[RunRow]) -> list[dict[str, object]]:
    return [row.spec for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_and_one_press_queue_a_first_run_of_that_kind(open_page: Open, database: Database, kind: str) -> None:
    app = open_page("launch")
    app.get_by_key("launch_kind").set_value(kind).run()
    assert not app.exception
    launch(app)
    rows = waiting(database)
    assert {row.kind for row in rows} == {kind}
    assert rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_comes_from_the_address_and_goes_into_it(open_page: Open, kind: str) -> None:
    app = open_page("launch", kind=kind)
    assert app.get_by_key("launch_kind").value == kind
    app.get_by_key("launch_kind").set_value("merge").run()
    assert app.query_params["kind"] in ("merge", ["merge"])


def test_a_kind_that_does_not_exist_is_ignored(open_page: Open) -> None:
    assert open_page("launch", kind="guess").get_by_key("launch_kind").value == "init"


def test_train_starts_with_full_fine_tuning_beside_lora(open_page: Open, database: Database) -> None:
    launch(open_page("launch", kind="train"))
    rows = waiting(database)
    assert [row.adapter for row in rows] == ["Full fine-tuning", "LoRA"]
    assert rows[0].spec["adapter"] is None


def test_defaults_follow_the_kind_until_someone_changes_them(open_page: Open) -> None:
    app = open_page("launch")
    app.get_by_key("launch_kind").set_value("train").run()
    assert app.session_state["launch_adapters"] == ["none", "lora"]
    choose(app, "launch_adapters", ["dora"])
    app.get_by_key("launch_kind").set_value("merge").run()
    assert app.session_state["launch_adapters"] == ["dora"]


def test_several_lengths_and_batches_make_a_sweep_of_train_runs(open_page: Open, database: Database) -> None:
    app = choose(open_page("launch", kind="train"), "launch_models", ["tiny-test"])
    number(app, "launch_train_context_length", "64, 128")
    number(app, "launch_train_batch_size", "1 2")
    choose(app, "launch_train_gradient_checkpointing", [False, True])
    assert app.button(key="launch_button").label == "Launch 16 runs"
    assert {"context_length", "batch_size", "gradient_checkpointing"} <= set(preview(app).columns)
    launch(app)
    sections = [row.spec["train"] for row in waiting(database)]
    assert {(item["context_length"], item["batch_size"]) for item in sections} == {
        (64, 1),
        (64, 2),
        (128, 1),
        (128, 2),
    }


def test_the_rarer_fields_of_train_are_in_its_specs(open_page: Open, database: Database) -> None:
    app = choose(open_page("launch", kind="train"), "launch_models", ["tiny-test"])
    choose(app, "launch_adapters", ["lora"])
    number(app, "launch_train_context_length", "64")
    number(app, "launch_train_accumulation", "2")
    number(app, "launch_train_loss_chunks", "4")
    number(app, "launch_train_sequence_tiles", "2")
    choose(app, "launch_train_optimizer", ["sgd"])
    choose(app, "launch_train_task", ["causal_lm"])
    launch(app)
    (row,) = waiting(database)
    section = row.spec["train"]
    assert [section[name] for name in ("accumulation", "loss_chunks", "sequence_tiles", "optimizer")] == [
        2,
        4,
        2,
        "sgd",
    ]


def test_full_fine_tuning_alone_asks_for_no_modules_and_no_rank(open_page: Open, database: Database) -> None:
    app = choose(open_page("launch", kind="train"), "launch_adapters", ["none"])
    assert "launch_presets" not in [element.key for element in app.get("button_group")]
    assert not [field for field in app.text_input if field.key == "launch_rank"]
    launch(app)
    assert [row.spec["adapter"] for row in waiting(database)] == [None]


def test_rank_and_adapter_options_of_lora_do_not_multiply_full_fine_tuning(open_page: Open, database: Database) -> None:
    app = number(open_page("launch", kind="train"), "launch_rank", "4, 8")
    assert list(preview(app)["Adapter"]) == ["Full fine-tuning", "LoRA", "LoRA"]
    assert list(preview(app)["rank"]) == ["", "4", "8"]


def test_the_base_alone_has_one_variant_beside_an_adapter_with_all(open_page: Open, database: Database) -> None:
    app = choose(open_page("launch", kind="inference"), "launch_adapters", ["none", "lora"])
    number(app, "launch_inference_prompt_tokens", "16")
    number(app, "launch_inference_new_tokens", "4")
    launch(app)
    bare, adapted = waiting(database)
    assert (bare.adapter, bare.spec["inference"]["variants"]) == (None, ["base"])
    assert adapted.spec["inference"]["variants"] == ["base", "adapter_disabled", "adapter", "merged"]
    assert adapted.spec["inference"]["prompt_tokens"] == 16


def test_an_adapter_that_cannot_merge_is_measured_without_the_merged_variant(
    open_page: Open, database: Database
) -> None:
    name = next(
        choice.id
        for choice in catalog.adapter_choices()[8:]
        if catalog.cannot(catalog.adapter_type(choice.type), choice.options, "merge")
        and not catalog.cannot(catalog.adapter_type(choice.type), choice.options, "inference")
    )
    app = choose(open_page("launch", kind="inference"), "launch_adapters", [])
    choose(app, "launch_other_adapters", [name])
    launch(app)
    (row,) = waiting(database)
    assert "merged" not in row.spec["inference"]["variants"]


def test_what_an_adapter_cannot_do_is_said_with_the_reason_before_anything_runs(open_page: Open) -> None:
    choice = next(
        choice
        for choice in catalog.adapter_choices()
        if catalog.cannot(catalog.adapter_type(choice.type), choice.options, "merge")
    )
    reason = catalog.cannot(catalog.adapter_type(choice.type), choice.options, "merge")
    assert reason is not None
    shown = words(open_page("launch", kind="merge")).replace("\\", "")
    assert reason.rstrip(".") in shown
    assert choice.label in shown
    assert reason.rstrip(".") not in words(open_page("launch", kind="init")).replace("\\", "")


@pytest.mark.parametrize("kind", ["merge", "train", "inference"])
def test_every_strategy_of_the_kind_is_offered(open_page: Open, kind: str) -> None:
    options = app_options(open_page("launch", kind=kind), f"launch_strategies_{kind}")
    for strategy in catalog.strategies(kind):
        assert any(strategy.label in option for option in options)


def app_options(app: AppTest, key: str) -> list[str]:
    return list(app.get_by_key(key).options)


def test_a_strategy_for_lora_is_grey_with_its_reason_where_no_form_of_lora_is_chosen(open_page: Open) -> None:
    app = choose(open_page("launch", kind="train"), "launch_adapters", ["none"])
    assert ":gray[Fused]" in app_options(app, "launch_strategies_train")
    assert "LoRA" in words(app)


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("launch_train_context_length", "long", "Context length: 'long' is not a whole number"),
        ("launch_train_batch_size", "1.5", "Batch size: '1.5' is not a whole number"),
    ],
)
def test_numbers_of_a_section_that_cannot_be_read_get_one_sentence(
    open_page: Open, key: str, text: str, sentence: str
) -> None:
    app = number(open_page("launch", kind="train"), key, text)
    assert sentence in app.error[0].value.replace("\\", "")
    assert not [button for button in app.button if button.key == "launch_button"]


@pytest.mark.parametrize(
    ("kind", "key", "text", "field"),
    [
        ("train", "launch_train_batch_size", "0", "batch_size"),
        ("train", "launch_train_context_length", "999999", "context_length"),
        ("inference", "launch_inference_new_tokens", "0", "new_tokens"),
    ],
)
def test_values_of_a_section_out_of_bounds_are_named_in_the_preview(
    open_page: Open, kind: str, key: str, text: str, field: str
) -> None:
    app = number(open_page("launch", kind=kind), key, text)
    assert field in preview(app)["Problem"].iloc[0]
    assert app.button(key="launch_button").disabled


@pytest.mark.parametrize("kind", KINDS)
def test_how_long_it_takes_is_said_as_an_estimate_until_runs_like_it_exist(
    open_page: Open, database: Database, kind: str
) -> None:
    app = open_page("launch", kind=kind)
    assert "estimated from the model's size" in words(app)
    assert all(text.startswith("≈") for text in preview(app)["Expected"])


@pytest.mark.parametrize("kind", ["train", "inference"])
def test_a_run_of_another_length_is_no_measure_of_how_long_this_one_takes(
    open_page: Open, database: Database, kind: str
) -> None:
    document = stored.document(kind, "tiny-test")
    outcome = stored.train_result([0.1], trainable=10) if kind == "train" else stored.inference_result({"base": 9.0})
    stored.store(database, document, outcome)
    with database.reading() as session:
        estimator = Estimator(runs.durations(session))

    def is_measured(spec: Measured) -> bool:
        expectation = estimator.expect(
            kind=kind,
            model="tiny-test",
            adapter="LoRA",
            strategy="stock",
            dtype="bfloat16",
            device="cpu",
            spec=spec.model_dump(mode="json"),
            parameters=1000,
        )
        assert expectation is not None
        return expectation.is_measured

    assert is_measured(parse_spec(document))  # type: ignore[arg-type]
    assert not is_measured(parse_spec({**document, kind: {"batch_size": 4}}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"kind": "merge"}, "model.merge_and_unload()"),
        ({"kind": "merge", "strategy": "safe"}, "merge_and_unload(safe_merge=True)"),
        ({"kind": "merge", "strategy": "row_blocks"}, "with row_blocks():\n    model = model.merge_and_unload()"),
        ({"kind": "train"}, "loss.backward()\noptimizer.step()"),
        ({"kind": "train", "strategy": "fused"}, "with fused():\n    loss = "),
        ({"kind": "train", "train": {"accumulation": 4}}, "for _ in range(4):"),
        ({"kind": "train", "train": {"loss_chunks": 8}}, "with ChunkedLoss(model, 8):"),
        ({"kind": "train", "quantization": "nf4"}, "BitsAndBytesConfig(load_in_4bit=True"),
        ({"kind": "train", "task": "sequence_classification"}, "AutoModelForSequenceClassification"),
        ({"kind": "inference"}, "model.generate(input_ids=input_ids, min_new_tokens=64"),
        ({"kind": "inference", "strategy": "fused"}, "torch.inference_mode(), fused(model):"),
        ({"kind": "inference", "adapter": None}, "model.eval()"),
    ],
)
def test_the_code_of_every_kind_does_what_the_run_measures(document: dict[str, object], expected: str) -> None:
    spec = parse_spec({"model": "tiny-test", **document})
    text = snippet(spec)  # type: ignore[arg-type]
    compile(text, "snippet", "exec")
    assert expected in text
    assert ("get_peft_model(" in text) == (document.get("adapter", "") is not None)
