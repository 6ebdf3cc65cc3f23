"""One prediction in detail: its parts, the tensors that take most, the course of memory, and a device's own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import figures, formatting
from app.widgets import address, predictions
from app.widgets.downloads import table_downloads
from app.widgets.metrics import Chart
from app.widgets.metrics import draw as draw_charts
from app.widgets.predict_form import Asked, Form
from app.widgets.prediction_frames import course, variants
from app.widgets.predictions import Predicted


def draw(form: Form) -> None:
    """Which prediction, and all of it."""
    st.subheader("Where it goes", anchor=False)
    one = _chosen(form.asked)
    predicted = predictions.known([one.spec], form.place.card, with_course=True).get(one.hash)
    body = st.container()
    if predicted is None or predicted.error is not None:
        is_waiting = predicted is None and predictions.waiting([one.spec], form.place.card)
        body.caption("Being predicted." if is_waiting else "Not predicted; the reason is above.")
        return
    with body:
        _charts(predicted)
        _tensors(predicted)
        _terms(predicted)
        for note in predicted.notes:
            st.caption(formatting.plain(formatting.sentence(note[:1].upper() + note[1:])))


def _chosen(asked: Sequence[Asked]) -> Asked:
    """The prediction that is looked at; at first the last method at its longest length."""
    names = {_name(one): one for one in asked}
    return names[address.one("Prediction", list(names), key="of", default=list(names)[-1], width=360)]


def _name(one: Asked) -> str:
    return one.group if one.length is None else f"{one.group}, {one.length} tokens"


def _charts(predicted: Predicted) -> None:
    rows = variants(predicted)
    alt = figures.alt_text(
        "Predicted memory at the peak by category",
        rows.groupby("label", sort=False)["value"].sum().to_dict(),
        "bytes",
        "lower",
    )
    figure = figures.stacked(rows, figures.CATEGORY_COLOURS, title="Memory at the peak", unit="bytes")
    drawn = [Chart(figure, "parts_chart", alt, is_wide=True)]
    moments = course(predicted)
    if len(moments):
        figure = figures.course(moments, title="Memory along the job")
        alt = f"Predicted memory along the job by category; its peak is in {predicted.peak_part or 'the job'}"
        drawn.append(Chart(figure, "course_chart", alt, is_wide=True))
    draw_charts(drawn)


def _tensors(predicted: Predicted) -> None:
    st.markdown(f"**Largest at the peak** :gray[in {formatting.plain(predicted.peak_part or 'the job')}]")
    frame = pd.DataFrame(predicted.top_tensors, columns=["module", "category", "bytes"])
    st.dataframe(
        pd.DataFrame(
            {
                # What is not one module's, such as the logits' gradient, is the model's as a whole.
                "Module": frame["module"].replace("", "(whole model)"),
                "What": frame["category"],
                "Bytes": frame["bytes"].map(formatting.size),
            }
        ),
        hide_index=True,
        alt="The tensors that take most at the peak, by category and module; a star stands for all blocks",
    )
    table_downloads(frame, "largest_tensors")


def _terms(predicted: Predicted) -> None:
    if not predicted.device_terms:
        return
    st.markdown(f"**What the device needs** :gray[{formatting.size(predicted.device_bytes)} in all]")
    frame = pd.DataFrame([_term(term) for term in predicted.device_terms])
    unverified = frame["is_unverified"].map({True: " Unverified: seen on no GPU yet.", False: ""})
    st.table(
        pd.DataFrame(
            {
                "Term": frame["term"],
                "Bytes": frame["bytes"].map(formatting.size),
                "Source": (frame["source"].map(formatting.sentence) + unverified).map(formatting.plain),
            }
        ),
        border="horizontal",
        hide_index=True,
        alt="What the job takes of the device, term by term, with the source of each",
    )
    table_downloads(frame, "device_terms")


def _term(term: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "term": term["name"],
        "bytes": term["bytes"],
        "source": term["source"],
        "is_unverified": bool(term.get("unverified")),
    }
