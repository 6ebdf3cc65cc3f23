"""Presentation mode: what the address carries into it, and the way back."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

PAGE = """
import streamlit as st
from app.widgets import presenting

st.markdown("on" if presenting.is_on() else "off")
presenting.button()
presenting.words("a sentence")
presenting.way_back()
"""


def page(**query: str | list[str]) -> AppTest:
    app = AppTest.from_string(PAGE)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def test_the_link_carries_what_the_page_shows_and_hides_streamlits_own_menu() -> None:
    app = page(ids=["1", "2"], metric="a&b")
    assert app.markdown[0].value == "off"
    assert app.get("link_button")[0].proto.url == "?ids=1&ids=2&metric=a%26b&present=1&embed=true"


def test_a_presented_page_has_larger_words_and_one_control_which_ends_it_and_keeps_the_rest() -> None:
    app = page(id="merge", present="1")
    assert app.markdown[0].value == "on"
    assert app.header[0].value == "a sentence"
    assert not app.get("link_button")
    app.button(key="end_presentation").click().run()
    assert app.markdown[0].value == "off"
    assert app.query_params == {"id": "merge"}


def test_any_other_value_is_not_presenting() -> None:
    assert page(present="0").markdown[0].value == "off"
