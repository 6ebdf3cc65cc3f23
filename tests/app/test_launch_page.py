"""Launch: a first run in one press, sweeps, what cannot run, the target picker, and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app import formatting
from app.places import Place
from app.widgets import grid
from db import queue, runs
from db.runs import RunRow
from db.session import Database
from engine import catalog
from tests.app import stored
from tests.app.reading import words

Open = Callable[..., AppTest]


def waiting(database: Database) -> list[RunRow]:
    with database.reading() as session:
        return [row for row in runs.queued_and_running(session) if row.kind != "predict"]


def choose(app: AppTest, key: str, values: list[object]) -> AppTest:
    """Set one of the form's fields."""
    app.get_by_key(key).set_value(values).run()
    assert not app.exception, app.exception
    return app


def use_small_model(app: AppTest) -> AppTest:
    return choose(app, "launch_models", ["tiny-test"])


def launch(app: AppTest) -> AppTest:
    app.button(key="launch_button").click().run()
    assert not app.exception, app.exception
    return app


def preview(app: AppTest):  # type: ignore[no-untyped-def]
    return next(table.value for table in app.dataframe if "Expected" in table.value)


def test_a_first_run_takes_one_press_on_this_page(open_page: Open, database: Database) -> None:
    app = launch(open_page("launch"))
    assert [row.adapter for row in waiting(database)] == ["LoRA", "DoRA"]
    assert "2 runs queued" in words(app)
    assert any(link.value == "Watch in the queue" for link in app.get("page_link"))


def test_several_values_in_any_field_make_a_sweep(open_page: Open, database: Database) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_adapters", ["dora"])
    choose(app, "launch_strategies_init", ["stock", "zero_b_norm"])
    choose(app, "launch_dtypes", ["float32", "bfloat16"])
    app.text_input(key="launch_rank").set_value("4, 8").run()
    assert app.button(key="launch_button").label == "Launch 8 runs"
    assert list(preview(app)["rank"].unique()) == ["4", "8"]
    launch(app)
    rows = waiting(database)
    assert len(rows) == 8
    assert len({row.spec_hash for row in rows}) == 8
    assert len({row.sweep_id for row in rows}) == 1


def test_what_cannot_run_is_in_the_preview_with_its_reason_and_is_not_launched(
    open_page: Open, database: Database
) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_strategies_init", ["stock", "zero_b_norm"])
    table = preview(app)
    blocked = table[table["Problem"] != ""]
    assert list(blocked["Adapter"]) == ["LoRA"]
    assert "DoRA" in blocked["Problem"].iloc[0]
    launch(app)
    assert [(row.adapter, row.strategy) for row in waiting(database)] == [
        ("LoRA", "stock"),
        ("DoRA", "stock"),
        ("DoRA", "zero_b_norm"),
    ]


def test_gpu_strategies_are_explained_where_there_is_no_gpu(open_page: Open) -> None:
    assert "need a GPU, and this machine has none" in words(open_page("launch"))


def test_what_was_measured_says_how_often_and_may_be_measured_again(open_page: Open, database: Database) -> None:
    for _ in range(2):
        stored.store(database, stored.init_document("tiny-test"), stored.result([0.1]))
    app = use_small_model(open_page("launch"))
    choose(app, "launch_adapters", ["lora"])
    assert list(preview(app)["Measured"]) == ["×2"]
    assert "1 measured before and measured again" in words(app)
    launch(app)
    assert waiting(database)[0].replica == 2


def test_chips_show_counts_and_follow_the_preset(open_page: Open) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_presets", ["qv"])
    assert set(app.session_state["launch_groups"]) == {"q_proj", "v_proj"}
    assert "Q, V:" in words(app)


def test_clicking_a_chip_makes_a_choice_of_ones_own(open_page: Open, database: Database) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_adapters", ["lora"])
    choose(app, "launch_groups", ["q_proj", "o_proj"])
    assert app.session_state["launch_presets"] == ["custom"]
    launch(app)
    assert waiting(database)[0].spec["adapter"]["target_modules"] == ["o_proj", "q_proj"]


def test_a_preset_clicked_after_that_replaces_it(open_page: Open) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_groups", ["q_proj"])
    choose(app, "launch_presets", ["custom", "mlp"])
    assert app.session_state["launch_presets"] == ["mlp"]


def test_every_adapter_type_of_the_catalog_makes_a_valid_form(open_page: Open) -> None:
    app = use_small_model(open_page("launch"))
    for choice in catalog.adapter_choices():
        shown = {option for option in app.get_by_key("launch_adapters").options}
        if choice.label in shown:
            choose(app, "launch_adapters", [choice.id])
            choose(app, "launch_other_adapters", [])
        else:
            choose(app, "launch_adapters", [])
            choose(app, "launch_other_adapters", [choice.id])
        assert not app.error, (choice.id, app.error)
        assert list(preview(app)["Adapter"]) == [choice.label], choice.id
    assert len(list(catalog.adapter_choices())) > 10


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("launch_rank", "sixteen", "Rank: 'sixteen' is not a whole number"),
        ("launch_rank", "1.5", "Rank: '1.5' is not a whole number"),
        ("launch_alpha", "inf", "Alpha: must be finite"),
        ("launch_repeats", "__import__('os')", "Repeats:"),
        ("launch_rank", " ".join(map(str, range(1, 40))), "Rank: at most 20 values"),
    ],
)
def test_numbers_that_cannot_be_read_get_one_sentence_and_nothing_can_be_launched(
    open_page: Open, database: Database, key: str, text: str, sentence: str
) -> None:
    app = open_page("launch")
    app.text_input(key=key).set_value(text).run()
    assert not app.exception
    shown = app.error[0].value.replace("\\", "")
    assert sentence in shown
    assert not [button for button in app.button if button.key == "launch_button"]
    app.text_input(key=key).set_value("2").run()
    assert app.button(key="launch_button")


