"""The fields of one adapter type: what is asked first, tables instead of JSON, configs as fields of their own."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from app.widgets.adapter_form import numbers_by_module
from app.widgets.fields import FieldError
from engine import catalog

OFFERED = [name for name, entry in catalog.adapter_types().items() if not entry.unavailable_reason and entry.fields]


def draw(type_id: str) -> None:
    import streamlit as st

    from app.widgets import adapter_form
    from engine import catalog

    st.session_state["chosen"] = adapter_form.option_fields(catalog.adapter_type(type_id), ())


def form(type_id: str) -> AppTest:
    app = AppTest.from_function(draw, kwargs={"type_id": type_id}).run()
    assert not app.exception, app.exception
    return app


def switch_on(app: AppTest, key: str) -> AppTest:
    app.toggle(key=key).set_value(True).run()
    assert not app.exception, app.exception
    return app


@pytest.mark.parametrize("type_id", OFFERED)
def test_a_type_shows_its_essential_fields_with_a_line_on_each_and_changes_nothing_by_itself(type_id: str) -> None:
    app = form(type_id)
    essential = [field for field in catalog.adapter_type(type_id).fields if field.essential]
    shown = [caption.value for caption in app.caption]
    assert 1 <= len(essential) <= 3
    assert all(any(field.help in text for text in shown) for field in essential if field.name != "prompt_tuning_init")
    assert app.session_state["chosen"] == {}


@pytest.mark.parametrize("type_id", OFFERED)
def test_no_field_asks_for_json(type_id: str) -> None:
    app = form(type_id)
    if any(toggle.key == f"all_options_{type_id}" for toggle in app.toggle):
        switch_on(app, f"all_options_{type_id}")
    assert not app.text_area
    assert not any("JSON" in str(field.placeholder) + str(field.help) for field in app.text_input)


def test_a_config_of_its_own_is_a_switch_with_fields() -> None:
    app = switch_on(switch_on(form("lora"), "all_options_lora"), "option_lora_kasa_config")
    assert app.session_state["chosen"] == {"kasa_config": [{}]}
    app.text_input(key="option_option_lora_kasa_config_beta").set_value("0.1, 0.2").run()
    assert app.session_state["chosen"] == {"kasa_config": [{"beta": 0.1}, {"beta": 0.2}]}


def test_a_pissa_with_iterations_can_be_typed_in() -> None:
    app = form("lora")
    app.multiselect(key="option_lora_init_lora_weights").set_value(["pissa", "pissa_niter_4"]).run()
    assert app.session_state["chosen"] == {"init_lora_weights": ["pissa", "pissa_niter_4"]}


def test_rows_of_a_table_become_a_mapping_and_empty_rows_nothing() -> None:
    rows = [{"module": "q_proj", "value": 4.0}, {"module": None, "value": None}, {"module": " k_proj ", "value": 0.5}]
    assert numbers_by_module("alpha_pattern", rows) == {"q_proj": 4, "k_proj": 0.5}
    assert numbers_by_module("alpha_pattern", []) == {}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"module": "q_proj", "value": None}], "rank_pattern: q_proj has no value"),
        ([{"module": None, "value": 3.0}], "rank_pattern: '' is not a module's name"),
        ([{"module": "(a+)+$", "value": 3.0}], "rank_pattern: '(a+)+$' is not a module's name"),
        ([{"module": "q", "value": 3.0}, {"module": "q", "value": 4.0}], "rank_pattern: q is there twice"),
    ],
)
def test_a_row_that_is_not_whole_is_one_sentence(rows: list[dict[str, object]], expected: str) -> None:
    with pytest.raises(FieldError) as caught:
        numbers_by_module("rank_pattern", rows)
    assert str(caught.value) == expected
