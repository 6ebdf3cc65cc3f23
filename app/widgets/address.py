"""Choices that belong to the address of a page: widgets bound to it, and the same choices read while presenting.

A presented page has no widgets, so what they would bind is read from the address by hand. What the address names and
the page does not have is ignored, and the default holds. A widget that moves down the page, as something appears above
it in the same container, loses its place in the address: what comes and goes belongs into a container that is always
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import streamlit as st

from app.widgets import presenting

T = TypeVar("T")


def one(
    label: str,
    options: Sequence[T],
    *,
    key: str,
    default: T,
    text: Callable[[T], str] = str,
    help: str | None = None,
    width: int | Literal["stretch"] = 240,
) -> T:
    """A select box; its option's text is in the address."""
    if presenting.is_on():
        by_text = {text(option): option for option in options}
        return by_text.get(st.query_params.get(key, ""), default)
    return st.selectbox(
        label,
        options,
        index=list(options).index(default),
        format_func=text,
        key=key,
        bind="query-params",
        help=help,
        width=width,
    )


def several(
    label: str,
    options: Sequence[T],
    *,
    key: str,
    default: Sequence[T] = (),
    text: Callable[[T], str] = str,
    help: str | None = None,
    placeholder: str = "Any",
    width: int | Literal["stretch"] = 240,
) -> list[T]:
    """A list of several; the texts of its options are in the address."""
    if presenting.is_on():
        named = st.query_params.get_all(key)
        chosen = [option for option in options if text(option) in named]
        return chosen or list(default)
    return st.multiselect(
        label,
        options,
        default=list(default),
        format_func=text,
        key=key,
        bind="query-params",
        help=help,
        placeholder=placeholder,
        width=width,
    )


def one_or_new(
    label: str,
    options: Sequence[str],
    *,
    key: str,
    default: str,
    text: Callable[[str], str] = str,
    help: str | None = None,
    placeholder: str,
) -> str:
    """A select box that takes what is typed, too; the address may hold an option, its text, or anything else."""
    if presenting.is_on():
        by_text = {text(option): option for option in options}
        asked = st.query_params.get(key, default)
        return by_text.get(asked, asked)
    chosen = st.selectbox(
        label,
        options,
        index=list(options).index(default),
        format_func=text,
        key=key,
        bind="query-params",
        accept_new_options=True,
        help=help,
        placeholder=placeholder,
    )
    return chosen or default


def words(label: str, *, key: str, default: str, help: str | None = None) -> str:
    """A short text, empty where it was emptied."""
    if presenting.is_on():
        return st.query_params.get(key, default)
    return st.text_input(label, default, key=key, bind="query-params", help=help) or ""


def search(label: str, *, key: str, placeholder: str) -> str:
    """A word to look for, empty where there is none."""
    if presenting.is_on():
        return st.query_params.get(key, "")
    return st.text_input(
        label,
        type="search",
        key=key,
        bind="query-params",
        placeholder=placeholder,
        icon=":material/search:",
        width=240,
        label_visibility="collapsed",
    )


def switch(label: str, *, key: str, help: str | None = None) -> bool:
    """A switch that is off by default."""
    if presenting.is_on():
        return st.query_params.get(key) == "true"
    return st.toggle(label, key=key, bind="query-params", help=help)


def tab(label: str, options: Sequence[str], *, key: str) -> str:
    """Which of a few views is shown, the first by default."""
    if presenting.is_on():
        named = st.query_params.get(key, "")
        return named if named in options else options[0]
    chosen = st.segmented_control(
        label, options, default=options[0], key=key, bind="query-params", required=True, label_visibility="collapsed"
    )
    return chosen or options[0]
