"""Presentation mode: a page as a projector shows it, without navigation and controls; in the address as ``present=1``.

Streamlit's own ``embed=true`` is added to the address, which hides its menu; navigation on top stays there in embed
mode, so ``app/main.py`` leaves it out itself. A page cannot set ``embed``, only a link can, and a link opens a new tab:
that tab is the one to project. Larger type of charts is ``app.figures``'.
"""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

_PARAMETER = "present"


def is_on() -> bool:
    """Whether this page is being presented: no navigation, no controls, larger type."""
    return st.query_params.get(_PARAMETER) == "1"


def stay() -> dict[str, str]:
    """What a link to another page needs among its query parameters to stay in presentation mode while it is on."""
    return {_PARAMETER: "1"} if is_on() else {}


def words(text: str) -> None:
    """A sentence, in larger type while presenting. Markdown."""
    if is_on():
        st.header(text, anchor=False)
    else:
        st.markdown(text)


def button() -> None:
    """Opens this page, as its address says it is now, for a projector in a tab of its own. Nothing while presenting."""
    if is_on():
        return
    shown = [(name, value) for name in st.query_params for value in st.query_params.get_all(name)]
    st.link_button(
        "Present",
        "?" + urlencode([*shown, (_PARAMETER, "1"), ("embed", "true")]),
        key="present",
        icon=":material/present_to_all:",
        help="Opens this page in larger type and without controls, for a projector.",
    )


def way_back() -> None:
    """The one control of a presented page, at its end: leave presentation mode, by button or Escape."""
    if is_on():
        st.button(
            "End presentation",
            key="end_presentation",
            type="tertiary",
            icon=":material/close_fullscreen:",
            shortcut="Esc",
            on_click=_end,
        )


def _end() -> None:
    st.query_params.pop(_PARAMETER, None)