@pytest.mark.parametrize(("key", "text", "field"), [("launch_rank", "0", "rank"), ("launch_dropout", "2", "dropout")])
def test_values_out_of_bounds_are_named_in_the_preview(open_page: Open, key: str, text: str, field: str) -> None:
    app = open_page("launch")
    app.text_input(key=key).set_value(text).run()
    assert field in preview(app)["Problem"].iloc[0]
    assert app.button(key="launch_button").disabled


def test_too_many_combinations_are_refused_in_one_sentence(open_page: Open, database: Database) -> None:
    app = use_small_model(open_page("launch"))
    app.text_input(key="launch_rank").set_value(" ".join(map(str, range(1, 21)))).run()
    app.text_input(key="launch_seed").set_value(" ".join(map(str, range(1, 21)))).run()
    assert not app.exception
    assert f"More than {grid.MAX_COMBINATIONS} combinations" in words(app)
    assert app.button(key="launch_button").disabled


def test_nothing_chosen_says_what_to_choose(open_page: Open) -> None:
    app = choose(open_page("launch"), "launch_models", [])
    assert "Choose a model to go on." in words(app)


def test_a_saved_adapter_that_is_not_there_cannot_run(open_page: Open, tmp_path: Path) -> None:
    app = use_small_model(open_page("launch"))
    choose(app, "launch_adapters", [])
    app.text_input(key="launch_saved").set_value(str(tmp_path / "nothing")).run()
    assert not app.exception
    assert preview(app)["Problem"].iloc[0]
    assert app.button(key="launch_button").disabled


def own_model(folder: Path) -> str:
    """A folder as transformers saves it, with the configuration of a bundled model."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(catalog.model("tiny-test").config)))
    return str(folder)


def test_a_model_of_ones_own_is_inspected_once_through_the_queue(
    open_page: Open, database: Database, tmp_path: Path
) -> None:
    folder = own_model(tmp_path / "mine")
    app = choose(open_page("launch"), "launch_models", [folder])
    app.run()
    (row,) = waiting(database)
    assert (row.kind, row.model, row.priority) == ("inspect", folder, 1)
    assert "Inspecting" in words(app)
    groups = [group.to_json() for group in catalog.model("tiny-test").groups]
    with database.writing() as session:
        queue.claim(session, supervisor="1@1", devices=["cpu"])
        inspection = {"parameters": 1000, "groups": groups}
        queue.finish(session, row.id, {"state": "succeeded", "inspection": inspection})
    app.run()
    assert any("q\\_proj" in option for option in app.get_by_key("launch_groups").options)
    assert not waiting(database), "it is not inspected again"


def test_an_inspection_that_failed_says_why_and_can_be_repeated(
    open_page: Open, database: Database, tmp_path: Path
) -> None:
    folder = own_model(tmp_path / "mine")
    app = choose(open_page("launch"), "launch_models", [folder])
    (row,) = waiting(database)
    with database.writing() as session:
        queue.claim(session, supervisor="1@1", devices=["cpu"])
        queue.finish(session, row.id, stored.failure("failed", "The weights are damaged"))
    app.run()
    assert "The weights are damaged" in app.error[0].value
    app.button(key=f"inspect_{folder}").click().run()
    assert len(waiting(database)) == 1


@pytest.mark.parametrize("model", ["tinylama-1.1b", "/nonexistent/folder", "../..", "no/such/hub/id"])
def test_a_model_that_does_not_exist_is_refused_before_anything_is_queued(
    open_page: Open, database: Database, model: str
) -> None:
    app = choose(open_page("launch"), "launch_models", [model])
    assert app.error[0].value.startswith("model")
    assert not waiting(database)


def test_the_spec_the_command_and_the_code_are_shown(open_page: Open) -> None:
    codes = [code.value for code in use_small_model(open_page("launch")).code]
    assert '"model": "tiny-test"' in codes[0]
    assert codes[1].startswith("python -m engine measure - <<'JSON'\n{")
    assert "peft" in codes[2]


def test_one_machine_is_not_asked_for_its_node(open_page: Open) -> None:
    assert all(field.key != "launch_places" for field in open_page("launch").get("button_group"))


def test_a_run_is_sent_to_the_node_that_was_chosen(open_page: Open, database: Database) -> None:
    stored.devices(database, stored.node("box"))
    app = use_small_model(open_page("launch"))
    launch(choose(app, "launch_places", [Place(node="box")]))
    assert [row.spec["node"] for row in waiting(database)] == ["box", "box"]


def test_a_sweep_that_would_mix_versions_waits_until_somebody_allows_it(open_page: Open, database: Database) -> None:
    versions = {**stored.node().versions, "torch": "2.12.0"}
    stored.devices(database, stored.node("old", state="differs", versions=versions))
    app = use_small_model(open_page("launch"))
    app = choose(app, "launch_places", [Place(node="here"), Place(node="old")])
    assert formatting.plain("would mix versions: here has torch 2.13.0; old has torch 2.12.0") in words(app)
    assert app.button(key="launch_button").disabled
    app.checkbox(key="launch_mix").check().run()
    launch(app)
    assert {row.spec["node"] for row in waiting(database)} == {"here", "old"}
