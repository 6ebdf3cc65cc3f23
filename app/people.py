"""The one gate through which pages change what is stored: who may, and a record of what they did.

Every write of a page goes through :func:`acting`; a test holds that. What may be changed how is the database's. Buttons
that are grey for whoever may only look are a courtesy (``app.widgets.acting``), the gate does not rely on them.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import streamlit as st
from sqlalchemy.orm import Session

from app import access, formatting, state
from app.access import Account, Connection, Visitor
from db import actions
from db.actions import ActionName

P = ParamSpec("P")
T = TypeVar("T")


class NotAllowed(Exception):
    """Whoever asked may only look. The text is one sentence."""


@dataclass(slots=True)
class Act:
    """Something that somebody is doing: the transaction to do it in, and what is to be said of it.

    Where neither ``run_ids`` nor ``detail`` is set, nothing was done and nothing is recorded.
    """

    session: Session
    run_ids: Sequence[int] = ()
    detail: str = ""


def connection() -> Connection:
    """The way this visitor comes, as the server sees it."""
    headers = {name.lower(): value for name, value in st.context.headers.items()}
    # Streamlit says None for an address of this machine, and where there is no connection at all.
    peer = st.context.ip_address or ("127.0.0.1" if headers else None)
    return Connection(st.get_option("server.address"), peer, headers)


def has_sign_in() -> bool:
    """Whether signing in is set up (``[auth]`` in ``.streamlit/secrets.toml``)."""
    # Streamlit tells of nobody that they are signed in or not where it is not.
    return "is_logged_in" in st.user


def providers() -> list[str | None]:
    """The names of the providers that one can sign in with; None is the one that has no name."""
    section: Mapping[str, Any] = st.secrets.get("auth", {})
    named = [name for name, value in section.items() if isinstance(value, Mapping) and "client_id" in value]
    return [*named] or [None]


def visitor() -> Visitor:
    """Who looks at this page, and whether they may change anything."""
    # At once, as each look at it looks for the file with the secrets.
    claims = st.user.to_dict()
    account = None
    if claims.get("is_logged_in") is True:
        email = claims.get("email")
        account = Account(email if isinstance(email, str) else None, claims.get("email_verified") is True)
    return access.visitor(
        connection(),
        account,
        has_sign_in="is_logged_in" in claims,
        launchers=os.environ.get("PEFT_LAB_LAUNCHERS", ""),
        os_user=actions.os_user(),
    )


def require() -> str:
    """What this visitor is called, who may change things.

    Raises:
        NotAllowed: when they may only look.
    """
    person = visitor()
    if person.refusal is not None:
        raise NotAllowed(person.refusal)
    return person.name


@contextlib.contextmanager
def acting(action: ActionName) -> Iterator[Act]:
    """A write transaction for something that a person does; its record is in it, so that both are stored or neither.

    Raises:
        NotAllowed: before anything is opened, when this visitor may only look.
    """
    name = require()
    with state.database().writing() as session:
        act = Act(session)
        yield act
        if act.run_ids or act.detail:
            actions.record(session, name, action, act.run_ids, act.detail)


def told(act: Callable[P, T]) -> Callable[P, T | None]:
    """For what a button calls: says a refusal of the gate where the visitor sees it, instead of failing the page."""

    @functools.wraps(act)
    def guarded(*arguments: P.args, **named: P.kwargs) -> T | None:
        try:
            return act(*arguments, **named)
        except NotAllowed as refusal:
            st.toast(formatting.plain(str(refusal)), icon=":material/lock:", duration="long")
            return None

    return guarded
