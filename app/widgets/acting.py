"""Buttons that change something, grey with the reason for whoever may only look; and who is here, with signing in.

Only what pages look like: what may be done is held where it is done (``app.people``).
"""

from __future__ import annotations

from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAuthError

from app import formatting, people
from app.widgets import presenting


def button(label: str, *, disabled: bool = False, help: str | None = None, **options: Any) -> bool:
    """``st.button`` for what changes something; takes what that takes."""
    refusal = people.visitor().refusal
    return st.button(label, disabled=disabled or refusal is not None, help=refusal or help, **options)


def is_refused() -> bool:
    """Whether this visitor may only look; says why, in place of a form that would be of no use to them."""
    refusal = people.visitor().refusal
    if refusal:
        st.info(formatting.plain(refusal), icon=":material/lock:")
    return refusal is not None


def who() -> None:
    """A line with who is here, whether they may only look, and the way to sign in or out.

    It takes no room for who is on this machine itself, and none on a presented page.
    """
    visitor = people.visitor()
    has_sign_in = people.has_sign_in()
    if presenting.is_on() or (visitor.may_change and not has_sign_in):
        return
    with st.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
        if visitor.is_signed_in and visitor.name:
            st.markdown(f":material/person: {formatting.plain(visitor.name)}", width="content")
        if visitor.refusal:
            st.badge("View only", icon=":material/visibility:", color="orange", help=formatting.plain(visitor.refusal))
        if visitor.is_signed_in:
            st.button("Sign out", key="sign_out", type="tertiary", icon=":material/logout:", on_click=st.logout)
        elif has_sign_in:
            for provider in people.providers():
                _sign_in_button(provider)


def _sign_in_button(provider: str | None) -> None:
    label = "Sign in" if provider is None else f"Sign in with {formatting.plain(provider.capitalize())}"
    if not st.button(label, key=f"sign_in_{provider or ''}", type="tertiary", icon=":material/login:"):
        return
    try:
        st.login(provider)
    except StreamlitAuthError as error:
        st.error(f"Sign-in is not set up right: {formatting.plain(str(error))}", icon=":material/error:")
