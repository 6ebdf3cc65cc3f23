"""What fits: for several ways of training and several cards, which fit, how far they go, and what to change first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import formatting
from app.widgets import acting, address, fits, labels, plan_form, plan_frames, plans, presenting
from app.widgets.downloads import table_downloads
from app.widgets.metrics import cards
from app.widgets.plan_form import Form
from db.runs import RunRow

_FITS = st.column_config.MultiselectColumn(options=list(fits.WORDS), color=list(fits.COLOURS))


def request(form: Form, row: RunRow | None) -> None:
    """The button that asks for a plan, the bar while it is made, or why there is none."""
    for sentence in form.problems:
        st.error(formatting.plain(sentence), icon=":material/error:")
    if form.spec is None:
        return
    if row is not None and plans.is_waiting(row):
        plans.follow(row)
        return
    if row is None or row.state != "succeeded":
        if row is not None:
            reason = row.error_text or formatting.state_text(row.state)
            st.warning(formatting.plain(formatting.sentence(f"The last plan came to nothing: {reason}")))
        else:
            number = len(form.spec.of) * len(form.spec.places)
            st.info(
                f"Not planned yet: {formatting.plural(number, 'answer')}, about "
                f"{formatting.duration(12.0 * len(form.spec.of) + 3.0 * number)}.",
                icon=":material/fit_screen:",
            )
        acting.button(
            "Plan what fits", type="primary", icon=":material/fit_screen:", on_click=plans.ask, args=(form.spec,)
        )


def answer(plan: Mapping[str, Any], times: plan_frames.Times) -> None:
    """What to take where, best first, and everything that was found."""
    batch = f", batch {plan['batch_size']}" if plan["batch_size"] > 1 else ""
    presenting.words(
        f"Training {formatting.plain(labels.model_label(plan['model']))} at **{plan['context_length']} tokens**{batch}:"
    )
    cards(plan_frames.cards(plan, times))
    for sentence in plan_frames.recommendation(plan, times):
        st.markdown(f"- {formatting.sentence(sentence)}")
    st.caption("How good the trained model becomes is not measured here: what fits need not be what learns best.")
    frame = plan_frames.table(plan, times)
    st.dataframe(
        plan_frames.shown(frame),
        hide_index=True,
        column_config={
            "Fits": _FITS,
            "Makes it fit": st.column_config.TextColumn(width="large"),
            "Not predicted, because": st.column_config.TextColumn(width="large"),
        },
        alt="Every method at every place: whether it fits, what it needs, and how far it goes",
    )
    table_downloads(frame, "what_fits")


def change(plan: Mapping[str, Any]) -> None:
    """What to change first where something does not fit."""
    found = dict(plan_frames.changeable(plan))
    if not found:
        return
    st.subheader("What to change first", anchor=False)
    first = next((label for label, one in found.items() if one["together"]), next(iter(found)))
    chosen = address.one("For", list(found), key="change", default=first, width=320)
    one = found[chosen]
    if one["together"]:
        together = formatting.listing([label[:1].lower() + label[1:] for label in one["together"]["labels"]])
        st.markdown(f"Fits with {together}: {formatting.size(one['together']['needed_bytes'])}.")
    else:
        st.markdown("No combination that was looked at makes it fit.")
    st.dataframe(
        plan_frames.changes_shown(one),
        hide_index=True,
        column_config={"Fits": _FITS},
        alt="What each change saves, most first",
    )
    table_downloads(plan_frames.changes(one), "changes")


def base(plan: Mapping[str, Any]) -> None:
    """Whether the base's weights alone fit."""
    st.subheader("The base's weights alone", anchor=False)
    st.dataframe(
        plan_frames.base_shown(plan),
        hide_index=True,
        column_config={place["label"]: _FITS for place in plan["places"]},
        alt="What the base's weights take in bfloat16, int8 and nf4, and where they fit",
    )
    table_downloads(plan_frames.base(plan), "base_weights")


def notes(plan: Mapping[str, Any], row: RunRow) -> None:
    """By which rules, from which sources, and when."""
    with st.expander("How this was found", icon=":material/info:"):
        rules = plan["rules"]
        lines = [
            rules["fit"],
            rules["ranking"],
            f"Largest context: in steps of {max((a.get('context_unit') or 1) for a in plan['answers'])} tokens; the "
            "answer was predicted, and so was the step after it, or three predictions on a line tell it",
            rules["step_time"],
            f"On this machine: {rules['process']}",
            *(f"{place['label']}: {place['memory_source']}" for place in plan["places"]),
            *(f"{place['label']}, speed: {place['speed_source']}" for place in plan["places"] if place["speed_source"]),
        ]
        for line in lines:
            st.markdown(f"- {formatting.plain(formatting.sentence(line[:1].upper() + line[1:]))}")
        st.caption(
            f"{formatting.plural(plan['predictions'], 'prediction')} in {formatting.seconds(plan['plan_time_s'])}, "
            f"{formatting.moment(row.finished_at)}"
        )


# The containers are always there: what comes and goes in one moves no widget below it (see ``address``).
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.title("What fits", anchor=False, width="content")
    presenting.button()
choices, status, answer_place, change_place, base_place, notes_place = (st.container() for _ in range(6))
with choices:
    form = plan_form.draw()
row = plans.latest(form.spec) if form.spec else None
with status:
    request(form, row)
plan = plans.answer(row) if row is not None and row.state == "succeeded" else None
if plan is not None and row is not None:
    times = plans.measured_step_s(plan)
    with answer_place:
        answer(plan, times)
    with change_place:
        change(plan)
    with base_place:
        base(plan)
    with notes_place:
        notes(plan, row)
presenting.way_back()
